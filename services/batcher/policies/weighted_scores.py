"""Weighted scores of queue, memory, prefix and adapter, added; the highest wins: the scorers of llm-d.

Source: llm-d inference scheduler, `pkg/epp/config/loader/defaults.go` (queue 2, KV-cache utilization 2, prefix 3)
and `pkg/epp/framework/plugins/scheduling/` (queuedepth, kvcacheutilization, preciseprefixcache, loraaffinity, and the
maxscore picker, which shuffles equals). Weights of tiers: llm-d kv-cache, `pkg/kvcache/backend.go`. The scorer of
adapters is not in the default profile; its README gives it the weight 1, and it counts here for works that have one.

The same: the scores and their weights. Queue `(max - q) / (max - min)`, 1 when all are equal; memory `1 - usage`;
prefix `matched / prompt`, a block in host memory counted as 0.8; adapter 1.0 where it runs, 0.8 where there is room
for it, 0 where there is none.
Different:
- queue and usage are what engines report, some 50 ms late. A seat has no such report, so they are computed from
  what is placed there (`waiting`, `usage`), which is never late.
- blocks that works share are counted for each of them in the usage.
- an adapter that waits in an engine's queue counts as one that runs, 1.0 instead of 0.6: a seat does not tell.
- a block on disk counts as one in host memory. llm-d's table has no disk; what it does not list counts as 1.0.
- shedding, saturation and flow control are not part of the scores: queue and admission are Headrace's for every
  policy.
"""

from collections.abc import Sequence

from services.batcher.policies.policy import Asked, Choice, Match, Pick
from services.batcher.policies.ties import NONE_OPEN, NOTHING, among, draw
from services.batcher.seat import Affinity, Seat

QUEUE_WEIGHT, MEMORY_WEIGHT, PREFIX_WEIGHT, ADAPTER_WEIGHT = 2.0, 2.0, 3.0, 1.0
DEVICE_VALUE, LOWER_VALUE = 1.0, 0.8
"""What a remembered block counts for, on the device and below it."""
ADAPTER_SCORE = {Affinity.RUNS: 1.0, Affinity.LIES: 0.8, Affinity.ROOM: 0.8, Affinity.TAKEN: 0.0}


class WeightedScores:
    """See the module."""

    name = "weighted_scores"
    late = False

    def choose(self, asked: Asked, seats: Sequence[Seat], pick: Pick) -> Choice:
        """See policies.policy."""
        candidates = [seat for seat in seats if seat.open]
        if not candidates:
            return NONE_OPEN
        queues = [waiting(seat) for seat in candidates]
        longest, spread = max(queues), max(queues) - min(queues)
        matches, adapter = asked.matches, asked.adapter
        best: list[Seat] = []
        highest = -1.0
        for seat, queue in zip(candidates, queues, strict=True):
            score = QUEUE_WEIGHT * ((longest - queue) / spread if spread else 1.0)
            score += MEMORY_WEIGHT * (1.0 - usage(seat))
            if matches and (match := matches.get(seat.executor)) is not None:
                score += PREFIX_WEIGHT * _remembered(match, asked.prompt_tokens)
            if adapter:
                score += ADAPTER_WEIGHT * ADAPTER_SCORE[seat.affinity(adapter)]
            if score > highest:
                best, highest = [seat], score
            elif score == highest:
                best.append(seat)
        seat = draw(best, pick)
        known = _remembered(matches.get(seat.executor, NOTHING), asked.prompt_tokens)
        parts = f"{waiting(seat)} wait (of at most {longest}), {usage(seat):.2f} of memory in use"
        parts += f", {known:.2f} of the prompt remembered"
        if adapter:
            parts += f", adapter scores {ADAPTER_SCORE[seat.affinity(adapter)]:.1f}"
        return Choice(seat, f"highest score, {highest:.2f}{among(best)}: {parts}")


def waiting(seat: Seat) -> int:
    """Works that wait in the engine's queue, as far as can be told from outside.

    An engine takes works off its queue while it has slots and while the tokens of a step last. So those wait that are
    beyond its slots, and of those without a first token the ones that the next step has no tokens for.
    """
    capacity, tokens = seat.capacity, seat.prefill_tokens
    beyond = seat.works - capacity.slots
    if 0 < capacity.step_tokens < tokens:
        begun = -(-seat.prefilling * capacity.step_tokens // tokens)
        beyond = max(seat.prefilling - begun, beyond)
    return beyond if beyond > 0 else 0


def usage(seat: Seat) -> float:
    """Share of the blocks that the works placed there fill, at most 1; answers as of their first token."""
    capacity, held = seat.capacity, seat.context_tokens + seat.prefill_tokens
    room = capacity.blocks * capacity.block_tokens
    if held >= room:
        return 1.0 if room else 0.0
    return held / room


def _remembered(match: Match, prompt: int) -> float:
    """Share of a prompt's tokens, those of lower tiers at their value."""
    value = DEVICE_VALUE * match.device + LOWER_VALUE * (match.host + match.disk)
    if value >= prompt:
        return 1.0 if prompt else 0.0
    return value / prompt
