"""One model in TensorRT-LLM's LLM: what the child's loop asks of it (services.executor.child.loop.AsyncModel).

What it hides: token ids that accumulate and may end with the end id; log-probabilities of several shapes; errors
that harm one request, and those that are the end of the engine. Beside it feed.py reads what the engine tells.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from libs.errors import DeadlinePassed, NotSupported, RequestInvalid, StageUnavailable
from libs.lane.work import NAN, FinishReason, Sampling, Tier, Work
from libs.tokens.blocks import chain, salt
from services.executor.child.wire import Ready
from services.executor.engine import BlockEvent, Capacity, LoadFailed, RunnerStats, SelfCheckFailed
from services.executor.stream.source import Piece
from services.executor.trtllm import ask
from services.executor.trtllm.compat import BLOCK_HASH, Api, ApiUnknown, find
from services.executor.trtllm.events import BlockNames, Prefix
from services.executor.trtllm.feed import Feed, text
from services.executor.trtllm.wire import Load

LEARN_S = 1.0
"""How long the first events and statistics may take behind the self-test."""

ABORT_S = 1.0
"""How long a work that was aborted may take to end: a step, and some."""

TEST_S = 120.0
"""How long the self-test may take; the first request compiles kernels."""

FINISHES = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class TrtLlmModel:
    """See AsyncModel. `load` comes first."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._api: Api
        self._llm: Any = None
        self._names = BlockNames(ask.block_tokens(load), max(4 * load.blocks, 1 << 16))
        self._adapters: dict[str, Any] = {}
        self._adapter_ids: dict[str, int] = {}
        self._feed: Feed
        self._open = 0

    async def load(self) -> Ready:
        """Blocks the loop while the engine loads. Raises LoadFailed."""
        load = self._load
        try:
            self._api = api = find()
            cache = api.kv_cache_config(**ask.cache_arguments(load, api.fields(api.kv_cache_config), BLOCK_HASH))
            lora = api.lora_config(**ask.lora_arguments(load)) if load.max_adapters else None
            factory = {"pytorch": api.llm, "tensorrt": api.tensorrt_llm}.get(load.backend)
            if factory is None:
                raise LoadFailed(f"TensorRT-LLM {api.version} has no backend {load.backend!r}")
            self._llm = factory(**ask.model_arguments(load, cache, lora))
        except (ImportError, ApiUnknown) as error:
            raise LoadFailed(f"TensorRT-LLM cannot be used: {error}") from error
        except LoadFailed:
            raise
        except Exception as error:  # whatever the engine raises is why the model is not loaded
            raise LoadFailed(text(error)) from error
        self._feed = Feed(self._llm, self._names)
        try:
            async with asyncio.timeout(TEST_S):
                await self._test(2)
        except (SelfCheckFailed, TimeoutError) as error:
            raise LoadFailed(f"the self-test failed: {text(error)}") from error
        blocks = await self._learn()
        can = ask.capabilities(load, api.generate_takes)
        size = ask.block_tokens(load)
        return Ready(Capacity(load.slots, blocks, size, can.exactness, load.max_adapters, load.step_tokens), can)

    async def open(self, work_id: int, work: Work) -> AsyncIterator[Piece]:
        """See Source.open: RequestInvalid for what the engine refuses, StageUnavailable when it is at its end."""
        request, params, proof = self._begin(work)
        behind = list(work.resumed) if work.grammar is not None else []
        sent, told = 0, False
        self._open += 1
        try:
            async for result in self._pieces(request):
                output = result.outputs[0]
                tokens, reason = output.token_ids[sent:], output.finish_reason
                log_probs = _chosen(tokens, output.logprobs[sent:]) if work.log_probs else []
                sent += len(tokens)
                if reason == "stop" and tokens and tokens[-1] == params.end_id and not params.ignore_eos:
                    tokens = tokens[:-1]
                if behind:
                    common = min(len(behind), len(tokens))
                    if tokens[:common] != behind[:common] or (reason is not None and common < len(behind)):
                        raise NotSupported("an interrupted answer with a grammar came out different")
                    behind, tokens, log_probs = behind[common:], tokens[common:], log_probs[common:]
                cached = None
                if not told:
                    cached, told = min(int(getattr(result, "cached_tokens", 0) or 0), len(work.prompt)), True
                    self._names.found(proof, cached)
                    self._feed.tell()
                yield Piece(tokens, log_probs[: len(tokens)], cached, self._finish(reason, result))
        finally:
            try:
                await self._abort(request)
            finally:
                self._open -= 1
                self._feed.tell()

    def events(self) -> AsyncIterator[Sequence[BlockEvent]]:
        """Raises EngineDied when the engine has."""
        return self._feed.events()

    def stats(self) -> RunnerStats:
        """From the engine's last iteration; it makes none while it has nothing to do."""
        if not self._open:
            return RunnerStats(blocks_cached=self._names.blocks)
        stats = self._feed.latest
        used = int(self._feed.cache.get("usedNumBlocks", 0))
        paused = int((stats.get("inflightBatchingStats") or {}).get("numPausedRequests", 0))
        return RunnerStats(
            running=int(stats.get("numActiveRequests", 0)),
            waiting=int(stats.get("numQueuedRequests", 0)) + paused,
            blocks_used=used,
            blocks_cached=max(self._names.blocks - used, 0),
        )

    async def load_adapter(self, adapter: str, path: str) -> None:
        """Has the engine read it, by a request of one token. An id is never used for another adapter."""
        if adapter in self._adapters:
            return
        number = self._adapter_ids.setdefault(adapter, len(self._adapter_ids) + 1)
        try:
            self._adapters[adapter] = self._api.lora_request(adapter, number, path)
            async with asyncio.timeout(TEST_S):
                await self._question(1, adapter)
        except Exception as error:
            self._adapters.pop(adapter, None)
            raise LoadFailed(f"the adapter cannot be loaded: {text(error)}") from error

    async def unload_adapter(self, adapter: str) -> None:
        """Forgets it. The engine keeps the weights until others need their place: it has no way to be asked."""
        self._adapters.pop(adapter, None)

    async def check(self) -> None:
        """Raises SelfCheckFailed."""
        await self._test(1)

    async def close(self) -> None:
        await self._feed.close()
        self._llm.shutdown()

    def _begin(self, work: Work) -> tuple[Any, Any, Any]:
        """Gives a work to the engine. services.executor.trtllm.runner has looked at it."""
        load, api = self._load, self._api
        lora = None
        if work.adapter and (lora := self._adapters.get(work.adapter)) is None:
            raise StageUnavailable(f"the adapter {work.adapter} is not loaded", retry_after_s=1.0)
        replays = work.grammar is not None  # the state of a grammar cannot be set
        tokens = [*work.prompt] if replays else [*work.prompt, *work.resumed]
        most = work.sampling.max_tokens - (len(tokens) - len(work.prompt))
        if load.context_tokens:
            most = min(most, load.context_tokens - len(tokens))
        arguments = ask.sampling_arguments(work, most, seeds=load.backend != "pytorch")
        try:
            if work.grammar is not None:
                guide = {ask.GUIDES[work.grammar.form]: work.grammar.text}
                arguments["guided_decoding"] = api.guided_decoding_params(**guide)
            params = api.sampling_params(**arguments)
            proof = self._names.submit(self._prefix(work, lora), tokens)
            request = self._llm.generate_async(
                inputs=tokens,
                sampling_params=params,
                lora_request=lora,
                streaming=True,
                cache_salt=work.salt or None,
                **api.supported(
                    priority=ask.PRIORITIES[work.tier],
                    trace_headers={"traceparent": work.traceparent} if work.traceparent else None,
                ),
            )
        except Exception as error:
            raise self._wrong(error) from error
        return request, params, proof

    def _prefix(self, work: Work, lora: Any) -> Prefix:
        size = self._names.block_tokens
        if work.block_tokens == size and work.block_hashes:
            hashes = list(work.block_hashes[: len(work.prompt) // size])
        else:
            hashes = chain(work.prompt, size, salt(self._load.model, work.salt))
        salt_id = self._api.salt_id(work.salt) if work.salt and self._api.salt_id is not None else None
        return Prefix(work.salt, salt_id, work.adapter, lora.lora_int_id if lora else None, tuple(hashes))

    async def _pieces(self, request: Any) -> AsyncIterator[Any]:
        try:
            async for result in request:
                yield result
        except Exception as error:
            raise self._wrong(error) from error

    def _finish(self, reason: str | None, result: Any) -> FinishReason | None:
        if reason == "timeout":
            raise DeadlinePassed("the deadline passed in the engine", metadata={"stage": "executor"})
        if reason is None and not result.finished:
            return None
        if reason not in FINISHES:
            raise StageUnavailable("the engine gave the work up", retry_after_s=1.0)
        return FINISHES[reason]

    async def _abort(self, request: Any) -> None:
        """Ends a request that goes on, and waits for its end, so that its slot is free."""
        if request.finished:
            return
        request.abort()
        with contextlib.suppress(Exception):
            async with asyncio.timeout(ABORT_S):
                async for _ in request:
                    pass

    def _wrong(self, error: Exception) -> Exception:
        """The error of a work for one of the engine. What is not about the request is the end of the engine: it
        shuts itself down then."""
        if isinstance(error, self._api.request_error | ValueError):
            return RequestInvalid(f"the engine refuses it: {text(error)}")
        self._feed.die(text(error))
        return StageUnavailable("the engine failed", retry_after_s=1.0)

    async def _test(self, count: int) -> None:
        """The self-test: longer than a block, so that its events are seen."""
        try:
            made = await self._question(count, "", ask.block_tokens(self._load) + 1)
        except Exception as error:
            raise SelfCheckFailed(text(error)) from error
        if len(made) != count or not all(isinstance(token, int) and token >= 0 for token in made):
            raise SelfCheckFailed(f"asked for {count} tokens, the model answered {made}")

    async def _question(self, count: int, adapter: str, length: int = 2) -> list[int]:
        """The answer to a prompt that means nothing; under an adapter a short one, of which no block is kept."""
        sampling = Sampling(max_tokens=count, temperature=0.0, ignore_end=True)
        prompt = [1 + index % 100 for index in range(length)]
        work = Work("self-check", "", Tier.INTERACTIVE, "", prompt, sampling, 0.0, adapter=adapter, salt=adapter)
        made: list[int] = []
        async with contextlib.aclosing(self.open(0, work)) as pieces:  # type: ignore[type-var]
            async for piece in pieces:
                made += piece.tokens
        return made

    async def _learn(self) -> int:
        """How many blocks the cache has, from the first events and statistics. Raises LoadFailed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEARN_S):
                while not (self._names.capacity and self._feed.latest):
                    await asyncio.sleep(0.01)
        size, expected = int(self._feed.cache.get("tokensPerBlock", 0)), ask.block_tokens(self._load)
        if size not in (0, expected):
            raise LoadFailed(f"the engine's blocks have {size} tokens, not {expected}")
        blocks = self._names.capacity or self._load.blocks
        if not blocks:
            raise LoadFailed("the engine does not tell how many blocks it has: give `blocks` in the catalogue")
        return blocks


def _chosen(tokens: Sequence[int], log_probs: Sequence[Any]) -> list[float]:
    """Log-probabilities of the chosen tokens. The engine gives the best ones of each place, by token; or floats."""
    chosen = []
    for token, given in zip(tokens, log_probs, strict=False):
        best = given.get(token) if isinstance(given, Mapping) else given
        value = getattr(best, "logprob", best)
        chosen.append(NAN if value is None else float(value))
    return chosen + [NAN] * (len(tokens) - len(chosen))
