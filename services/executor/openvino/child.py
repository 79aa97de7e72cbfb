"""`python -m services.executor.openvino.child FD`: the process that owns one model's engine.

Plain and synchronous: read what the parent says, make one engine step, tell the parent, again. It lives as
long as the socket's other end; should the parent be killed in the middle of a long step, the kernel ends it.

Whatever needs the engine without works (an adapter's turn, an adapter that is loaded, a cache that has to be
emptied) pauses them: they are cancelled in the engine and come back behind their tokens.
"""

import os
import sys
import time
from collections import deque
from pathlib import Path

from libs.models.adapter import AdapterInvalid
from libs.models.adapter_files import read_adapter
from services.executor.child.fault import last_line
from services.executor.child.inbox import Inbox, ParentGone, die_with_parent
from services.executor.child.wire import (
    AdapterDone,
    Broken,
    Cancel,
    Check,
    CheckDone,
    LoadRefused,
    Ready,
    UnloadAdapter,
    encode,
)
from services.executor.engine import Capabilities, Capacity, Exactness
from services.executor.openvino import selftest
from services.executor.openvino.batch import Batch, Turn
from services.executor.openvino.pipeline import LoadError, Pipeline
from services.executor.openvino.run import Run
from services.executor.openvino.wire import Load, LoadLora, Submit, decode_up

MOST_FAULTS = 5
"""Faults of the engine, not separated by a healthy time, after which the child gives up."""

CAPABILITIES = Capabilities(
    Exactness.MODELLED,
    grammars=frozenset({"json_schema", "regex", "ebnf"}),
    log_probs=True,
    adapters="swap",
    salted_cache=True,
    cached_tokens=True,
    seeds=True,
    penalties=True,
    ignore_end=True,
    top_k=True,
)


def main() -> int:
    """Reads the socket's number from the command line."""
    die_with_parent()
    inbox = Inbox.from_descriptor(int(sys.argv[1]))
    try:
        settings = decode_up(next(inbox.receive(wait=True)))
        assert isinstance(settings, Load)
        os.nice(settings.niceness)
        try:
            pipeline = Pipeline(settings)
            block_tokens = selftest.measure(pipeline, settings.vocabulary)
        except LoadError as error:
            inbox.send(encode(LoadRefused(str(error))))
            return 1
        capacity = Capacity(settings.slots, settings.blocks, block_tokens, Exactness.MODELLED, 1, settings.step_tokens)
        inbox.send(encode(Ready(capacity, CAPABILITIES)))
        batch = Batch(settings.model, settings.slots, settings.blocks, block_tokens, settings.quantum_s)
        batch.claims.take(selftest.prompt(settings.vocabulary), "self-test")
        return Child(inbox, pipeline, batch, settings).run()
    except (ParentGone, StopIteration):
        return 0


