"""The KV-cache manager in the same process, as the batcher's Memory and as the executors report to it. Pure."""

from collections.abc import Callable, Sequence

from libs.clock import Clock
from libs.kvcache.values import BlockEvent, CacheInfo, CacheState, Exactness, Question
from services.batcher.memory import Ask, Reply
from services.batcher.scheduling import Reserve, SchedulingRules
from services.kvcache.index import PrefixIndex
from services.kvcache.ledger import Ledger
from services.kvcache.memory import DEFAULT, Memory
from services.kvcache.reports import Reports
from services.simulator.loop import Event

BATCHER = "batcher"


class NearMemory:
    """See services.batcher.memory.Memory.

    Args:
        scheduling: The rules that say whether memory may be overcommitted.
        later: Calls something when an answer is to arrive; by default at once.
    """

    def __init__(
        self, clock: Clock, scheduling: SchedulingRules, later: Callable[[Event], None] = lambda event: event()
    ) -> None:
        self.memory = Memory(PrefixIndex(), Ledger(), Reports())
        if scheduling.reserve is Reserve.ESTIMATE:  # as services.kvcache.main.overcommits
            self.memory.set_overcommits({DEFAULT: scheduling.overcommit})
        self._clock = clock
        self._later = later
        self.memory.batcher_connected(BATCHER, self, ())

    def ask(self, ask: Ask, done: Callable[[Reply | None], None]) -> None:
        question = Question(ask.reservation, ask.pool, ask.block_hashes, ask.executor, ask.blocks, ask.traceparent)
        answer = self.memory.ask(BATCHER, question)
        reply = Reply(answer.reserved, answer.matches, answer.free_blocks)
        self._later(lambda: done(reply))

    def release(self, reservation: int, found_blocks: int | None = None) -> None:
        self.memory.release(BATCHER, reservation, found_blocks, self._clock.monotonic())


class Report:
    """What one executor reports of its cache."""

    def __init__(self, near: NearMemory, executor: str, pool: str, blocks: int, block_tokens: int) -> None:
        self._memory = near.memory
        self._executor = executor
        self._pool = pool
        self._sequence = 1
        self._memory.executor_connected(executor, self)
        info = CacheInfo(pool, blocks, block_tokens, Exactness.EXACT)
        self._memory.snapshot(executor, self._sequence, [CacheState(info, ())])

    def events(self, events: Sequence[BlockEvent]) -> None:
        """Changes, in order."""
        self._sequence += 1
        self._memory.events(self._executor, self._sequence, [(self._pool, event) for event in events])
