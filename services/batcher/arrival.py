"""May a work wait? Judged when it comes, so that who is refused knows it at once, with the figures and with when
to come back; what has begun elsewhere was accepted once and is let in."""

from math import inf

from msgspec.structs import replace

from libs.errors import DeadlinePassed, HeadraceError, Overloaded
from libs.lane.work import Tier, Work
from services.batcher import promise
from services.batcher.book import Book
from services.batcher.held import Held
from services.batcher.pool import Pool
from services.batcher.promise import Estimate
from services.batcher.queue import Entry, Limits
from services.batcher.refusals import late, too_large


class Arrival:
    """Judges for one batcher."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def judge(self, pool: Pool, held: Held) -> tuple[HeadraceError | None, Estimate | None]:
        """Why a work is refused, or None; and what it can be promised, as far as that is known. Sets when its first
        token is due; changes nothing else."""
        book, work = self._book, held.work
        now = held.arrived
        speed = pool.speed(now)
        rules = book.rules.tier(work.tier)
        held.due = promise.due(now, rules.target_s, rules.stretch, held.prompt_tokens, speed.seat_prefill)
        left_s = work.deadline - book.clock.now()
        if left_s <= 0:
            said = f"the deadline was past on arrival in the queue, by {-left_s:.3f} s"
            return DeadlinePassed(said, metadata={"stage": "arrival"}), None
        if pool.fits_nowhere(held.total_tokens):
            return too_large(pool, held), None
        if work.resumed:
            return None, None
        drain = pool.drain_rate(now)
        tokens, waiting, ahead = len(work.prompt), pool.queue.waiting_tokens(work.tier), 0
        entry = Entry(held.key, work.tier, tokens, now, work.tenant, work.weight, held.due)
        if len(pool.queue):
            ahead = pool.queue.tokens_ahead(entry, coming=True)
        limits = rules.limits
        if waiting and 2 * ahead >= waiting:  # else its turn comes soon: it is not what makes the queue too long
            most = promise.token_limit(rules.target_s, drain, limits.tokens)
            limits = Limits(limits.works, most, limits.age_s)
        full = pool.queue.refusal(work.tier, tokens, limits)
        if full is not None:
            figures = {"stage": "arrival", "waiting_tokens": str(waiting), "limit_tokens": str(limits.tokens)}
            after = promise.retry_after(waiting + tokens, limits.tokens, drain)
            return Overloaded(full, metadata=figures, retry_after_s=after), None
        likely = book.likely_tokens(pool, work)
        estimate = promise.estimate(ahead, tokens, 0, likely, drain, speed.seat_prefill, speed.token_s)
        if estimate is None:
            return None, None
        if (rate := pool.standing.rate(work.tenant, work.tier, now)) is not None:
            own = pool.queue.own_ahead(entry)
            estimate = promise.measured(estimate, own, rate, self._most(pool, work, own, drain))
            estimate = replace(estimate, standing=work.tier is Tier.INTERACTIVE)
        due_s = held.due - now
        if drain and (unkept := promise.unkept(estimate, due_s)) is not None:
            figures = late(estimate, "arrival") | {"due_s": f"{due_s:.3f}"}
            after = promise.bounded(estimate.first_token_s - due_s / 2)
            return Overloaded(unkept, metadata=figures, retry_after_s=after), None
        why = promise.broken(estimate, left_s)
        if why is None:
            return None, estimate
        return DeadlinePassed(f"the deadline cannot be met: {why}", metadata=late(estimate, "arrival")), estimate

    def _most(self, pool: Pool, work: Work, own: int, drain: float) -> float:
        """Seconds after which the turn of a work has come, however slowly those before it leave the queue now: async
        work joins the interactive class, and has its tenant's share there."""
        if work.tier is not Tier.ASYNC or not drain:
            return inf
        return self._book.rules.tier(Tier.ASYNC).limits.age_s + own / (drain * pool.rivals.share(work.tenant))
