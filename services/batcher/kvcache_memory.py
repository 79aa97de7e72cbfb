"""The KV-cache manager over gRPC, as the batcher's Memory.

A work's blocks come out of an allowance (allowance.py), at once if they are there. So a work that runs alone waits for
the manager once, to hear who remembers its prefix, and not a second time; and many works cost it few messages.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import count

from libs.kvcache.consult import BUDGET_S, Consultation
from libs.kvcache.values import Answer, Question
from libs.streams.client import Dialer
from libs.streams.standing import Endpoint
from libs.telemetry.span import is_unsampled
from services.batcher.allowance import Allowance
from services.batcher.memory import Ask, Reply

SETTLE_S = 1.0
"""What was not used for so long goes back to the manager."""
CALM_PERIODS = 4
"""Of SETTLE_S, for which nothing is held in advance where others lacked blocks."""
COMPARE_S = 0.1
"""Of each executor and pool, one work in such a time is compared with what the manager would have promised it. Its
judgement needs 16 of them, so it is made within two seconds; and it costs the same however many works there are."""
FIRST_NUMBER = 1 << 62
"""Of the reservations that are allowances: the batcher's own questions are numbered from 1 on."""

Done = Callable[[Reply | None], None]


class _Account:
    """One executor's copy of one pool."""

    def __init__(self, executor: str, pool: str, number: int) -> None:
        self.executor = executor
        self.pool = pool
        self.number = number
        self.allowance = Allowance()
        self.waiting: dict[int, tuple[Ask, Done]] = {}
        """Works that wait for more blocks, in order; bounded by the batcher's works."""
        self.compared_at = 0.0


