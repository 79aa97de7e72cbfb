"""A model's place on its server: loaded, checked, and unloaded when no copy here needs it."""

import asyncio
from collections import Counter
from dataclasses import dataclass

import structlog

from libs.catalogue.options import Triton
from services.executor.engine import LoadFailed
from services.executor.triton.contract import Flavor, ModelFacts, faults
from services.executor.triton.metrics import KvBlocks
from services.executor.triton.server import TritonAway, TritonError, TritonServer

log = structlog.get_logger()

NAMES: dict[Flavor, str] = {"ensemble": "ensemble", "bls": "tensorrt_llm_bls", "tensorrt_llm": "tensorrt_llm"}
"""What the backend calls its models, where the catalogue gives no name."""

MOST_SAID = 1000
"""Characters of what a server says that are passed on: it sends whole stack traces."""

METRICS_TRIES, METRICS_PAUSE_S = 5, 0.15
"""The backend fills its metrics every 100 ms."""

Uses = Counter[tuple[str, str]]
"""Copies in this process that need a model: by endpoint and name. Steps may be shared."""


@dataclass(frozen=True, slots=True)
class Resident:
    """A model as it was found on its server."""

    facts: ModelFacts
    engine: ModelFacts
    """The model that makes the tokens: itself, or the one inside an ensemble or behind a BLS."""
    preprocessing: ModelFacts | None
    """The model that makes tokens of text, for the flavors that take text."""
    parts: tuple[str, ...]
    """The models that it needs on the same server, itself included, in the order to load them."""


class Residence:
    """Loads a model on its server, and unloads it.

    A model that is ready already is taken as it is: another process may have loaded it, perhaps this executor
    before it died.
    """

    def __init__(self, server: TritonServer, options: Triton, flavor: Flavor, uses: Uses) -> None:
        self.server = server
        self.name = options.model or NAMES[flavor]
        self._flavor = flavor
        self._keep = options.keep_loaded
        self._uses = uses
        self._held: tuple[str, ...] = ()

    async def settle(self) -> Resident:
        """Loads what is not loaded, and checks it. Raises LoadFailed with everything that does not fit."""
        try:
            return await self._settle()
        except TritonAway as error:
            raise LoadFailed(f"the Triton server is away: {error}") from error
        except TritonError as error:
            said = " ".join(str(error).split())[:MOST_SAID]
            raise LoadFailed(f"the Triton server at {self.server.endpoint} refused: {said}") from error

    async def blocks(self, engine: str) -> KvBlocks | None:
        """The blocks of the model that makes the tokens; waits a moment for the server to fill them in."""
        for _ in range(METRICS_TRIES):
            if (blocks := await self.server.blocks(engine)) is not None:
                return blocks
            await asyncio.sleep(METRICS_PAUSE_S)
        return None

    async def leave(self) -> None:
        """Unloads what no other copy needs. A server that is away has nothing loaded."""
        held, self._held = self._held, ()
        self._uses.subtract((self.server.endpoint, part) for part in held)
        for part in reversed(held):
            if not self._keep and self._uses[self.server.endpoint, part] == 0:
                try:
                    await self.server.unload(part)
                except TritonError as error:
                    log.warning("triton did not unload a model", model=part, reason=str(error))

    async def _settle(self) -> Resident:
        if not await self.server.ready():
            raise LoadFailed(f"the Triton server at {self.server.endpoint} is not ready")
        await self._ensure(self.name)
        self._hold((self.name,))
        facts = await self.server.facts(self.name)
        found = [f"{self.name}: {fault}" for fault in faults(facts, self._flavor)]
        engine = facts
        preprocessing: ModelFacts | None = None
        parts: tuple[str, ...] = (self.name,)
        if self._flavor == "ensemble":
            steps = [await self.server.facts(step) for step in facts.steps]
            parts = (*facts.steps, self.name)
            engine = next((step for step in steps if "input_ids" in step.inputs), facts)
            preprocessing = next((step for step in steps if "QUERY" in step.inputs), None)
        elif self._flavor == "bls":
            behind = facts.parameters.get("tensorrt_llm_model_name", "")
            behind = NAMES["tensorrt_llm"] if not behind or behind.startswith("${") else behind
            parts = ("preprocessing", behind, "postprocessing", self.name)
            for part in parts[:-1]:
                await self._ensure(part)
            engine = await self.server.facts(behind)
            preprocessing = await self.server.facts("preprocessing")
        if engine is not facts:
            found += [f"{engine.name}: {fault}" for fault in faults(engine, "tensorrt_llm")]
        elif self._flavor == "ensemble" and facts.steps:
            found.append(f"{self.name}: none of its steps takes input_ids")
        self._hold(parts)
        if found:
            await self.leave()
            raise LoadFailed("; ".join(found))
        return Resident(facts, engine, preprocessing, parts)

    async def _ensure(self, name: str) -> None:
        if not await self.server.ready(name):
            await self.server.load(name)

    def _hold(self, parts: tuple[str, ...]) -> None:
        self._uses.subtract((self.server.endpoint, part) for part in self._held)
        self._held = parts
        self._uses.update((self.server.endpoint, part) for part in parts)
