"""`python -m services.executor.openvino.probe FD MODEL`: tries grammars out on a model that matters to nobody.

An invalid grammar raises out of the engine's step and poisons it, and one that compiles slowly stops every
work. So each new grammar is first given to an engine of the same vocabulary whose model is one layer of zeros,
in a process that may be killed.
"""

import sys
from pathlib import Path

import numpy as np
import openvino
import openvino_genai as genai

from services.executor.child.fault import last_line
from services.executor.child.inbox import Inbox, ParentGone, die_with_parent
from services.executor.child.wire import encode
from services.executor.openvino.pipeline import grammar_config
from services.executor.openvino.wire import Verdict, decode_try


class Probe:
    """A throw-away engine. Building one takes a tenth of a second."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._tokenizer = genai.Tokenizer(folder.parent)
        self._engine = self._build()
        self._count = 0

    def fault(self, form: str, text: str) -> str:
        """What is wrong with a grammar; empty when the engine can follow it."""
        config = genai.GenerationConfig()
        config.apply_chat_template = False
        config.max_new_tokens = 1
        config.ignore_eos = True
        config.structured_output_config = grammar_config(form, text)
        self._count += 1
        try:
            prompt = openvino.Tensor(np.zeros((1, 1), np.int64))
            handle = self._engine.add_request(self._count, prompt, config)
            while self._engine.has_non_finished_requests():
                self._engine.step()
            del handle
        except RuntimeError as error:
            del self._engine
            self._engine = self._build()
            return explain(error)
        return ""

    def _build(self) -> genai.ContinuousBatchingPipeline:
        scheduler = genai.SchedulerConfig()
        scheduler.num_kv_blocks = 4
        return genai.ContinuousBatchingPipeline(self._folder, self._tokenizer, scheduler, "CPU")


def explain(error: Exception) -> str:
    """The part of xgrammar's message that speaks of the grammar."""
    return last_line(error).split(" The JSON string is:")[0].strip() or "it cannot be compiled"


def main() -> int:
    """Says that it is ready, then answers until the parent goes."""
    die_with_parent()
    inbox = Inbox.from_descriptor(int(sys.argv[1]))
    probe = Probe(Path(sys.argv[2]))
    try:
        inbox.send(encode(Verdict("")))
        while True:
            for data in inbox.receive(wait=True):
                question = decode_try(data)
                inbox.send(encode(Verdict(probe.fault(question.form, question.text))))
    except ParentGone:
        return 0


if __name__ == "__main__":
    sys.exit(main())
