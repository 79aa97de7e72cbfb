"""May a work wait? Judged when it comes, so that who is refused knows it at once, with the figures and with when
to come back; what has begun elsewhere was accepted once and is let in."""

from dataclasses import replace

from libs.errors import DeadlinePassed, HeadraceError, Overloaded
from services.batcher import promise
from services.batcher.book import Book
from services.batcher.dispatch import TOO_LARGE, late
from services.batcher.held import Held
from services.batcher.pool import Pool
from services.batcher.queue import Entry


class Arrival:
    """Judges for one batcher."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def judge(self, pool: Pool, held: Held) -> tuple[HeadraceError | None, str]:
        """Why a work is refused, or None; and what it can be promised, for an operator. Sets when its first token
        is due; changes nothing else."""
        book, work = self._book, held.work
        now = held.arrived
        speed = pool.speed(now)
        rules = book.rules.tier(work.tier)
        held.due = promise.due(now, rules.target_s, rules.stretch, held.prompt_tokens, speed.seat_prefill)
        if pool.fits_nowhere(held.total_tokens):
            return Overloaded(TOO_LARGE, retry_after_s=1.0), ""
        if work.resumed:
            return None, ""
        drain = pool.drain_rate(now)
        limit = promise.token_limit(rules.target_s, drain, rules.limits.tokens)
        tokens = len(work.prompt)
        full = pool.queue.refusal(work.tier, tokens, replace(rules.limits, tokens=limit))
        if full is not None:
            waiting = pool.queue.waiting_tokens(work.tier) + tokens
            return Overloaded(full, retry_after_s=promise.retry_after(waiting, limit, drain)), ""
        entry = Entry(held.key, work.tier, tokens, now, work.tenant, work.weight, held.due)
        ahead = pool.queue.tokens_ahead(entry) if len(pool.queue) else 0
        likely = book.likely_tokens(pool, work)
        estimate = promise.estimate(ahead, tokens, 0, likely, drain, speed.seat_prefill, speed.token_s)
        if estimate is None:
            return None, ""
        due_s = held.due - now
        if drain and (unkept := promise.unkept(estimate, due_s)) is not None:
            return Overloaded(unkept, retry_after_s=promise.bounded(estimate.first_token_s - due_s / 2)), ""
        why = promise.broken(estimate, work.deadline - book.clock.now())
        if why is None:
            return None, estimate.reason
        return DeadlinePassed(f"the deadline cannot be met: {why}", metadata=late(estimate, "arrival")), estimate.reason
