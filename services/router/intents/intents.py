"""Intents for the event loop, which does not wait for them: a cache, and one thread with a short queue."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Literal, TypeAlias

import structlog

from services.router.intents.model import IntentModel
from services.router.route import Catalogue

log = structlog.get_logger()

MOST_CACHED = 4_096
MOST_WAITING = 4
"""Texts in the thread and before it: as many as can be told within MOST_S, at 12 ms each. A longer queue would be of
texts that are told too late, all of them."""
MOST_S = 0.05
"""A request waits for its intent this long at most, in seconds."""

Result: TypeAlias = Literal["told", "none", "cached", "full", "late", "untrained", "failed"]
"""What became of a question: "told" an intent, "none" for this text, either from the cache; the others are unknown."""


class Intents:
    """See context.Intents. For one event loop; what is trained lies in one file.

    Bounded: a text that finds MOST_WAITING others in front of it, or waits for too long, has no intent. The cache
    holds digests of texts, not texts.

    Args:
        path: What `headrace intents train` wrote, or will write.
        count: Is told what became of each question.
        most_s: After so many seconds a request goes on without its intent.
    """

    def __init__(
        self, path: Path, count: Callable[[Result], None] = lambda result: None, most_s: float = MOST_S
    ) -> None:
        self._model = IntentModel(path)
        self._count = count
        self._most_s = most_s
        self._thread = ThreadPoolExecutor(1, "intents")
        self._known: OrderedDict[bytes, str] = OrderedDict()
        self._version = 0
        self._waiting = 0
        self._wanted = False
        self._looking = False

    def want(self, known: Catalogue) -> None:
        """Follows the catalogue: loads when a route has rules on intents, gives the memory back when none has."""
        wanted = any(rule.intents for route in known.routes.values() for rule in route.rules)
        if wanted == self._wanted:
            return
        self._wanted = wanted
        if wanted:
            self.look()
        else:
            self._thread.submit(self._model.drop)
            self._known.clear()

    def look(self) -> None:
        """Sees whether the file has changed, in the thread. To be called once a second."""
        if self._looking or not self._wanted:
            return
        self._looking = True
        looking = asyncio.get_running_loop().run_in_executor(self._thread, self._model.refresh)
        looking.add_done_callback(self._looked)

    def ask(self, text: str, done: Callable[[str], None]) -> None:
        """Calls `done` once with the text's intent: at once if it is known, or cannot be told; else within `most_s`."""
        key = blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()
        if (intent := self._known.get(key)) is not None:
            self._known.move_to_end(key)
            self._count("cached")
            done(intent)
        elif self._waiting >= MOST_WAITING:
            self._count("full")
            done("")
        else:
            self._waiting += 1
            loop = asyncio.get_running_loop()
            question = _Question(done, self._count)
            timer = loop.call_later(self._most_s, question.answer, "", "late")
            telling = loop.run_in_executor(self._thread, self._tell, text, question)
            telling.add_done_callback(lambda told: self._told(told, key, question, timer))

    async def of(self, text: str) -> str:
        """The same, for who can wait."""
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ask(text, lambda intent: None if answer.done() else answer.set_result(intent))
        return await answer

    async def close(self) -> None:
        """Ends the thread behind the text that it has; those that wait have no intent."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _tell(self, text: str, question: "_Question") -> tuple[int, str | None]:
        """In the thread: the version that told, and the intent; None when nothing is trained, or nobody waits."""
        if not self._model.version:
            self._model.refresh()
        told = self._model.trained and not question.answered
        return self._model.version, self._model.of(text)[0] if told else None

    def _told(
        self,
        told: asyncio.Future[tuple[int, str | None]],
        key: bytes,
        question: "_Question",
        timer: asyncio.TimerHandle,
    ) -> None:
        self._waiting -= 1
        timer.cancel()
        if told.cancelled():
            question.answer("", "failed")
        elif (error := told.exception()) is not None:  # whatever it is, the request goes on without an intent
            log.error("no intent", exc_info=error)
            question.answer("", "failed")
        else:
            version, intent = told.result()
            self._follow(version)
            if intent is not None:
                self._known[key] = intent
                if len(self._known) > MOST_CACHED:
                    self._known.popitem(last=False)
            question.answer(intent or "", "untrained" if intent is None else "told" if intent else "none")

    def _looked(self, looked: asyncio.Future[int]) -> None:
        self._looking = False
        if looked.cancelled():
            return
        if (error := looked.exception()) is not None:
            log.error("intents cannot be told", exc_info=error)
        else:
            self._follow(looked.result())

    def _follow(self, version: int) -> None:
        if version != self._version:
            self._version = version
            self._known.clear()


class _Question:
    """One that is answered once, by whoever comes first."""

    __slots__ = ("_count", "_done")

    def __init__(self, done: Callable[[str], None], count: Callable[[Result], None]) -> None:
        self._done: Callable[[str], None] | None = done
        self._count = count

    @property
    def answered(self) -> bool:
        """May be asked by any thread."""
        return self._done is None

    def answer(self, intent: str, result: Result) -> None:
        done, self._done = self._done, None
        if done is not None:
            self._count(result)
            done(intent)
