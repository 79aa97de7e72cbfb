"""An answer as it is made, sent again where it breaks off.

Each piece of an answer carries the text that its tokens complete, so the text so far depends on the tokens
so far alone. When a stream breaks, the request goes out again with these tokens; the mesh reads them as
written, holds back what it would have held back behind them (half a character, the beginning of a stop
string), and sends only what comes then. So at the seam nothing is missing and nothing comes twice.
"""

import asyncio
import random
import time
from types import TracebackType
from typing import Self

from headrace.inference.v1 import inference_pb2 as pb

from .errors import CapacityError, HeadraceError, NoExecutor, StageUnavailable
from .options import RetryPolicy
from .transport import Attempt, Transport, deadline_passed
from .values import Chunk, Completion, ToolStep

NOTHING = Chunk()


class Answer:
    """An asynchronous iterator over the chunks of one answer; made by `generate`.

    The request goes out with the first chunk asked for. Breaking out of `async for` cancels it: at once
    when nothing else refers to this object, which is also its own context manager for all other cases.
    One reader at a time.
    """

    def __init__(
        self, transport: Transport, request: pb.GenerateRequest, policy: RetryPolicy, timeout: float | None
    ) -> None:
        self._transport = transport
        self._request = request
        self._policy = policy
        self._timeout = timeout
        self._deadline: float | None = None
        self._attempt: Attempt | None = None
        self._tokens: list[int] = []
        self._failures = 0
        self._begun = False
        self._loose = False
        """What is here cannot be gone on from: tools were called, or text came without its tokens."""
        self._over = False
        self.resent = 0
        """How often the request was sent again."""

    @property
    def request_id(self) -> str:
        """What the mesh calls the request; "" before it has said so."""
        return self._request.request_id

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Chunk:
        if self._over:
            raise StopAsyncIteration
        try:
            chunk = await self._next()
        except BaseException:
            self.cancel()
            raise
        if chunk.finish is not None:
            self._over = True
        return chunk

    async def complete(self) -> Completion:
        """Waits for the end and returns the whole; of an answer that was read before, the rest."""
        text: list[str] = []
        token_ids: list[int] = []
        log_probs: list[float] = []
        steps: list[ToolStep] = []
        async for chunk in self:
            if chunk.restart:
                text, token_ids, log_probs = [], [], []
            if chunk.tool_step is not None:
                steps.append(chunk.tool_step)
            text.append(chunk.text)
            token_ids += chunk.token_ids
            log_probs += chunk.log_probs
            if chunk.finish is not None:
                whole = "".join(text)
                return Completion(
                    whole, tuple(token_ids), tuple(log_probs), chunk.finish, self.request_id, tuple(steps)
                )
        raise RuntimeError("the answer has been read or cancelled")

    def cancel(self) -> None:
        """Stops the generation, on both ends. Does not wait; does nothing after the end."""
        self._over = True
        if self._attempt is not None:
            self._attempt.cancel()
            self._attempt = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()

    def __del__(self) -> None:
        # `async for … break` leaves no other trace; waiting for a collector would let the mesh go on.
        if not self._over and self._attempt is not None:
            self.cancel()

    async def _next(self) -> Chunk:
        if self._timeout is not None and self._deadline is None:
            self._deadline = time.monotonic() + self._timeout
        while True:
            try:
                if self._attempt is None:
                    self._attempt = await self._transport.start(self._request, self._remaining())
                chunk = await self._attempt.next()
            except HeadraceError as error:
                if self._over:  # cancelled while it was waiting here
                    raise StopAsyncIteration from None
                if not await self._pause(error):
                    raise
                continue
            self._request.request_id = self._attempt.request_id or self._request.request_id
            self._begun = self._begun or bool(chunk.text or chunk.token_ids)
            self._loose = self._loose or bool(chunk.tool_step or (chunk.text and not chunk.token_ids))
            if chunk.restart:
                self._tokens.clear()
                self._request.resumed_model_version = ""
            if chunk.token_ids:
                self._request.resumed_model_version = self._attempt.model_version or self._request.resumed_model_version
                self._failures = 0
                if self._policy.resume:
                    self._tokens += chunk.token_ids
            if chunk != NOTHING:
                return chunk

    async def _pause(self, error: HeadraceError) -> bool:
        """Waits until it makes sense to send again; whether it ever does."""
        if self._attempt is not None:
            self._request.request_id = self._attempt.request_id or self._request.request_id
            self._attempt = None
        self._failures += 1
        again = isinstance(error, NoExecutor | StageUnavailable) or (
            isinstance(error, CapacityError) and error.retry_after is not None
        )
        if not again or self._failures >= self._policy.attempts or (self._begun and not self._policy.resume):
            return False
        if self._loose or (error.retry_after or 0.0) > self._policy.longest_delay:
            return False
        # Not a secret: it keeps clients from coming back all at once.
        delay = self._policy.delay(self._failures, error.retry_after, random.random())  # noqa: S311
        remaining = self._remaining()
        if remaining is not None and delay >= remaining:
            return False
        await asyncio.sleep(delay)
        self.resent += 1
        del self._request.resumed_token_ids[:]
        self._request.resumed_token_ids.extend(self._tokens)
        return True

    def _remaining(self) -> float | None:
        """Seconds that are left."""
        if self._deadline is None:
            return None
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise deadline_passed(self._timeout or 0.0)
        return remaining
