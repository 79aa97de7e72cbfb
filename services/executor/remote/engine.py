"""Models at OpenAI-compatible endpoints; see services.executor.engine.Engine."""

import asyncio
import ssl
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer as Encoder

from libs.catalogue import ModelSpec
from libs.clock import Clock
from libs.errors import HeadraceError
from libs.lane.work import Sampling, Tier, Work
from libs.models.source import SourceInvalid
from libs.models.tokenizer_files import tokenizer_files
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Capacity, Exactness, Listener, LoadFailed, SelfCheckFailed
from services.executor.remote import probe, request
from services.executor.remote.breaker import State
from services.executor.remote.endpoint import Endpoint
from services.executor.remote.key import ApiKey, KeyUnreadable
from services.executor.remote.prompt import Prompts
from services.executor.remote.source import RemoteSource
from services.executor.remote.usage import Usage, cost
from services.executor.stream.runner import StreamRunner

CHECK_S = 30.0
"""A self-check that takes longer has failed."""


class Observer(Protocol):
    """Counts what endpoints cost, and how they are."""

    def on_cost(self, model: str, currency: str, amount: float) -> None:
        """A work cost so much."""
        ...

    def on_breaker(self, model: str, state: int) -> None:
        """A breaker changed: 0 closed, 1 half-open, 2 open."""
        ...


class RemoteEngine:
    """Loading a model is asking its endpoint a question of one token.

    Args:
        cache_dir: Where tokenizers are kept.
        clock: For deadlines, limits and breakers.
        observer: Hears of costs and breakers.
    """

    def __init__(self, cache_dir: Path, clock: Clock, observer: Observer | None = None) -> None:
        self._cache_dir = cache_dir
        self._clock = clock
        self._observer = observer
        self._runners: list[RemoteRunner] = []

    async def start(self) -> None:
        """There is nothing that could lack here: the endpoints are the models' matter."""

    async def load(self, model: ModelSpec, listener: Listener) -> "RemoteRunner":
        """Asks the endpoint for its models and for an answer of one token."""
        remote = model.remote
        if not (remote.base_url and remote.model and remote.api):
            raise LoadFailed("remote.base_url, remote.model and remote.api are required")
        if min(model.slots, model.blocks, model.block_tokens) < 1:
            raise LoadFailed("slots, blocks and block_tokens must be at least 1: what the endpoint may be asked for")
        key = ApiKey(remote.api_key_file)
        try:
            key.read()
            tokenizer, encoder = await asyncio.to_thread(self._tokenizer, model)
            context = await asyncio.to_thread(_tls, remote.ca_file) if remote.base_url.startswith("https:") else None
        except (KeyUnreadable, SourceInvalid, ValueError) as error:
            raise LoadFailed(str(error)) from error
        except OSError as error:
            raise LoadFailed(f"{error.filename or remote.ca_file}: {error.strerror or error}") from error
        endpoint = Endpoint(remote, key, context, self._clock)
        try:
            dialect = await probe.probe(model, endpoint, remote.api, tokenizer.encode(probe.QUESTION))
            runner = RemoteRunner(model, endpoint, dialect, tokenizer, encoder, listener, self._clock, self._observer)
        except BaseException:
            await endpoint.close()
            raise
        self._runners = [*(other for other in self._runners if not other.closed), runner]
        return runner

    async def close(self) -> None:
        """Closes every runner."""
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.close() for runner in runners))

    def _tokenizer(self, model: ModelSpec) -> tuple[Tokenizer, Encoder]:
        folder = tokenizer_files(model.tokenizer_source, self._cache_dir)
        return _tokenizer(folder, (folder / "tokenizer.json").stat().st_mtime_ns)


class RemoteRunner(StreamRunner):
    """A model at an endpoint. While the breaker is open, works end at once with StageUnavailable."""

    def __init__(
        self,
        model: ModelSpec,
        endpoint: Endpoint,
        dialect: request.Dialect,
        tokenizer: Tokenizer,
        encoder: Encoder,
        listener: Listener,
        clock: Clock,
        observer: Observer | None,
    ) -> None:
        assert model.remote.api
        api = model.remote.api
        self._model = model
        self._endpoint = endpoint
        self._observer = observer
        self._question = tokenizer.encode(probe.QUESTION)
        self._streams = RemoteSource(
            model, endpoint, api, dialect, tokenizer, Prompts(tokenizer, encoder), clock, self._used, self._changed
        )
        capacity = Capacity(model.slots, model.blocks, model.block_tokens, Exactness.MODELLED)
        capabilities = request.capabilities(
            api, dialect, model.remote.resume != "continue", paid=model.price is not None
        )
        super().__init__(self._streams, capacity, capabilities, listener, clock)
        self._changed(State.CLOSED)

    def submit(self, work_id: int, work: Work) -> None:
        if (error := self._streams.refusal(work)) is not None:
            self.refuse(work_id, work, error)
        else:
            super().submit(work_id, work)

    async def load_adapter(self, adapter: ModelSpec) -> None:
        raise LoadFailed(f"an endpoint takes no adapters: give {adapter.name} an entry of its own, without a base")

    async def unload_adapter(self, adapter: str) -> None:
        """There are none."""

    async def self_check(self) -> None:
        """Asks for one token. Costs what it costs, and counts for limits and breaker."""
        deadline = self._clock.now() + CHECK_S
        work = Work("self-check", "", Tier.INTERACTIVE, self._model.pool, self._question, Sampling(1), deadline)
        try:
            async with asyncio.timeout(CHECK_S):
                await self.ask(work)
        except HeadraceError as error:
            raise SelfCheckFailed(error.message) from error
        except TimeoutError:
            raise SelfCheckFailed(f"the endpoint did not answer within {CHECK_S:.0f} s") from None

    async def close(self) -> None:
        await super().close()
        await self._endpoint.close()

    def _used(self, usage: Usage) -> None:
        if self._observer is not None and (price := self._model.price) is not None:
            self._observer.on_cost(self._model.name, price.currency, cost(usage, price))

    def _changed(self, state: State) -> None:
        if self._observer is not None:
            self._observer.on_breaker(self._model.name, state.value)


@lru_cache(maxsize=4)
def _tokenizer(folder: Path, _mtime_ns: int) -> tuple[Tokenizer, Encoder]:
    """Kept, for many entries of a catalogue share one, and reading it takes half a second of CPU."""
    return Tokenizer.load(folder), Encoder.from_file(str(folder / "tokenizer.json"))


def _tls(ca_file: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca_file or None)