class KvCacheMemory:
    """Asks the KV-cache manager. Make it on a running event loop.

    Bounded: accounts by the executors and pools on which works run, or ran in the last second.

    Args:
        instance: This batcher's instance id.
        endpoint: Where the manager is.
    """

    def __init__(self, instance: str, dialer: Dialer, endpoint: Endpoint, budget_s: float = BUDGET_S) -> None:
        self.together: Callable[[], AbstractContextManager[None]] = nullcontext
        """Is entered for answers that came together; see Batcher."""
        self._loop = asyncio.get_running_loop()
        self._numbers: Iterator[int] = count(FIRST_NUMBER)
        self._accounts: dict[tuple[str, str], _Account] = {}
        self._holders: dict[int, _Account] = {}
        """By work: where it has blocks, or waits for them."""
        self._settling: asyncio.TimerHandle | None = None
        self._consultation = Consultation(
            instance, dialer, endpoint, budget_s,
            recalled=self._recalled, lost=self._lost, together=lambda: self.together(),
        )  # fmt: skip

    @property
    def up(self) -> bool:
        """Whether the manager is there."""
        return self._consultation.up

    async def close(self) -> None:
        """Ends the conversation: the manager keeps what works have for its grace period, and nothing else."""
        if self._settling is not None:
            self._settling.cancel()
        for account in self._accounts.values():
            self._shrink(account, account.allowance.recall(CALM_PERIODS))
        await asyncio.sleep(0)  # at the end of this turn of the loop that is said
        await self._consultation.close()

    def ask(self, ask: Ask, done: Done) -> None:
        """See services.batcher.memory.Memory. A work that finds too few blocks in the allowance waits twice the
        consultation's budget at most: for the answer to what was asked already, and for its own."""
        consultation = self._consultation
        if not consultation.up:
            done(None)
            return
        if not ask.blocks:
            question = Question(ask.reservation, ask.pool, ask.block_hashes, ask.executor, 0, ask.traceparent)
            consultation.ask(question, lambda answer: done(_reply(answer)))
            return
        account = self._accounts.get((ask.executor, ask.pool))
        if account is None:
            account = _Account(ask.executor, ask.pool, next(self._numbers))
            self._accounts[ask.executor, ask.pool] = account
        self._holders[ask.reservation] = account
        if not account.waiting and account.allowance.take(ask.reservation, ask.blocks):
            self._given(account, ask, done)
        else:
            account.waiting[ask.reservation] = ask, done
            self._want(account)
        if self._settling is None:
            self._settling = self._loop.call_later(SETTLE_S, self._settle)

    def release(self, reservation: int, found_blocks: int | None = None) -> None:
        """See services.batcher.memory.Memory."""
        account = self._holders.pop(reservation, None)
        if account is not None:
            account.waiting.pop(reservation, None)
            if account.allowance.give_back(reservation) and not self.up:
                self._consultation.shrink(account.number, account.allowance.lost())
        self._consultation.release(reservation, found_blocks)

    def _given(self, account: _Account, ask: Ask, done: Done) -> None:
        """A work has its blocks. Now and then, and where it is traced, the manager hears of it, with its prefix, for
        what the engine finds to be compared with what the index says."""
        now = self._loop.time()
        traced = bool(ask.traceparent) and not is_unsampled(ask.traceparent)
        if traced or (ask.block_hashes and now >= account.compared_at + COMPARE_S):
            account.compared_at = now
            question = Question(ask.reservation, ask.pool, ask.block_hashes, ask.executor, 0, ask.traceparent)
            self._consultation.ask(question, _ignore)
        done(Reply(True, None, account.allowance.free))

    def _want(self, account: _Account) -> None:
        """Asks for what the waiting works lack, unless something was asked for already."""
        allowance = account.allowance
        if allowance.asked is None and account.waiting:
            lacking = sum(allowance.lacking(number, ask.blocks) for number, (ask, _) in account.waiting.items())
            size = allowance.ask(lacking)
            question = Question(account.number, account.pool, (), account.executor, size)
            self._consultation.ask(question, partial(self._answered, account))

    def _answered(self, account: _Account, answer: Answer | None) -> None:
        allowance = account.allowance
        if answer is None:
            allowance.unanswered()
            for number in list(account.waiting):
                self._answer(account, number, None)
            return
        left = allowance.answered(answer.reserved, answer.free_blocks)
        waits = False
        for number, (ask, done) in list(account.waiting.items()):
            if number not in account.waiting:
                continue  # what was done about one before it has ended it
            lacking = allowance.lacking(number, ask.blocks)
            if not answer.reserved:
                if lacking > left:
                    self._answer(account, number, Reply(False, None, answer.free_blocks))
                    continue
                left -= lacking
            if not waits and allowance.take(number, ask.blocks):
                del account.waiting[number]
                self._given(account, ask, done)
            else:
                waits = True  # those behind it do not take what it is still to get
        self._want(account)

    def _answer(self, account: _Account, number: int, reply: Reply | None) -> None:
        """The answer to a work that gets no blocks, or no more than it has."""
        waiting = account.waiting.pop(number, None)
        if waiting is not None:
            if not account.allowance.holds(number):
                del self._holders[number]
            waiting[1](reply)

    def _settle(self) -> None:
        """Gives back what was not used, and forgets where nothing is left."""
        self._settling = None
        for key, account in list(self._accounts.items()):
            self._shrink(account, account.allowance.settle())
            if not account.allowance.used and not account.waiting:
                del self._accounts[key]
        if self._accounts:
            self._settling = self._loop.call_later(SETTLE_S, self._settle)

    def _recalled(self, executor: str, pool: str) -> None:
        """Others lack blocks there."""
        if (account := self._accounts.get((executor, pool))) is not None:
            self._shrink(account, account.allowance.recall(CALM_PERIODS))

    def _lost(self) -> None:
        """The stream broke. What works hold is claimed on the next one, and nothing else."""
        for account in self._accounts.values():
            self._shrink(account, account.allowance.lost())

    def _shrink(self, account: _Account, size: int | None) -> None:
        if size is not None:
            self._consultation.shrink(account.number, size)


def _reply(answer: Answer | None) -> Reply | None:
    return None if answer is None else Reply(answer.reserved, answer.matches, answer.free_blocks)


def _ignore(answer: Answer | None) -> None:
    """The answer to a question that is asked for the manager's sake."""
