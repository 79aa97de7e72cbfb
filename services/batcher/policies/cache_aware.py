"""The best match, unless loads are uneven: the rule of SGLang's router.

Source: SGLang Model Gateway, `sgl-model-gateway/src/policies/cache_aware.rs`; the thresholds are those that its
launcher sets (`bindings/python/src/sglang_router/router_args.py`: 0.3, 64, 1.5; the library's own defaults are 0.5,
32, 1.1).

The same: loads are requests in flight. They are uneven when `max - min > 64` and `max > 1.5 * min`; then the
executor with the fewest works is chosen, whatever it remembers. Otherwise the one with the longest match, if that is
more than 0.3 of the prompt; otherwise the one with the fewest works.
Different, all in its favor:
- its router keeps an approximate tree of the characters it has sent to each worker, and never hears what an engine
  has dropped. Here the match is that of the exact index, in tokens; blocks in host memory and on disk count as the
  device's, because its tree does not tell them apart.
- of equally long matches it takes one that its tree happens to give; here the one with the fewest works.
- of equal loads it took the first until July 2026; here, as it does since, a random one.
"""

from collections.abc import Sequence

from services.batcher.policies.policy import Asked, Choice, Pick
from services.batcher.policies.ties import NONE_OPEN, NOTHING, among, draw, fewest_works
from services.batcher.seat import Seat

CACHE_THRESHOLD = 0.3
"""Share of the prompt that must be remembered for a match to count."""
BALANCE_ABS_THRESHOLD, BALANCE_REL_THRESHOLD = 64, 1.5
"""Works, and a ratio: loads are uneven when they are farther apart than both."""


class CacheAware:
    """See the module."""

    name = "cache_aware"
    late = False

    def choose(self, asked: Asked, seats: Sequence[Seat], pick: Pick) -> Choice:
        """See policies.policy."""
        idle = fewest_works(seats)
        if not idle:
            return NONE_OPEN
        least, most = idle[0].works, max(seat.works for seat in seats if seat.open)
        if most - least > BALANCE_ABS_THRESHOLD and most > BALANCE_REL_THRESHOLD * least:
            return Choice(draw(idle, pick), f"uneven loads, {least} to {most} works: the fewest{among(idle)}")
        holders, longest = _longest(asked, seats)
        prompt = asked.prompt_tokens
        if longest > CACHE_THRESHOLD * prompt:
            best = fewest_works(holders)
            return Choice(draw(best, pick), f"longest match, {longest} of {prompt} tokens{among(best)}")
        short = f"no match above {CACHE_THRESHOLD} of the prompt (longest {longest} of {prompt} tokens)"
        return Choice(draw(idle, pick), f"{short}: fewest works, {least}{among(idle)}")


def _longest(asked: Asked, seats: Sequence[Seat]) -> tuple[list[Seat], int]:
    """The open seats that remember most of the prompt, and how many tokens; none and 0 when nobody does."""
    holders: list[Seat] = []
    longest = 0
    if asked.matches:
        for seat in seats:
            tokens = asked.matches.get(seat.executor, NOTHING).tokens if seat.open else 0
            if tokens > longest:
                holders, longest = [seat], tokens
            elif tokens == longest and tokens:
                holders.append(seat)
    return holders, longest
