"""The trtllm engine on its test double: how tests start one, and what the double wrote down."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from libs.catalogue import ModelSpec, with_base
from libs.catalogue.options import TrtLlm
from libs.clock import SystemClock
from libs.tokens.blocks import chain, salt
from libs.tokens.tokenizer import Tokenizer
from services.executor.child.runner import ChildRunner
from services.executor.engine import Runner
from services.executor.trtllm.engine import TrtLlmEngine
from tests.system.engine_conformance import SHAPES, Subject

ROOT = Path(__file__).parents[2]
DOUBLE = ROOT / "tests" / "trtllm_double"
VERSIONS = ("1.2", "1.3")
BLOCK = 16


def environment(folder: Path, version: str = "1.3", **knobs: Any) -> dict[str, str]:
    """Variables that put the double in TensorRT-LLM's place; knobs: tests/trtllm_double/README.md."""
    paths = (ROOT, ROOT / "protos", DOUBLE)
    return {
        "PYTHONPATH": ":".join(map(str, paths)),
        "TRTLLM_DOUBLE_VERSION": version,
        "TRTLLM_DOUBLE_FOLDER": str(folder),
        **{f"TRTLLM_DOUBLE_{name.upper()}": str(value) for name, value in knobs.items()},
    }


def engine(folder: Path, version: str = "1.3", **knobs: Any) -> TrtLlmEngine:
    """An engine whose children write into `folder`."""
    return TrtLlmEngine(folder / "cache", SystemClock(), environment=environment(folder, version, **knobs))


def model(folder: Path, name: str = "base", **changes: Any) -> ModelSpec:
    """A model that the double can load."""
    source = folder / "model"
    source.mkdir(exist_ok=True)
    (source / "config.json").write_text('{"vocab_size": 49152}')
    fields: dict[str, Any] = {
        "name": name, "source": str(source), "context_tokens": 512, "blocks": 128, "block_tokens": BLOCK, "slots": 16,
        "step_tokens": 256, "trtllm": TrtLlm(max_adapters=4, max_adapter_rank=16), **changes,
    }  # fmt: skip
    return ModelSpec(**fields)


def adapter(folder: Path, name: str, rank: int = 8) -> ModelSpec:
    """An adapter of `model`."""
    source = folder / name
    source.mkdir(exist_ok=True)
    (source / "adapter_config.json").write_text(json.dumps({"r": rank}))
    fields: dict[str, Any] = dict.fromkeys(("context_tokens", "blocks", "block_tokens", "slots", "step_tokens"), 0)
    return with_base(ModelSpec(name=name, source=str(source), base="base", version=name, **fields), model(folder))


def calls(folder: Path, call: str) -> list[dict[str, Any]]:
    """What the double was asked."""
    lines = (folder / "calls.jsonl").read_text().splitlines()
    return [facts for line in lines if (facts := json.loads(line))["call"] == call]


def truth(folder: Path, name: str, salts: Mapping[int | None, str], block: int = BLOCK) -> set[int]:
    """Our names of the blocks that the double's cache holds: of those whose salt is among `salts` (by number)."""
    blocks = json.loads((folder / "cache.json").read_text())
    return {
        chain(fact["tokens"], block, salt(name, salts[fact["salt"]]))[-1] for fact in blocks if fact["salt"] in salts
    }


ANSWERS = {"json_schema": '{"city": "Paris"}', "regex": "green", "ebnf": "yes"}
"""To the shapes of the conformance suite: the double compiles no grammars."""


@asynccontextmanager
async def subject(folder: Path, tokenizer: Tokenizer, version: str = "1.3") -> AsyncIterator[Subject]:
    """For the conformance suite: the engine against its double, steps of 2 ms."""
    guides = {SHAPES[form]: tokenizer.encode(answer) for form, answer in ANSWERS.items()}
    made = engine(folder, version, step_ms=2, guides=json.dumps(guides))
    spec = model(folder, "subject", context_tokens=2048, blocks=1024, slots=8)

    async def kill(runner: Runner) -> None:
        assert isinstance(runner, ChildRunner)
        os.kill(runner.pid, signal.SIGKILL)
        await asyncio.sleep(0)

    try:
        yield Subject(
            f"trtllm_{version}",
            made,
            spec,
            tokenizer,
            kill,
            bad=[(model(folder, source=str(folder / "nowhere")), "not a local folder")],
            adapters=[adapter(folder, "one"), adapter(folder, "two")],
            bad_adapter=adapter(folder, "large", rank=64),
        )
    finally:
        await made.close()
