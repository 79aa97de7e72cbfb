"""Blocks to prefill and blocks that decode, added; the least wins: the cost function of NVIDIA Dynamo's KV router.

Source: Dynamo, `lib/kv-router/src/scheduling/selector/default.rs` and `config.rs`, and `router-concepts.md`, with
their defaults: `cost = prefill_load_scale * max(active prefill + prompt - credit, 0) + decode`, in blocks;
`credit = 1.0 * device + 0.75 * host + 0.25 * disk`; scale 1; temperature 0, so the least cost wins and equals are
drawn at random.

The same: the function and its weights. Active prefill is what works without a first token have to compute, less what
was found in the cache. Decode is the prompts of all works until they end, those that prefill among them, and that
of the new one; answer tokens are not counted (`router_track_output_blocks` is off).
Different, because a seat does not say more:
- Dynamo knows the hashes of active blocks, and counts those that works share once. Here each work's count, so that
  executors whose works share a prefix seem fuller than they are to Dynamo.
- of works that prefill it counts the whole prompts as decode blocks, here the part that is to be computed.
- its queue in front of all workers, and its rejection of requests when all are busy, are not part of the function:
  queue and admission are Headrace's for every policy.
"""

from collections.abc import Sequence

from services.batcher.policies.policy import Asked, Choice, Pick
from services.batcher.policies.ties import NONE_OPEN, NOTHING, among, draw
from services.batcher.seat import Seat

DEVICE_CREDIT, HOST_CREDIT, DISK_CREDIT = 1.0, 0.75, 0.25
"""What a remembered block saves of computing it: overlap_score_credit, host_ and disk_cache_hit_weight."""
PREFILL_LOAD_SCALE = 1.0


class BlockCost:
    """See the module."""

    name = "block_cost"
    late = False

    def choose(self, asked: Asked, seats: Sequence[Seat], pick: Pick) -> Choice:
        """See policies.policy."""
        best: list[Seat] = []
        least = float("inf")
        matches, prompt = asked.matches, asked.prompt_tokens
        for seat in seats:
            if not seat.open:
                continue
            active = seat.prefill_tokens
            prefill: float = active + prompt
            if matches and (match := matches.get(seat.executor)) is not None:
                prefill -= DEVICE_CREDIT * match.device + HOST_CREDIT * match.host + DISK_CREDIT * match.disk
                if prefill < 0:
                    prefill = 0.0
            cost = (PREFILL_LOAD_SCALE * prefill + seat.context_tokens + active + prompt) / seat.capacity.block_tokens
            if cost < least:
                best, least = [seat], cost
            elif cost == least:
                best.append(seat)
        if not best:
            return NONE_OPEN
        seat = draw(best, pick)
        return Choice(seat, f"least cost, {least:.1f} blocks{among(best)}: {_parts(asked, seat)}")


def _parts(asked: Asked, seat: Seat) -> str:
    """The figures of a cost, in blocks."""
    tokens, match = seat.capacity.block_tokens, asked.matches.get(seat.executor, NOTHING)
    active, prompt = seat.prefill_tokens / tokens, asked.prompt_tokens / tokens
    credit = (DEVICE_CREDIT * match.device + HOST_CREDIT * match.host + DISK_CREDIT * match.disk) / tokens
    decode = seat.context_tokens / tokens + active + prompt
    return f"prefill {active:.1f} active + {prompt:.1f} prompt - {credit:.1f} credit, decode {decode:.1f}"
