"""`python -m services.executor.openvino.child FD`: the process that owns one model's engine.

Plain and synchronous: read what the parent says, make one engine step, tell the parent, again. It lives as
long as the socket's other end; should the parent be killed in the middle of a long step, the kernel ends it.
"""

import os
import sys
import time

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
    UnloadAdapter,
    encode,
)
from services.executor.engine import Capabilities, Capacity, Exactness
from services.executor.openvino.batch import Batch, Run
from services.executor.openvino.pipeline import LoadError, Pipeline, last_line
from services.executor.openvino.wire import Load, Submit, decode_up

MOST_FAULTS = 5
"""Faults of the engine, not separated by a healthy time, after which the child gives up."""

CAPABILITIES = Capabilities(
    Exactness.MODELLED,
    grammars=frozenset({"json_schema", "regex", "ebnf"}),
    log_probs=True,
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
        except LoadError as error:
            inbox.send(encode(LoadRefused(str(error))))
            return 1
        capacity = Capacity(settings.slots, settings.blocks, pipeline.block_tokens, Exactness.MODELLED)
        inbox.send(encode(Ready(capacity, CAPABILITIES)))
        batch = Batch(settings.model, settings.slots, settings.blocks, pipeline.block_tokens)
        return Child(inbox, pipeline, batch).run()
    except (ParentGone, StopIteration):
        return 0


class Child:
    """The loop around one engine."""

    def __init__(self, inbox: Inbox, pipeline: Pipeline, batch: Batch) -> None:
        self._inbox = inbox
        self._pipeline = pipeline
        self._batch = batch

    def run(self) -> int:
        """Until the parent goes (ParentGone), or the engine fails too often."""
        batch, pipeline = self._batch, self._pipeline
        while True:
            idle = not (batch.running or batch.waiting or pipeline.busy)
            for message in self._inbox.receive(wait=idle):
                self._hear(message)
            try:
                self._step()
            except EngineFault as fault:
                print(f"the engine failed and is built anew: {fault}", file=sys.stderr, flush=True)
                if batch.faults >= MOST_FAULTS:
                    self._inbox.send(encode(Broken(f"the engine failed {batch.faults + 1} times: {fault}")))
                    return 1
                try:
                    pipeline.rebuild()
                except LoadError as error:
                    self._inbox.send(encode(Broken(f"the engine cannot be built anew: {error}")))
                    return 1
                batch.recover()
            if (report := batch.report()) is not None:
                self._inbox.send(encode(report))

    def _hear(self, data: bytes) -> None:
        message = decode_up(data)
        if isinstance(message, Submit):
            self._batch.submit(message)
        elif isinstance(message, Cancel):
            if (run := self._batch.find(message.work_id)) is not None:
                self._drop(run, "CANCELLED", "cancelled")
        elif isinstance(message, LoadAdapter | UnloadAdapter):
            self._inbox.send(encode(AdapterDone(message.adapter, "this engine takes no adapters")))
        elif isinstance(message, Check):
            self._inbox.send(encode(CheckDone("")))

    def _step(self) -> None:
        batch, pipeline = self._batch, self._pipeline
        for run in batch.overdue(time.time()):
            self._drop(run, "DEADLINE_PASSED", "the deadline passed in the engine")
        for run in batch.admit():
            try:
                pipeline.add(run.work, run.tokens, run.remaining)
            except RuntimeError as error:
                print(f"the engine refuses a work: {error}", file=sys.stderr, flush=True)
                batch.end(run, "INTERNAL", "the engine refuses this request")
        if not pipeline.busy:
            return
        try:
            pipeline.step()
        except RuntimeError as error:
            raise EngineFault(last_line(error)) from error
        for run in list(batch.running.values()):
            made = pipeline.read(run.work.work_id)
            agrees = not made.tokens or batch.advance(run, made.tokens, made.log_probs)
            if not agrees or (made.end and run.behind):
                if not made.end:
                    pipeline.cancel(run.work.work_id)
                batch.end(run, "NOT_SUPPORTED", "an interrupted answer with a grammar came out different")
            elif made.end:
                batch.end(run, made.end, "the engine gave the work up" if made.end == "INTERNAL" else "")

    def _drop(self, run: Run, how: str, message: str) -> None:
        """Ends a work wherever it stands."""
        if run.work.work_id in self._batch.running:
            self._pipeline.cancel(run.work.work_id)
        self._batch.end(run, how, message)


class EngineFault(Exception):
    """`step` raised: the engine is poisoned."""


if __name__ == "__main__":
    sys.exit(main())
