"""Headrace's own policy: late binding by what a first token costs, and where.

Asked when something has become free. Of the executors with a slot, with blocks and with little prefill ahead, the
work goes where it costs least: the prefill ahead of it there, its own after what the executor remembers (counted more
than once, because it delays whoever comes behind as well), and the memory that is taken there already. Ties are
broken at random, because every fixed rule sends a burst to one place.

An executor that remembers much more of the prompt and is busy is worth waiting for, when that wait and the rest of the
prompt cost less than the whole prompt elsewhere, and the first token can be expected in time there, or not elsewhere
either. This is looked at again halfway, and the whole wait is bounded for each work (Asked.hold_s). Whoever gives
such works away too easily computes what somebody remembers, is slower by that, has to give away more, and ends at half
of the hits; whoever clings to them lets them come late.

The prefill that an executor is given ahead is bounded in seconds: enough that it never runs dry between two steps,
and not more, because what is placed cannot be overtaken any more by what is more urgent. With prompts of very
different lengths that is what counts most: behind a prompt of 100,000 tokens a short one would wait for seconds.

The weights below were chosen by replaying a trace of conversations on 16 and 64 simulated H100s near saturation
(docs/performance.md, docs/decisions/0010-late-binding.md).
"""

from collections.abc import Sequence

import msgspec

from services.batcher.policies.policy import Asked, Choice, Pick
from services.batcher.scheduling import SchedulingRules
from services.batcher.seat import Affinity, Seat

NOMINAL_RATE = 10_000.0
"""Tokens per second of prefill, while that of no executor is known."""
NOMINAL_STEP = 2048
"""Tokens of a step of an engine that does not say."""
HOST_COST, DISK_COST = 0.25, 0.75
"""Share of computing a token that bringing it back from a lower tier costs (NVIDIA Dynamo credits 0.75 and
0.25 for such blocks)."""
PREFILL_WEIGHT = 3.0
"""A second of prefill costs its own work a second, and others as much: those behind it, and those beside it whose steps
it makes longer."""
MEMORY_S = 1.0
"""Seconds that an executor whose blocks are all taken seems farther away than an empty one: its steps are longer, and
it has to evict more."""
SLOTS_S = 0.2
"""The same for slots."""
ADAPTER_S = {Affinity.RUNS: 0.0, Affinity.LIES: 0.05, Affinity.ROOM: 0.2, Affinity.TAKEN: 0.4}
"""Seconds that a work's adapter costs on an executor."""
SURE = 1.5
"""A first token can be expected in time where it would be in this many times what is foreseen."""
LEAST_HOLD_S = 0.05
LOOK_AGAIN = 0.5
"""Share of the foreseen wait after which a work that is held back is looked at again."""
WORTH = 0.1
"""Share of its prompt that a work must find beyond what it would find elsewhere, to be held back for it."""


class _Best(msgspec.Struct):
    """The seats of least cost."""

    cost: float = float("inf")
    seats: list[Seat] | None = None
    remembered: int = 0


