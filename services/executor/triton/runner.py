"""A model on a Triton server: keeps its stream, and comes back when the server does."""

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass

import structlog

from libs.catalogue import ModelSpec
from libs.clock import Clock
from libs.errors import HeadraceError
from libs.lane.work import Sampling, Tier, Work
from services.executor.engine import Capacity, Listener, LoadFailed, SelfCheckFailed
from services.executor.stream.runner import StreamRunner
from services.executor.triton.adapters import read_adapter
from services.executor.triton.blocks import ModelledBlocks
from services.executor.triton.contract import LORA, capabilities
from services.executor.triton.conversation import Conversation
from services.executor.triton.request import Adapter
from services.executor.triton.residence import Residence
from services.executor.triton.server import TritonError
from services.executor.triton.source import Speech, TritonSource

log = structlog.get_logger()

PAUSE_S = (0.1, 2.0)
"""Between two tries to come back: first and longest; doubles, and varies by a half."""
QUESTION_TOKENS = 4
QUESTION_S = 30.0
"""For the answer to the self-check; a busy server takes its time."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a runner puts up with what. Seconds."""

    watch_s: float = 2.0
    """Between two looks at the server: whether it is there, and its blocks."""
    answer_s: float = 5.0
    """For an answer of the server about itself."""
    silence: int = 2
    """Looks in a row without an answer after which the stream is given up."""
    away_s: float = 60.0
    """A server that stays away longer breaks the runner."""


class TritonRunner(StreamRunner):
    """See services.executor.engine.Runner."""

    def __init__(
        self, residence: Residence, speech: Speech, capacity: Capacity, blocks: ModelledBlocks,
        listener: Listener, clock: Clock, patience: Patience,
    ) -> None:  # fmt: skip
        self._triton = TritonSource(speech, blocks.cached_tokens)
        can = capabilities(speech.facts, speech.flavor, speech.remembers)
        super().__init__(self._triton, capacity, can, listener, clock, blocks.follow)
        self._residence = residence
        self._server = residence.server
        self._speech = speech
        self._blocks = blocks
        self._patience = patience
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Opens the stream and asks the model a question. Raises LoadFailed; then close."""
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._keeper = asyncio.create_task(self._keep(opened), name=f"triton {self._residence.name}")
        await opened

    def submit(self, work_id: int, work: Work) -> None:
        self._blocks.add(work_id, work)
        super().submit(work_id, work)

    async def load_adapter(self, adapter: ModelSpec) -> None:
        """Reads the adapter and has the server load it, by a question of one token."""
        name = adapter.adapter
        if name in self._triton.adapters:
            return
        if not self._speech.facts.inputs.keys() >= LORA:
            raise LoadFailed(f"{self._residence.name} takes no adapters: it lacks {', '.join(sorted(LORA))}")
        read = await asyncio.to_thread(read_adapter, name, adapter.source)
        if (link := self._triton.link) is None:
            raise LoadFailed("the Triton server is away")
        try:
            await self._question(link, name, read, most=1)
        except (HeadraceError, TimeoutError) as error:
            raise LoadFailed(f"the Triton server does not take the adapter {name}: {error}") from error
        self._triton.adapters[name] = read

    async def unload_adapter(self, adapter: str) -> None:
        """Forgets the adapter. The server drops it by itself, when it needs the room."""
        self._triton.adapters.pop(adapter, None)

    async def self_check(self) -> None:
        if (link := self._triton.link) is None:
            raise SelfCheckFailed("the Triton server is away")
        try:
            await self._question(link)
        except (HeadraceError, TimeoutError) as error:
            raise SelfCheckFailed(f"the model does not answer: {error or 'it takes too long'}") from error

    async def close(self) -> None:
        await super().close()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await self._residence.leave()
        await self._server.close()

    async def _keep(self, opened: "asyncio.Future[None]") -> None:
        """Holds one conversation after another; ends when the server stays away, and the runner with it."""
        try:
            reason = await self._converse(opened)
        except Exception as error:  # a bug; the executor must see the runner die, not stall
            log.exception("the runner of a triton server failed")
            reason = f"{type(error).__name__} in its runner"
        if opened.done():
            self.fail_all(reason)
            await self._residence.leave()
            await self._server.close()
        else:
            opened.set_exception(LoadFailed(reason))

    async def _converse(self, opened: "asyncio.Future[None]") -> str:
        """Returns why there is no next conversation."""
        give_up = 0.0
        while True:
            link = Conversation(self._server.stub)
            talk = asyncio.create_task(link.run(), name="triton stream")
            try:
                await self._question(link)
                if not opened.done():
                    opened.set_result(None)
                self._triton.link = link
                give_up = 0.0
                reason = await self._until_broken(talk)
            except (HeadraceError, TimeoutError) as error:
                reason = f"the model does not answer: {error or 'it takes too long'}"
                if not opened.done():
                    return reason
            finally:
                self._triton.link = None
                talk.cancel()
                await asyncio.gather(talk, return_exceptions=True)
            log.warning("triton is away", endpoint=self._server.endpoint, reason=reason)
            self._blocks.forget()
            give_up = give_up or asyncio.get_running_loop().time() + self._patience.away_s
            if fault := await self._come_back(give_up):
                return f"the Triton server at {self._server.endpoint} stays away: {reason}; {fault}"

    async def _until_broken(self, talk: "asyncio.Task[str]") -> str:
        """Watches the server while the stream lives; returns why it does not any more."""
        silent = 0
        while True:
            done, _ = await asyncio.wait({talk}, timeout=self._patience.watch_s)
            if done:
                return talk.result()
            try:
                if not await self._server.ready(self._residence.name):
                    return "the model was unloaded"
                silent = 0
            except TritonError as error:
                silent += 1
                if silent >= self._patience.silence:
                    return str(error)
            blocks = await self._server.blocks(self._speech.engine.name)
            if blocks is not None and blocks.used != self._blocks.used:
                self._blocks.used = blocks.used
                self.tell()

    async def _come_back(self, give_up: float) -> str:
        """Waits for the server and has it load the model again; the last fault when it takes too long."""
        loop, fault = asyncio.get_running_loop(), "the model does not answer"
        pause, most = PAUSE_S
        while loop.time() < give_up:
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311
            pause = min(2 * pause, most)
            try:
                resident = await self._residence.settle()
            except LoadFailed as error:
                fault = str(error)
                continue
            same = (resident.facts, resident.engine) == (self._speech.facts, self._speech.engine)
            return "" if same else "the model came back with another configuration"
        return fault

    async def _question(
        self, link: Conversation, name: str = "", adapter: Adapter | None = None, most: int = QUESTION_TOKENS
    ) -> None:
        """Asks for a few tokens. Raises HeadraceError and TimeoutError."""
        tokenizer, limits = self._speech.tokenizer, self._speech.limits
        prompt = tokenizer.encode("Hello") if tokenizer is not None else [limits.pad_id or 0]
        sampling = Sampling(max_tokens=most, temperature=0.0, ignore_end=self.capabilities.ignore_end)
        work = Work("self-check", "", Tier.INTERACTIVE, "", prompt, sampling, float("inf"), adapter=name)
        async with asyncio.timeout(QUESTION_S):
            async with aclosing(self._triton.answer(link, work, adapter, adapter is not None)) as pieces:
                async for _piece in pieces:
                    pass
