"""Results as they are published: token ids that accumulate, and iterators that end when nothing comes."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tensorrt_llm.executor.utils import AsyncQueue
from tensorrt_llm.sampling_params import SamplingParams


@dataclass(slots=True)
class Logprob:
    """A token's."""

    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One answer."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    _last_token_ids_len: int = field(default=0, init=False, repr=False)

    @property
    def token_ids_diff(self) -> list[int]:
        return self.token_ids[self._last_token_ids_len :]


@dataclass(slots=True)
class Response:
    """What a step brought for a request; `error` is an exception or the text of a RequestError."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    cached_tokens: int = 0
    finish_reason: str | None = None
    final: bool = False
    error: Exception | str | None = None


class RequestOutput:
    """Is awaited, or iterated; every step of the iteration yields itself."""

    def __init__(
        self,
        request_id: int,
        prompt_token_ids: list[int],
        sampling_params: SamplingParams,
        abort: Callable[[int], None],
        handle_error: Callable[[Any], None],
    ) -> None:
        self.request_id = request_id
        self.prompt_token_ids = prompt_token_ids
        self.sampling_params = sampling_params
        self.outputs = [CompletionOutput(0)]
        self.cached_tokens = 0
        self.queue = AsyncQueue()
        self._abort_request = abort
        self._handle_error = handle_error
        self._aborted = False
        self._done = False

    @property
    def finished(self) -> bool:
        return self._done

    def abort(self) -> None:
        self._abort_request(self.request_id)
        self._aborted = True

    def aborted(self) -> bool:
        return self._aborted

    async def aresult(self) -> "RequestOutput":
        while not self._done:
            await self._step()
        return self

    def __await__(self) -> Any:
        return self.aresult().__await__()

    def __aiter__(self) -> "RequestOutput":
        return self

    async def __anext__(self) -> "RequestOutput":
        if self._done:
            raise StopAsyncIteration
        await self._step()
        return self

    async def _step(self) -> None:
        response: Response = await self.queue.get()
        if response.error is not None:
            self._done = response.final
            self._handle_error(response.error)
        output = self.outputs[0]
        output._last_token_ids_len = len(output.token_ids)
        output.token_ids.extend(response.tokens)
        output.logprobs.extend(response.logprobs)
        self.cached_tokens = response.cached_tokens
        self._done = response.final
        if response.finish_reason is not None:
            output.finish_reason = response.finish_reason


class IterationResult:
    """Events or stats. Once nothing came for its timeout it has ended, until `mark_undone`."""

    def __init__(self) -> None:
        self._done = False
        self._timeout: float | None = 2
        self.aqueue = AsyncQueue()

    def set_timeout(self, timeout: float | None) -> None:
        self._timeout = timeout

    def mark_undone(self) -> None:
        self._done = False

    def __aiter__(self) -> "IterationResult":
        return self

    async def __anext__(self) -> dict[str, Any]:
        if self._done:
            raise StopAsyncIteration
        try:
            data: dict[str, Any] = json.loads(await self.aqueue.get(timeout=self._timeout))
        except TimeoutError:
            self._done = True
            raise StopAsyncIteration from None
        return data
