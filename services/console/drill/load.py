"""The requests of a drill: sent at a rate, whatever becomes of them (an open loop), over the SDK."""

import asyncio
import random
from collections.abc import Callable

from libs.client import GenerateOptions, HeadraceClient, HeadraceError, RetryPolicy, Session
from services.console.drill.guard import Guard
from services.console.drill.ramp import Ramp
from services.console.drill.values import Kind, Order, Sent

TICK_S = 0.02
PROBE_S = 1.0
"""Between two probes, at least."""
SPARE_S = 2.0
"""Between two requests of the protected tenant at the same level."""
ONCE = RetryPolicy(attempts=1, resume=False)
"""What is refused stays refused."""


class Load:
    """Sends, and remembers what became of it. Bounded by Bounds.requests, in flight by Bounds.in_flight.

    Args:
        spared: Asks as a protected tenant; None without one.
        clock: Seconds since the drill began.
        level: The level that was seen last.
    """

    def __init__(
        self,
        order: Order,
        session: Session,
        spared: HeadraceClient | None,
        guard: Guard,
        clock: Callable[[], float],
        level: Callable[[], int],
    ) -> None:
        self.sent: list[Sent] = []
        self._order = order
        self._session = session
        self._spared = spared
        self._guard = guard
        self._clock = clock
        self._level = level
        self._chance = random.Random(1)  # noqa: S311  -- prompts, not secrets
        self._open: set[asyncio.Task[None]] = set()
        self._as_protected: list[Sent] = []
        self._probes: list[Sent] = []
        """Those without an end; at most one of each level, and the last one."""

    @property
    def open(self) -> int:
        """Requests without an end."""
        return len(self._open)

    @property
    def spared_refused(self) -> int:
        """Requests of the protected tenant that were refused, for whatever reason."""
        return sum(bool(each.error) for each in self._as_protected)

    async def run(self, ramp: Ramp) -> None:
        """Sends until the ramp is over, or the guard says stop."""
        owed, probe_at, last = 1.0, 0.0, self._clock()
        while not self._guard.why and ramp.over(self._clock()) is None:
            now = self._clock()
            owed, last = owed + (now - last) * ramp.per_s, now
            while owed >= 1 and not self._guard.why:
                owed -= 1
                self._send(Kind.LOAD)
            if now >= probe_at and not self._probing():
                probe_at = now + PROBE_S
                self._send(Kind.PROBE)
            if self._spared is not None and self._spare_due(now):
                self._send(Kind.SPARED)
            await asyncio.sleep(TICK_S)

    def _probing(self) -> bool:
        """Whether a probe is open that was sent at this level. Where rungs leave much, probes are long: more of them
        would be most of the load, and hold all slots while levels are to rise."""
        level = self._level()
        return any(each.ended < 0 and each.level == level for each in self._probes)

    def _spare_due(self, now: float) -> bool:
        """Whether the protected tenant is to ask: rarely, since a tenant that is never refused lowers what is measured
        as refused. At each level once, and again as long as none of its requests was answered under a rung."""
        sent, level = self._as_protected, self._level()
        if not sent or level > max(each.level for each in sent):
            return True
        seen = any(each.level and each.answered for each in sent)
        return not seen and 0 < level < len(self._order.ladder) and now >= sent[-1].at + SPARE_S

    async def drained(self) -> None:
        """Waits for the ends of all that was sent."""
        if self._open:
            await asyncio.wait(self._open)

    async def cancel(self) -> None:
        """Ends all that has no end yet."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _send(self, kind: Kind) -> None:
        if len(self._open) >= self._order.bounds.in_flight:
            return
        sent = Sent(kind, self._clock(), self._level())
        self.sent.append(sent)
        if kind is Kind.SPARED:
            self._as_protected.append(sent)
        if kind is Kind.PROBE:
            self._probes = [*(each for each in self._probes if each.ended < 0), sent]
        self._guard.sent(len(self.sent), sent.at)
        task = asyncio.create_task(self._ask(sent), name="drill request")
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _ask(self, sent: Sent) -> None:
        order = self._order
        asks = self._spared if sent.kind is Kind.SPARED and self._spared is not None else self._session
        options = GenerateOptions(
            max_tokens=order.tokens if sent.kind is Kind.LOAD else order.probe_tokens,
            temperature=0.0,
            ignore_end=True,
            output="token_ids",
            tier="async" if order.tier == "async" else "interactive",
            timeout=order.answer_s,
            tags={"drill": sent.kind.value},
        )
        # Each begins with another number: what the cache remembers would make the load cheaper than it looks.
        prompt = f"{self._chance.random()} drill " + "water " * order.words
        try:
            async for chunk in asks.generate(order.model, prompt=prompt, options=options):
                if sent.first < 0 and chunk.token_ids:
                    sent.first = self._clock()
                if (finish := chunk.finish) is not None:
                    sent.tokens, sent.reason, sent.model = finish.usage.output_tokens, finish.reason, finish.model
                    sent.rungs = finish.degradation.rungs if finish.degradation is not None else ()
        except HeadraceError as error:
            sent.error, sent.message = error.reason or type(error).__name__, error.message
            sent.retry_s = -1.0 if error.retry_after is None else error.retry_after
            told = error.metadata.get("level", "")
            sent.told = int(told) if told.isdecimal() else -1
        sent.ended = self._clock()
        self._guard.ended(sent)
