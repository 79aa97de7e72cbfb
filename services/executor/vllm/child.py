"""`python -m services.executor.vllm.child FD`: the process that owns one model's vLLM.

Plain and synchronous: read what the parent says, make one engine step, tell the parent, again. It lives as
long as the socket's other end; should the parent be killed in the middle of a long step, the kernel ends it.
"""

import contextlib
import os
import sys
import time
import traceback
from typing import NoReturn

import msgspec

from services.executor.child.fault import last_line
from services.executor.child.inbox import Inbox, ParentGone, die_with_parent
from services.executor.child.wire import (
    AdapterDone,
    Broken,
    Cancel,
    Check,
    CheckDone,
    LoadAdapter,
    LoadRefused,
    Ready,
    Start,
    UnloadAdapter,
    decode_up,
    encode,
)
from services.executor.engine import Capabilities, Capacity, Exactness
from services.executor.vllm.batch import Batch, Run
from services.executor.vllm.events import BlockNames
from services.executor.vllm.llm import GRAMMARS, Llm, LoadError, Made, Refused
from services.executor.vllm.question import Question
from services.executor.vllm.sampling import choice
from services.executor.vllm.wire import Load

PAUSE_S = 0.001
"""After a step that brought nothing: a grammar is being compiled by another thread."""


def main() -> int:
    """Reads the socket's number from the command line."""
    die_with_parent()
    inbox = Inbox.from_descriptor(int(sys.argv[1]))
    try:
        _serve(inbox)
    except (ParentGone, StopIteration):
        return 0
    except LoadError as error:
        _tell(inbox, LoadRefused(str(error)))
    except Exception as error:
        traceback.print_exc()
        _tell(inbox, Broken(f"vLLM failed: {last_line(error)}"))
    return 1


def _tell(inbox: Inbox, last_words: LoadRefused | Broken) -> None:
    with contextlib.suppress(ParentGone):
        inbox.send(encode(last_words))


def _serve(inbox: Inbox) -> NoReturn:
    load = msgspec.msgpack.decode(next(inbox.receive(wait=True)), type=Load)
    llm = Llm(load)
    try:
        Child(inbox, load, llm).run()
    finally:
        llm.close()


class Child:
    """The loop around one engine. Raises LoadError when the model does not answer."""

    def __init__(self, inbox: Inbox, load: Load, llm: Llm) -> None:
        self._inbox = inbox
        self._load = load
        self._llm = llm
        self._batch = Batch(load.slots)
        self._names = BlockNames(load.name, llm.block_tokens)
        self._question = Question(load.question, load.vocabulary)
        if fault := self._first_answer():
            raise LoadError(f"the self-test failed: {fault}")

    def run(self) -> NoReturn:
        """Until the parent goes (ParentGone), or the engine raises something."""
        self._inbox.send(encode(self._ready()))
        while True:
            idle = self._batch.idle and not self._llm.busy
            for message in self._inbox.receive(wait=idle):
                self._hear(message)
            self._begin()
            made = self._llm.step() if self._llm.busy else []
            for piece in made:
                self._take(piece)
            self._report()
            if not made and self._llm.busy:
                time.sleep(PAUSE_S)

    def _hear(self, data: bytes) -> None:
        match decode_up(data):
            case Start(work_id, work):
                self._batch.submit(work_id, work)
            case Cancel(work_id):
                if (run := self._batch.find(work_id)) is not None:
                    self._drop(run, "CANCELLED", "cancelled")
            case LoadAdapter(adapter, path):
                try:
                    self._llm.load_adapter(adapter, path)
                    self._inbox.send(encode(AdapterDone(adapter, "")))
                except LoadError as error:
                    self._inbox.send(encode(AdapterDone(adapter, str(error))))
            case UnloadAdapter(adapter):
                self._llm.unload_adapter(adapter)
                self._inbox.send(encode(AdapterDone(adapter, "")))
            case Check():
                self._ask()

    def _ask(self) -> None:
        """Begins a self-check, ahead of all works."""
        name = self._question.next_name()
        self._llm.add(name, self._question.prompt, self._question.how, tier=0, salt=name)

    def _first_answer(self) -> str:
        """Asks before there are works; returns what is wrong."""
        fault = "no answer"
        try:
            self._ask()
            while self._llm.busy:
                for made in self._llm.step():
                    fault = self._question.take(made) or ""
        except Exception as error:
            return last_line(error)
        return fault

    def _begin(self) -> None:
        for run in self._batch.overdue(time.time()):
            self._drop(run, "DEADLINE_PASSED", "the deadline passed in the engine")
        for run in self._batch.admit():
            work = run.work
            how = choice(work, self._load.context_tokens, self._load.defaults)
            if how.max_tokens < 1:
                self._batch.end(run, "length")
                continue
            try:
                self._llm.add(
                    str(run.work_id), [*work.prompt, *work.resumed], how, int(work.tier), work.salt, work.adapter
                )
            except Refused as error:
                self._batch.end(run, "REQUEST_INVALID", str(error))

    def _take(self, made: Made) -> None:
        if (fault := self._question.take(made)) is not None:
            self._inbox.send(encode(CheckDone(fault)))
        elif made.name.isdigit() and (run := self._batch.running.get(int(made.name))) is not None:
            self._batch.advance(run, made.tokens, made.log_probs, made.cached_tokens)
            if made.end:
                self._batch.end(run, made.end, "the engine gave the work up" if made.end == "INTERNAL" else "")

    def _drop(self, run: Run, how: str, message: str) -> None:
        """Ends a work wherever it stands."""
        if run.work_id in self._batch.running:
            self._llm.drop(str(run.work_id))
        self._batch.end(run, how, message)

    def _report(self) -> None:
        events = self._names.translate(self._llm.events())
        _, waiting, used = self._llm.state()
        cached = max(0, min(self._names.findable, self._llm.blocks) - used)
        if (report := self._batch.report(events, waiting, used, cached)) is not None:
            self._inbox.send(encode(report))

    def _ready(self) -> Ready:
        load, llm = self._load, self._llm
        return Ready(
            Capacity(load.slots, llm.blocks, llm.block_tokens, Exactness.EXACT, load.max_adapters, load.step_tokens),
            Capabilities(
                exactness=Exactness.EXACT,
                grammars=frozenset(GRAMMARS),
                log_probs=True,
                adapters="batch" if load.max_adapters else "none",
                salted_cache=True,
                cached_tokens=True,
                seeds=True,
                penalties=True,
                ignore_end=True,
                top_k=True,
                priority=True,
            ),
        )


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # threads of torch may keep an interpreter from ending
