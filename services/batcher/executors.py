"""An executor in the batcher: its lane, the works on it, and its seat in each pool."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from libs.lane.stage import Lane, Stage
from services.batcher.held import Held
from services.batcher.rates import Rates
from services.batcher.seat import ModelCapacity, Seat


@dataclass(frozen=True, slots=True)
class ExecutorInfo:
    """An executor as the registry has it."""

    stage: Stage
    """The same object as long as the endpoint is the same: its lane is kept then."""
    models: Mapping[str, ModelCapacity]
    """Copies that are READY, by pool."""
    coming: Mapping[str, str] = field(default_factory=dict)
    """Copies that are not there yet, by pool, with what they wait for."""
    leaving: frozenset[str] = frozenset()
    """Copies that end what they run."""


class Executor:
    """An executor: its lane, the works on it by key, and its seat in each pool."""

    def __init__(self, name: str, info: ExecutorInfo) -> None:
        self.name = name
        self.info = info
        self.lane: Lane | None = None
        self.gone = False
        """The registry has no record of it; what runs there may still end."""
        self.works: dict[int, Held] = {}
        self.prefilling: dict[int, Held] = {}
        """Of these, those that wait for their first token there."""
        self.seats: dict[str, Seat] = {}
        """By pool; those whose copy has gone stay while works run there."""
        self.rates: dict[str, Rates] = {}
        self._shut_until: dict[str, float] = {}
        """Pools for which it just refused a work: asked again from then on, or when a work there ends."""
        self.follow(info, 0.0)

    def follow(self, info: ExecutorInfo, now: float) -> None:
        """Takes in what the registry says now."""
        self.info = info
        for pool, capacity in info.models.items():
            seat = self.seats.get(pool)
            if seat is None:
                self.seats[pool], self.rates[pool] = Seat(self.name, capacity), Rates()
            else:
                seat.capacity = capacity
        self._forget()
        self.refresh(now)

    @property
    def up(self) -> bool:
        """Whether its lane carries works."""
        return not self.gone and self.lane is not None and self.lane.ready

    def refresh(self, now: float) -> None:
        """Sets which seats are open. To be called when its lane or its record has changed, and now and then, since a
        refusal lapses by itself: so that whoever looks at a seat need not ask for all that."""
        up = self.up
        for pool, seat in self.seats.items():
            seat.open = up and pool in self.info.models and self._shut_until.get(pool, 0.0) <= now

    def shut(self, pool: str, until: float) -> None:
        """It refused a work of a pool: it is left alone for a moment."""
        self._shut_until[pool] = until
        if (seat := self.seats.get(pool)) is not None:
            seat.open = False

    def add(self, held: Held, blocks: int, compute: int, now: float) -> None:
        """Gives a work a slot and blocks."""
        pool = held.work.pool
        held.executor, held.blocks, held.compute, held.context = self, blocks, compute, 0
        self.works[held.key] = held
        seat = self.seats[pool]
        seat.partial += held.partial
        seat.filled += seat.filled_by(held.prompt_tokens, held.total_tokens)
        held.prefill_s = seat.foresee(held.prompt_tokens, compute)
        seat.take(held.work.adapter, held.patient, blocks, compute, held.prefill_s, now)

    def sent(self, held: Held, now: float) -> None:
        """A work was sent to the engine."""
        self.prefilling[held.key] = held
        held.sent_at = now
        self.rates[held.work.pool].placed(held.key, held.compute, now)

    def correct(self, held: Held, compute: int) -> None:
        """What a work has to compute turns out to be another number of tokens."""
        if compute == held.compute:
            return
        seat = self.seats[held.work.pool]
        seconds = seat.foresee(held.prompt_tokens, compute)
        seat.correct(compute - held.compute, seconds - held.prefill_s)
        held.compute, held.prefill_s = compute, seconds

    def started(self, held: Held, now: float) -> None:
        """The first token of a work came."""
        pool = held.work.pool
        seat, rates = self.seats[pool], self.rates[pool]
        del self.prefilling[held.key]
        rates.first_token(held.key, now)
        seat.prefill_rate = rates.prefill_rate
        # Engines compute prompts in turn, so it began when the one in front of it was done.
        seconds = now - max(held.sent_at, seat.first_token_at)
        held.context = held.prompt_tokens
        before = held.context - 1  # its first token has been counted in
        seat.pace.add(before, before - held.compute, seconds)
        seat.started(held.compute, held.prefill_s, held.context, now)
        held.compute = 0

    def remove(self, held: Held, now: float, *, lost: bool = False) -> None:
        """Takes slot and blocks back. `lost`: nobody knows when its last token came."""
        pool = held.work.pool
        seat, rates = self.seats[pool], self.rates[pool]
        del self.works[held.key]
        self.prefilling.pop(held.key, None)
        seat.partial -= held.partial
        made = held.progress.count - held.sent_tokens
        rates.ended(held.key, now, 0 if lost else made)
        seat.token_s = rates.token_s
        work = held.work
        seat.give_back(work.adapter, held.patient, held.blocks, held.compute, held.prefill_s, held.context, now)
        held.executor, held.blocks, held.compute, held.context, held.growing = None, 0, 0, 0, False
        if self._shut_until.pop(pool, None) is not None:
            self.refresh(now)
        if pool not in self.info.models:
            self._forget()

    def grow(self, held: Held, blocks: int, tokens: int) -> None:
        """Gives a work more blocks, for so many tokens in all."""
        seat = self.seats[held.work.pool]
        seat.reserved += blocks - held.blocks
        seat.partial -= held.partial
        held.blocks, held.given_tokens = blocks, tokens
        seat.partial += held.partial

    def check_integrity(self) -> None:
        """Raises AssertionError when its seats say something else than the works on them."""
        for name, seat in self.seats.items():
            works = [held for held in self.works.values() if held.work.pool == name]
            waiting = [held for held in works if not held.context]
            assert seat.works == len(works)
            assert seat.adapters == Counter(held.work.adapter for held in works)
            assert seat.patient == sum(held.patient for held in works)
            assert seat.reserved == sum(held.blocks for held in works)
            assert seat.partial == sum(held.partial for held in works)
            assert seat.prefilling == len(waiting)
            assert seat.prefill_tokens == sum(held.compute for held in waiting)
            assert abs(seat.prefill_s - sum(held.prefill_s for held in waiting)) < 1e-6 * (1 + seat.prefill_s)
            assert seat.context_tokens == sum(held.context for held in works)
        assert self.works.keys() >= self.prefilling.keys()
        assert all(held.executor is self and held.work.pool in self.seats for held in self.works.values())
        assert self.seats.keys() == self.rates.keys()

    def _forget(self) -> None:
        """Drops the seats of copies that have gone, once nothing is on them."""
        for pool in [p for p, seat in self.seats.items() if p not in self.info.models and not seat.works]:
            del self.seats[pool], self.rates[pool]