class Promise:
    """See the module. By it the promise of a first token in time is kept, hence the name."""

    name = "promise"
    late = True

    def __init__(self, rules: SchedulingRules) -> None:
        self._ahead_s = rules.prefill_ahead_s
        self._overcommit = rules.overcommit

    def choose(self, asked: Asked, seats: Sequence[Seat], pick: Pick) -> Choice:
        """See policies.policy."""
        rate = asked.prefill_rate or NOMINAL_RATE
        free, busy = _Best(), _Best()
        slots = blocks = prefill = 0
        matches, now, keep, overcommit = asked.matches, asked.now, 1.0 - asked.spare, self._overcommit
        for seat in seats:
            if not seat.open:
                continue
            capacity = seat.capacity
            compute, remembered = float(asked.prompt_tokens), 0
            if (match := matches.get(seat.executor)) is not None:
                compute -= match.device + (1 - HOST_COST) * match.host + (1 - DISK_COST) * match.disk
                remembered = match.tokens
            backlog, whole = seat.backlog_s(now), capacity.blocks * overcommit
            cost = backlog + PREFILL_WEIGHT * compute / rate
            cost += MEMORY_S * seat.reserved / whole + SLOTS_S * seat.works / capacity.slots
            if capacity.adapter_slots:
                cost += ADAPTER_S[seat.affinity(asked.adapter)]
            need = seat.blocks_for(asked.reserve_tokens)
            if seat.works >= capacity.slots * keep:
                slots += 1
            elif seat.reserved + need > (whole * keep if seat.reserved else whole):
                blocks += 1
            elif not self._has_room(seat, backlog):
                prefill += 1
                cost += seat.awaited / rate
                if remembered and cost < busy.cost:
                    busy.cost, busy.seats, busy.remembered = cost, [seat], remembered
            elif free.seats is None or cost < free.cost:
                free.cost, free.seats, free.remembered = cost, [seat], remembered
            elif cost == free.cost:
                free.seats.append(seat)
        if free.seats is None:
            return Choice(None, _lacking(slots, blocks, prefill) if asked.told else "")
        gain = busy.remembered - free.remembered
        if busy.seats and asked.hold_s > 0 and busy.cost < free.cost and gain >= WORTH * asked.prompt_tokens:
            holder = busy.seats[0]
            there_s = holder.backlog_s(now) + (holder.awaited + asked.prompt_tokens - busy.remembered) / rate
            here_s = (asked.prompt_tokens - free.remembered) / rate
            if SURE * there_s <= asked.slack_s or here_s > asked.slack_s:
                return _hold(asked, holder, busy, free, there_s)
        seat = free.seats[pick(len(free.seats))]
        return Choice(seat, _why(asked, seat, free) if asked.told else "")

    def _has_room(self, seat: Seat, backlog_s: float) -> bool:
        """Whether it may be given a prompt: less than a step's tokens are ahead of it, or little time. The first is
        for short prompts: what they take is mostly the way there and back, and by that no speed can be measured."""
        if seat.prefill_tokens <= (seat.capacity.step_tokens or NOMINAL_STEP):
            return True
        return seat.prefill_rate > 0 and backlog_s <= self._ahead_s


def _hold(asked: Asked, seat: Seat, there: _Best, here: _Best, there_s: float) -> Choice:
    return Choice(
        None,
        f"{seat.executor} remembers {there.remembered} of {asked.prompt_tokens} tokens and is worth waiting for: "
        f"costs {there.cost:.2f} s with {seat.backlog_s(asked.now):.2f} s of prefill ahead; elsewhere {here.cost:.2f}",
        hold_for=seat.executor,
        hold_s=min(asked.hold_s, LOOK_AGAIN * there_s + LEAST_HOLD_S),
    )


def _why(asked: Asked, seat: Seat, best: _Best) -> str:
    assert best.seats is not None
    remembered = f", {best.remembered} of {asked.prompt_tokens} tokens remembered" if best.remembered else ""
    adapter = f", the adapter {_WORDS[seat.affinity(asked.adapter)]}" if seat.capacity.adapter_slots else ""
    among = f", one of {len(best.seats)} equals" if len(best.seats) > 1 else ""
    return (
        f"costs least, {best.cost:.3f} s{remembered}{adapter}{among}: {seat.works} of {seat.capacity.slots} slots, "
        f"{seat.reserved} of {seat.capacity.blocks} blocks, {seat.backlog_s(asked.now):.2f} s of prefill ahead"
    )


_WORDS = {
    Affinity.RUNS: "needs no change",
    Affinity.LIES: "is in memory",
    Affinity.ROOM: "has room",
    Affinity.TAKEN: "takes another one's place",
}


def _lacking(slots: int, blocks: int, prefill: int) -> str:
    """Why no seat can have a work now."""
    total = slots + blocks + prefill
    if not total:
        return "no executor of the pool is ready"
    counts = {"all slots taken": slots, "too few free blocks": blocks, "enough prefill ahead": prefill}
    return f"of {total} executors " + ", ".join(f"{count} have {what}" for what, count in counts.items() if count)
