"""What the queues of a batcher look like from outside. Pure; changes nothing."""

from collections import Counter
from collections.abc import Iterable

from libs.lane.work import QueueState, Tier
from services.batcher.held import Held, Place
from services.batcher.pool import Pool


def queue_states(instance: str, pools: Iterable[Pool], works: Iterable[Held], now: float) -> list[QueueState]:
    """One entry per pool and tier that holds something; `now` in monotonic seconds."""
    running = Counter((held.work.pool, held.work.tier) for held in works if held.place is not Place.WAITING)
    states = []
    for pool in pools:
        for tier in Tier:
            waiting, busy = pool.queue.waiting(tier), running[pool.name, tier]
            if waiting or busy:
                oldest = pool.queue.oldest(tier)
                age_ms = 0 if oldest is None else int((now - oldest) * 1000)
                tokens = pool.queue.waiting_tokens(tier)
                states.append(QueueState(instance, pool.name, tier, waiting, tokens, busy, age_ms))
    return states
