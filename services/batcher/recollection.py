"""What executors remember of prompts: taken in when the manager says it, or when a work has computed it."""

from collections.abc import Iterable, Mapping, Sequence

from libs.kvcache.values import PrefixMatch
from libs.telemetry import names
from services.batcher.book import Book
from services.batcher.executors import Executor
from services.batcher.flock import shared
from services.batcher.held import Held, Place
from services.batcher.policies.policy import Match
from services.batcher.pool import Pool
from services.batcher.remembered import matches_of, more


class Recollection:
    """Learns for one batcher: for the work itself, for those held back for it, and for what is usual in its pool."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def foresee(self, pool: Pool, held: Held) -> None:
        """A work has come: what executors likely remember of its prompt, before the manager is asked."""
        held.matches = pool.approximate_index.matches(held.work.block_hashes, held.work.block_tokens, held.arrived)

    def learn(self, pool: Pool, held: Held, executor: Executor, matches: Sequence[PrefixMatch]) -> None:
        """Takes in what executors remember of a prompt."""
        held.matches = more(self.heard(pool, held, matches), held.told)
        self.found(pool, held, executor)

    def heard(self, pool: Pool, held: Held, matches: Sequence[PrefixMatch]) -> Mapping[str, Match]:
        """What the manager says of a prompt, in tokens."""
        hashes, block_tokens = held.work.block_hashes, held.work.block_tokens
        found = matches_of(matches, block_tokens)
        if hashes and not held.once:
            now = self._book.clock.monotonic()
            expected = pool.approximate_index.matches(hashes, block_tokens, now)
            pool.worth.heard(len(held.work.prompt), found, expected, pool.executors)
            pool.approximate_index.heard(hashes, matches, now)
        return found

    def found(self, pool: Pool, held: Held, executor: Executor) -> None:
        """It is known what executors remember of the prompt of a work that was placed."""
        work = held.work
        executor.correct(held, held.missing(executor.name))
        if held.once:
            return
        pool.found(held.prompt_tokens, held.compute)
        if work.block_tokens:
            match = held.matches.get(executor.name)
            blocks = match.tokens // work.block_tokens if match is not None else 0
            if held.dispatch_span is not None:
                held.dispatch_span.set(names.BLOCKS_MATCHED, blocks)
            if not work.chat:
                pool.hot.found(work, blocks)
            self.computed(held, executor, pool.corrected(held.key, blocks), blocks)

    def computed(self, leader: Held, executor: Executor, followers: Iterable[int], blocks: int) -> None:
        """So many leading blocks of a leader's prompt are there: those that were held back for it know where, before
        the manager does."""
        for key in followers:
            held = self._book.held.get(key)
            if held is not None and held.place is Place.WAITING:
                common = shared(held.work.block_hashes, leader.work.block_hashes)
                tokens = min(common, blocks) * held.work.block_tokens
                held.told = {**held.told, executor.name: Match(tokens)}
                held.matches = more(held.matches, held.told)