class Child:
    """The loop around one engine."""

    def __init__(self, inbox: Inbox, pipeline: Pipeline, batch: Batch, settings: Load) -> None:
        self._inbox = inbox
        self._pipeline = pipeline
        self._batch = batch
        self._settings = settings
        self._chores: deque[LoadLora | UnloadAdapter] = deque()
        self._checks = 0
        self._question: selftest.Question | None = None

    def run(self) -> int:
        """Until the parent goes (ParentGone), or the engine fails too often."""
        batch, pipeline = self._batch, self._pipeline
        while True:
            idle = not (batch.running or batch.waiting or pipeline.busy or self._chores or self._checks)
            for message in self._inbox.receive(wait=idle):
                self._hear(message)
            try:
                self._turn()
            except EngineFault as fault:
                print(f"the engine failed and is built anew: {fault}", file=sys.stderr, flush=True)
                if batch.faults >= MOST_FAULTS:
                    self._inbox.send(encode(Broken(f"the engine failed {batch.faults + 1} times: {fault}")))
                    return 1
                try:
                    self._rebuild()
                except LoadError as error:
                    self._inbox.send(encode(Broken(f"the engine cannot be built anew: {error}")))
                    return 1
                batch.recover()
            except LoadError as error:
                self._inbox.send(encode(Broken(f"the engine cannot be built anew: {error}")))
                return 1
            if (report := batch.report()) is not None:
                self._inbox.send(encode(report))

    def _hear(self, data: bytes) -> None:
        message = decode_up(data)
        if isinstance(message, Submit):
            self._batch.submit(message, time.monotonic())
            if not self._pipeline.holds(message.adapter):
                run = self._batch.find(message.work_id)
                assert run is not None
                self._batch.end(run, "STAGE_UNAVAILABLE", "its adapter is not loaded here")
        elif isinstance(message, Cancel):
            if (run := self._batch.find(message.work_id)) is not None:
                self._drop(run, "CANCELLED", "cancelled")
        elif isinstance(message, LoadLora | UnloadAdapter):
            self._chores.append(message)
        elif isinstance(message, Check):
            self._checks += 1

    def _turn(self) -> None:
        """One time around: what ends, what changes, what enters, one step, what it brought."""
        batch, pipeline, now = self._batch, self._pipeline, time.monotonic()
        for run in batch.overdue(time.time()):
            self._drop(run, "DEADLINE_PASSED", "the deadline passed in the engine")
        try:
            if self._chores:
                if batch.may_pause():
                    self._do_chores(now)
            elif (turn := batch.turn(now)) is not None:
                self._change(turn, now)
            for run in batch.admit(now):
                self._enter(run)
            if self._checks and self._question is None:
                tokens = selftest.prompt(self._settings.vocabulary)
                marked = pipeline.salts.mark(tokens, f"self-check {pipeline.active}")
                self._question = selftest.Question(pipeline, marked, self._settings.vocabulary)
            if not pipeline.busy:
                return
            pipeline.step()
        except RuntimeError as error:
            raise EngineFault(last_line(error)) from error
        for run in list(batch.running.values()):
            self._read(run)
        if self._question is not None and self._question.answered():
            self._inbox.send(encode(CheckDone(self._question.fault)) * self._checks)
            self._checks, self._question = 0, None

    def _enter(self, run: Run) -> None:
        try:
            self._pipeline.add(run)
        except RuntimeError as error:
            print(f"the engine refuses a work: {error}", file=sys.stderr, flush=True)
            self._batch.end(run, "INTERNAL", "the engine refuses this request")

    def _read(self, run: Run) -> None:
        batch, pipeline = self._batch, self._pipeline
        made = pipeline.read(run.work.work_id)
        agrees = not made.tokens or batch.advance(run, made.tokens, made.log_probs)
        if not agrees or (made.end and run.behind):
            if not made.end:
                pipeline.cancel(run.work.work_id)
            batch.end(run, "NOT_SUPPORTED", "an interrupted answer with a grammar came out different")
        elif made.end:
            batch.end(run, made.end, "the engine gave the work up" if made.end == "INTERNAL" else "")

    def _change(self, turn: Turn, now: float) -> None:
        self._pause(now)
        start = time.perf_counter()
        if turn.flush:
            self._rebuild(turn.adapter)
        else:
            self._pipeline.activate(turn.adapter)
        self._batch.begin(turn, now, time.perf_counter() - start)

    def _do_chores(self, now: float) -> None:
        """Loads and unloads adapters."""
        self._pause(now)
        turns = self._batch.turns
        while self._chores:
            chore, fault = self._chores.popleft(), ""
            if isinstance(chore, UnloadAdapter):
                if chore.adapter == turns.active:
                    turns.begin("", now, {})
                    self._pipeline.activate("")
                self._pipeline.forget(chore.adapter)
            elif not self._pipeline.holds(chore.adapter):
                fault = self._load(chore)
            self._inbox.send(encode(AdapterDone(chore.adapter, fault)))
        self._pipeline.activate(turns.active)

    def _load(self, chore: LoadLora) -> str:
        """Returns what is wrong. An adapter that makes the engine fail costs a rebuild here, and nobody later."""
        pipeline, vocabulary = self._pipeline, self._settings.vocabulary
        try:
            adapter = read_adapter(Path(chore.path).expanduser(), self._settings.places, chore.shares_prefix)
        except AdapterInvalid as error:
            return str(error)
        further = pipeline.register(chore.adapter, adapter)
        try:
            if further:
                self._rebuild()
                self._batch.forget()
                selftest.prove_places(pipeline, vocabulary)
            pipeline.activate(chore.adapter)
            selftest.ask(pipeline, pipeline.salts.mark(selftest.prompt(vocabulary), chore.adapter), vocabulary)
        except (RuntimeError, LoadError) as error:
            pipeline.forget(chore.adapter)
            self._rebuild()
            self._batch.forget()
            return f"the model does not answer with it: {last_line(error)}"
        return ""

    def _pause(self, now: float) -> None:
        """Empties the engine of works. Raises RuntimeError."""
        for run in self._batch.pause(now):
            self._pipeline.cancel(run.work.work_id)
        if self._question is not None:
            self._question.cancel()
            self._question = None
        self._pipeline.settle()

    def _rebuild(self, adapter: str | None = None) -> None:
        """Raises LoadError."""
        self._question = None
        self._pipeline.rebuild(self._batch.turns.active if adapter is None else adapter)

    def _drop(self, run: Run, how: str, message: str) -> None:
        """Ends a work wherever it stands."""
        if run.work.work_id in self._batch.running:
            self._pipeline.cancel(run.work.work_id)
        self._batch.end(run, how, message)


class EngineFault(Exception):
    """The engine raised while it computed: it is poisoned."""


if __name__ == "__main__":
    sys.exit(main())
