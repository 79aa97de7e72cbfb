"""What the batcher can promise a work that comes now, by the rates it has measured. Pure.

An estimate is built from three parts: the prompts in front of it, which the whole pool computes; its own prompt,
less what is remembered, on one seat; and its answer, one token after the other. What was never measured counts as
nothing, so an estimate errs to the early side, and only a work is refused that is more likely late than not: give
the median of its expected length, not its max_tokens.
"""

from math import inf

import msgspec
from msgspec.structs import replace

LEAST_RETRY_S, MOST_RETRY_S = 0.05, 30.0
RETRY_UNMEASURED_S = 1.0
"""When a refused caller is told to come back while no rate is known."""
ACCEPTED = 0.75
"""Of the time to a first token's due, how much an estimate may come to for its work to be accepted. The rest is for
what it leaves out: the rate falls while slots and blocks fill up, others come later and go first, and what has been
placed ahead on the seat is not in it."""
STANDING = 0.4
"""Of the same time, how much interactive works may spend in a queue in which their tenant has had works all the time
for a while. A burst is worth a long queue, because it ends; a queue that stands is a delay and nothing else. As long
as something always waits, a shorter one costs no throughput, and fewer of its works are late when the rate falls. Their
own prompts are not in it: else long ones would hardly ever be accepted, since the queue is always nearly full."""


class Estimate(msgspec.Struct, frozen=True):
    """What stands between a work that comes now and its last token, in seconds and in tokens."""

    ahead_s: float
    ahead_tokens: int
    prefill_s: float
    prefill_tokens: int
    decode_s: float
    output_tokens: int
    standing: bool = False
    """Whether it joins a queue that stands, and ought not to."""

    @property
    def first_token_s(self) -> float:
        """Seconds from now to its first token."""
        return self.ahead_s + self.prefill_s

    @property
    def end_s(self) -> float:
        """Seconds from now to its last."""
        return self.ahead_s + self.prefill_s + self.decode_s

    @property
    def reason(self) -> str:
        """The parts, with their figures."""
        return (
            f"needs about {_figure(self.end_s)} ({_figure(self.ahead_s)} behind {self.ahead_tokens:,} prompt tokens, "
            f"{_figure(self.prefill_s)} for its own {self.prefill_tokens:,}, "
            f"{_figure(self.decode_s)} for {self.output_tokens:,} tokens)"
        )


def estimate(
    ahead_tokens: int,
    prompt_tokens: int,
    matched_tokens: int,
    output_tokens: int,
    pool_prefill_rate: float,
    seat_prefill_rate: float,
    token_s: float,
) -> Estimate | None:
    """When a work would have its tokens; None when nothing was measured yet.

    Args:
        ahead_tokens: Prompt tokens that are computed before it.
        prompt_tokens: Its own, resumed tokens included.
        matched_tokens: Of these, what is remembered where it will run.
        output_tokens: That it is expected to make there.
        pool_prefill_rate: Tokens per second of all open seats together; 0 when unknown.
        seat_prefill_rate: Of the seat on which it will run.
        token_s: Seconds per output token there.
    """
    if not (pool_prefill_rate or seat_prefill_rate or token_s):
        return None
    own = max(prompt_tokens - matched_tokens, 1)  # the last token is computed in any case
    return Estimate(
        ahead_s=ahead_tokens / pool_prefill_rate if pool_prefill_rate else 0.0,
        ahead_tokens=ahead_tokens,
        prefill_s=own / seat_prefill_rate if seat_prefill_rate else 0.0,
        prefill_tokens=own,
        decode_s=max(output_tokens - 1, 0) * token_s,
        output_tokens=output_tokens,
    )


def measured(estimate: Estimate, own_tokens: int, rate: float, most_s: float = inf) -> Estimate:
    """An estimate for a tenant that has had works waiting for a while: what is in front of a work may count for less
    than how slowly those before it leave the queue. Where none has left yet, and nothing bounds it, nothing is known
    of how long that takes.

    Args:
        own_tokens: Of the tenant's own prompts, those in front.
        rate: At which these leave the queue, in tokens per second.
        most_s: However slow that is now, it will not take longer.
    """
    own_s = min(own_tokens / rate if rate else inf, most_s) if own_tokens else 0.0
    if not estimate.ahead_s < own_s < inf:
        return estimate
    return replace(estimate, ahead_s=own_s, ahead_tokens=own_tokens)


def broken(estimate: Estimate | None, left_s: float) -> str | None:
    """Why a deadline cannot be met, with the figures; None when it can, or nothing is known.

    Args:
        left_s: Seconds until the deadline.
    """
    if estimate is None or estimate.end_s <= left_s:
        return None
    return f"{estimate.reason} and has {_figure(max(left_s, 0.0))}"


def unkept(estimate: Estimate | None, due_s: float) -> str | None:
    """Why no first token in time can be promised, with the figures; None when it can, or nothing is known.

    Args:
        due_s: Seconds until it is due.
    """
    if estimate is None:
        return None
    due = f"the first token is due within {_figure(due_s)}, so works are accepted that"
    if estimate.first_token_s > ACCEPTED * due_s:
        return f"{due} need {_figure(ACCEPTED * due_s)} for it; one that comes now {estimate.reason}"
    if estimate.standing and estimate.ahead_s > STANDING * due_s:
        return (
            f"{due} wait for {_figure(STANDING * due_s)}, when their tenant has had others waiting for a while; one "
            f"that comes now {estimate.reason}"
        )
    return None


def token_limit(target_s: float, pool_prefill_rate: float, hard_limit: int) -> int:
    """Prompt tokens that may wait so that the last of them is computed within the target for the first token.

    `hard_limit` where it is less, and where no target is set or nothing was measured.
    """
    if target_s <= 0 or pool_prefill_rate <= 0:
        return hard_limit
    return min(int(target_s * pool_prefill_rate), hard_limit)


def due(now: float, target_s: float, stretch: float, prompt_tokens: int, seat_prefill_rate: float) -> float:
    """When the first token should be there: within the target, or within `stretch` times what the prompt takes on
    an idle seat, whichever is longer.

    Args:
        now: Monotonic seconds, as is what is returned.
        seat_prefill_rate: 0 when unknown: the target alone counts.
    """
    alone_s = prompt_tokens / seat_prefill_rate if seat_prefill_rate else 0.0
    return now + max(target_s, stretch * alone_s)


def retry_after(waiting_tokens: int, limit: int, pool_prefill_rate: float) -> float:
    """Seconds after which a refused caller may find room.

    That is when the queue is back at half of its limit: who came back at the very first free place would find it
    taken, and be refused again.

    Args:
        waiting_tokens: Prompt tokens in the queue, the refused ones included.
        limit: Of the queue.
    """
    if pool_prefill_rate <= 0:
        return RETRY_UNMEASURED_S
    return bounded((waiting_tokens - limit / 2) / pool_prefill_rate)


def bounded(retry_s: float) -> float:
    """A time after which to come back that is neither too short nor too long."""
    return min(max(retry_s, LEAST_RETRY_S), MOST_RETRY_S)


def _figure(seconds: float) -> str:
    """Two digits that count, or whole seconds."""
    if seconds >= 10 or seconds == 0:
        return f"{seconds:,.0f} s"
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.1f} ms"
