"""Loads models into child processes; see services.executor.engine.Engine."""

import asyncio
from pathlib import Path

import structlog

from libs.catalogue import ModelSpec
from libs.models.prepared import PreparedModel, PrepareFailed, prepare
from libs.models.source import SourceInvalid
from services.executor.child.start import start_loaded
from services.executor.child.wire import Ready
from services.executor.engine import Listener, LoadFailed
from services.executor.openvino.check import Limits
from services.executor.openvino.grammar import GrammarGate
from services.executor.openvino.runner import OpenVinoRunner
from services.executor.openvino.turns import QUANTUM_S
from services.executor.openvino.wire import Load

log = structlog.get_logger()

LOAD_S = 300.0
"""A child that has not answered after this long has failed."""

LEAST_BLOCKS = 8
"""The self-test needs as many."""


class OpenVinoEngine:
    """The embedded engine: continuous batching on CPUs, with paged keys and values and a prefix cache.

    Args:
        cache_dir: Where prepared models are.
        threads: CPU threads per model; 0 leaves the choice to OpenVINO (all physical cores).
        niceness: Added to the children's own, 0 to 19: higher gives way to the rest of the machine.
        quantum_s: How long one adapter's works run while another's wait.
    """

    def __init__(self, cache_dir: Path, threads: int = 0, niceness: int = 0, quantum_s: float = QUANTUM_S) -> None:
        self._cache_dir = cache_dir
        self._threads = threads
        self._niceness = niceness
        self._quantum_s = quantum_s
        self._runners: list[OpenVinoRunner] = []

    async def start(self) -> None:
        """Nothing to look at: the engine is part of the environment."""

    async def load(self, model: ModelSpec, listener: Listener) -> OpenVinoRunner:
        """Prepares the model if that has not been done on this machine (about 20 s for the default one), starts
        its process (about 2 s), and returns when it has passed its self-test."""
        if min(model.slots, model.step_tokens) < 1 or model.blocks < LEAST_BLOCKS:
            raise LoadFailed(f"slots and step_tokens must be at least 1, blocks at least {LEAST_BLOCKS}")
        if model.openvino.prompt_lookup_tokens and model.openvino.prompt_lookup_ngram < 1:
            raise LoadFailed("prompt_lookup_ngram must be at least 1 where prompt_lookup_tokens is set")
        prepared = await self._prepare(model)
        load = self._message(model, prepared)
        child, ready = await start_loaded(
            "services.executor.openvino.child", load, LOAD_S, accept=lambda ready: _check_blocks(model, ready)
        )
        block_tokens = ready.capacity.block_tokens
        known = [model.blocks * block_tokens, model.context_tokens, prepared.facts.context_tokens]
        limits = Limits(min(tokens for tokens in known if tokens), block_tokens, prepared.facts)
        runner = OpenVinoRunner(child, GrammarGate(prepared.grammar_path), ready, limits, listener)
        self._runners = [*(other for other in self._runners if not other.closed), runner]
        return runner

    async def close(self) -> None:
        """Closes every runner."""
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.close() for runner in runners))

    async def _prepare(self, model: ModelSpec) -> PreparedModel:
        told = ""

        def tell(doing: str, share: float) -> None:
            nonlocal told
            if doing != told:
                told = doing
                log.info("preparing model", model=model.name, doing=doing, percent=round(share * 100))

        try:
            return await prepare(model.source, self._cache_dir, tell)
        except (SourceInvalid, PrepareFailed) as error:
            raise LoadFailed(str(error)) from error

    def _message(self, model: ModelSpec, prepared: PreparedModel) -> Load:
        """What the child is told."""
        return Load(
            path=str(prepared.path),
            model=model.name,
            vocabulary=prepared.facts.vocabulary,
            blocks=model.blocks,
            slots=model.slots,
            step_tokens=model.step_tokens,
            eos_ids=prepared.facts.eos_ids,
            threads=self._threads,
            niceness=self._niceness,
            quantum_s=self._quantum_s,
            lookup_tokens=model.openvino.prompt_lookup_tokens,
            lookup_ngram=model.openvino.prompt_lookup_ngram,
            places=prepared.facts.places,
        )


def _check_blocks(model: ModelSpec, ready: Ready) -> None:
    measured = ready.capacity.block_tokens
    if model.block_tokens not in (0, measured):
        raise LoadFailed(f"the engine's blocks have {measured} tokens, the catalogue says {model.block_tokens}")
