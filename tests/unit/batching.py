"""A batcher that a test drives by hand: a manual clock, executors and a KV-cache manager that do what the test says."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from libs.clock import ManualClock
from libs.errors import Cancelled
from libs.kvcache.values import PrefixMatch
from libs.lane.work import FinishReason, Outcome, Tier, Work
from libs.telemetry.metrics import Metrics
from libs.telemetry.tracing import untraced
from services.batcher.book import Book
from services.batcher.dispatch import SHUT_S
from services.batcher.executors import ExecutorInfo
from services.batcher.memory import Ask, Memory, Reply
from services.batcher.observe import Observer
from services.batcher.pool import Pool
from services.batcher.queue import Limits
from services.batcher.rules import PinnedPrefix, TierRules
from services.batcher.scheduling import SchedulingRules
from services.batcher.seat import ModelCapacity, Seat
from services.batcher.stage import Batcher
from tests.unit.lanes import Answers, HandStage, answer, work

YES = Reply(True, (), 100)
GRANTED = Reply(True, None, 100)
"""Blocks, without a look."""
NO = Reply(False, (), 3)


def knows(**blocks: int) -> Reply:
    """A reply that grants what was asked; these executors remember so many blocks of the prompt."""
    return Reply(True, [PrefixMatch(name, count) for name, count in blocks.items() if count], 100)


class HandMemory:
    """A KV-cache manager: answers at once with `reply`, or, when that is "later", when the test says."""

    def __init__(self, reply: "Reply | str | None" = YES) -> None:
        self.reply = reply
        self.asked: list[tuple[Ask, Callable[[Reply | None], None]]] = []
        """Without an answer."""
        self.reserved: dict[int, Ask] = {}
        self.used: dict[int, Ask] = {}
        """By number, what was asked last."""
        self.released: set[int] = set()
        self.found: list[int | None] = []

    def ask(self, ask: Ask, done: Callable[[Reply | None], None]) -> None:
        if (before := self.used.get(ask.reservation)) is not None:
            assert (before.pool, before.executor) == (ask.pool, ask.executor), "asked again, for something else"
            assert ask.reservation not in self.released, "a number was used again after its end"
        self.used[ask.reservation] = ask
        self.asked.append((ask, done))
        if not isinstance(self.reply, str):
            self.answer(self.reply)

    def answer(self, reply: Reply | None = YES, index: int = 0) -> None:
        ask, done = self.asked.pop(index)
        if reply is not None and reply.reserved and ask.executor:
            self.reserved[ask.reservation] = ask
        done(reply)

    def release(self, reservation: int, found_blocks: int | None = None) -> None:
        self.released.add(reservation)
        self.reserved.pop(reservation, None)
        self.found.append(found_blocks)


class Engine:
    """Plays one executor at a constant speed: prompts one after the other, answers side by side, a frame for each
    call of `run`. It stops what it is asked to stop, and holds blocks for what it has as long as it has it."""

    def __init__(self, stage: HandStage, *, prefill_rate: float, token_s: float, block_tokens: int = 4) -> None:
        self._stage = stage
        self._prefill_rate = prefill_rate
        self._token_s = token_s
        self._block_tokens = block_tokens
        self._todo: dict[int, float] = {}
        self._owed: dict[int, float] = {}
        self.most_used = 0
        """Blocks that were in use at once, at most."""

    @property
    def used(self) -> int:
        """Blocks in use."""
        lane = self._stage.lane
        return sum(-(-(len(w.prompt) + lane.made[k]) // self._block_tokens) for k, w in lane.works.items())

    def run(self, seconds: float) -> None:
        """Computes for so long."""
        lane = self._stage.lane
        for key in lane.cancels:
            if key in lane.works:
                lane.end(key, Outcome(error=Cancelled("as asked"), output_tokens=lane.made[key]))
        lane.cancels.clear()
        self._todo = {k: self._todo.get(k, float(len(w.prompt) + lane.made[k])) for k, w in lane.works.items()}
        self._owed = {key: self._owed.get(key, 0.0) for key in lane.works}
        budget = self._prefill_rate * seconds
        for key, todo in list(self._todo.items()):
            spent = min(todo, budget)
            budget -= spent
            self._todo[key] = todo - spent
            if todo and not self._todo[key]:
                self._owed[key] = 1.0
            elif not todo:
                self._owed[key] += seconds / self._token_s
        for key in list(lane.works):
            if key in lane.works and (count := int(self._owed[key])):
                self._owed[key] -= count
                lane.step(key, count=count)
        self.most_used = max(self.most_used, self.used)
        for key, one in list(lane.works.items()):
            if key in lane.works and lane.made[key] >= one.sampling.max_tokens:
                lane.end(key)


class HandRules:
    """Rules that a test changes."""

    def __init__(self, scheduling: SchedulingRules, tiers: dict[Tier, TierRules]) -> None:
        self.of_models = scheduling
        self.tiers = tiers
        self.pinned: list[PinnedPrefix] = []

    def tier(self, tier: Tier) -> TierRules:
        return self.tiers[tier]

    def scheduling(self, model: str) -> SchedulingRules:
        return self.of_models

    def pins(self, pool: str) -> Sequence[PinnedPrefix]:
        return self.pinned


class Rig:
    """A batcher, its executors, and the lane of a router."""

    def __init__(
        self,
        *executors: str,
        slots: int = 2,
        blocks: int = 100,
        reply: "Reply | str | None" = YES,
        adapter_slots: int = 0,
        rules: SchedulingRules | None = None,
        tier: TierRules | None = None,
        memory: Memory | None = None,
        **limits: int,
    ) -> None:
        self.clock = ManualClock()
        self.memory = HandMemory(reply)
        self.capacity = {"m": ModelCapacity(slots, blocks, 4, adapter_slots)}
        self.answers = Answers()
        of_tier = replace(tier or TierRules(), limits=Limits(**limits))
        self.rules = HandRules(rules or SchedulingRules(), dict.fromkeys(Tier, of_tier))
        self.metrics = Metrics("batcher", "batcher-0", "0")
        self.batcher = Batcher(
            "batcher-0", memory or self.memory, self.rules, untraced(), Observer(self.metrics), self.clock, lambda n: 0
        )
        self.stages: dict[str, HandStage] = {}
        self.have(*executors)
        self.lane = self.batcher.open(self.answers)
        self.works: list[Work] = []

    def have(self, *executors: str) -> None:
        """The registry lists these executors now."""
        self.stages = {name: self.stages.get(name) or HandStage() for name in executors}
        self.batcher.set_executors({n: ExecutorInfo(stage, self.capacity) for n, stage in self.stages.items()})

    def __getitem__(self, name: str) -> HandStage:
        return self.stages[name]

    @property
    def book(self) -> Book:
        return self.batcher._book

    @property
    def pool(self) -> Pool:
        return self.book.pools["m"]

    def seat(self, name: str) -> Seat:
        return self.book.executors[name].seats["m"]

    def count(self, name: str, **labels: str) -> float:
        """A counter, as it stands."""
        return self.metrics.registry.get_sample_value(name, labels) or 0.0

    def submit(self, count: int = 1, **changes: object) -> None:
        for _ in range(count):
            self.works.append(one := work(len(self.works), **changes))  # type: ignore[arg-type]
            if one.resumed:
                self.answers.tokens[len(self.works) - 1] = list(one.resumed)
            self.lane.submit(len(self.works) - 1, self.works[-1])

    def running(self, name: str) -> list[int]:
        """Indices of the works that an executor has, in order."""
        return [int(w.request_id.rpartition("-")[2]) for w in self[name].lane.works.values()]

    def error(self, index: int) -> object:
        """With what a work ended."""
        return self.answers.outcomes[index].error

    def tick(self, seconds: float = 0.0) -> None:
        self.clock.advance(seconds)
        self.batcher.tick()

    def run_all(self) -> None:
        """Lets everything that can end, end."""
        for _ in range(2 * len(self.works) + 2):
            for stage in self.stages.values():
                stage.lane.run()
            self.tick(SHUT_S)

    def at_rest(self) -> None:
        """Nothing is held, nothing is reserved, all slots are free."""
        assert self.batcher.in_flight == 0
        assert not self.memory.reserved
        self.book.check_integrity()
        for executor in self.book.executors.values():
            assert not executor.works
            assert not executor.prefilling

    def all_right(self) -> None:
        """Every work ended well, with its whole answer, and nothing is left behind."""
        assert self.answers.tokens == {index: answer(one) for index, one in enumerate(self.works)}
        assert all(outcome.finish is FinishReason.LENGTH for outcome in self.answers.outcomes.values())
        assert len(self.answers.outcomes) == len(self.works)
        self.at_rest()
