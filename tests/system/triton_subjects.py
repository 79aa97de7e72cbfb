"""The triton engine before a real tritonserver, each flavor as a subject of engine_conformance.py."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from libs.catalogue import ModelSpec, with_base
from libs.catalogue.options import Flavor, Triton
from libs.clock import SystemClock
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Runner
from services.executor.triton.engine import TritonEngine
from services.executor.triton.runner import Patience
from tests.system.engine_conformance import Subject
from tests.system.triton.repository import Language, ModelRepository
from tests.system.tritonserver import TritonServer

PATIENCE = Patience(watch_s=0.2, answer_s=2.0, silence=2, away_s=30.0)
INSTANCES = 3
"""Of the BLS: as many requests it answers at once."""


@asynccontextmanager
async def _subject(folder: Path, flavor: Flavor) -> AsyncIterator[Subject]:
    repository = ModelRepository(folder / "repository")
    repository.add_language("tensorrt_llm", Language(step_s=0.002, max_input_len=4096))
    repository.add_text(accumulate_tokens=True)
    server = TritonServer(repository)
    await server.start()
    engine = TritonEngine(folder, SystemClock(), PATIENCE)
    options = Triton(server.endpoint, flavor=flavor, metrics_endpoint=server.metrics_endpoint)
    slots = INSTANCES if flavor == "bls" else 4
    spec = ModelSpec(
        "subject", "triton:", 2048, 512, 32, slots, 256, tokenizer=str(repository.tokenizer), triton=options
    )  # fmt: skip

    async def kill(_runner: Runner) -> None:
        server.kill()

    try:
        yield Subject(
            f"triton_{flavor}",
            engine,
            spec,
            Tokenizer.load(repository.tokenizer),
            kill,
            server.start,
            bad=[
                (replace(spec, triton=replace(options, endpoint="127.0.0.1:1")), "is away"),
                (replace(spec, triton=replace(options, model="nowhere")), "failed to load 'nowhere'"),
                (replace(spec, triton=replace(options, flavor="")), r"triton\.flavor"),
                (replace(spec, tokenizer=str(folder / "none")), "tokenizer"),
            ],
            adapters=[_adapter(folder, spec, f"lora{n}", n) for n in (1, 2)],
            bad_adapter=with_base(replace(spec, name="bad", base="subject", source=str(folder)), spec),
        )
    finally:
        await engine.close()
        server.kill()


def _adapter(folder: Path, base: ModelSpec, name: str, value: int) -> ModelSpec:
    """An adapter's files, and its catalogue entry."""
    (folder / name).mkdir()
    np.save(folder / name / "model.lora_weights.npy", np.full((1, 2, 4), value, np.float16))
    np.save(folder / name / "model.lora_config.npy", np.array([[[0, 0, 1], [1, 0, 1]]], np.int32))
    return with_base(replace(base, name=name, base=base.name, source=str(folder / name), version=name), base)


def triton_tokens(folder: Path) -> object:
    """Token ids in and out."""
    return _subject(folder, "tensorrt_llm")


def triton_ensemble(folder: Path) -> object:
    """Text in and out, by an ensemble of models."""
    return _subject(folder, "ensemble")


def triton_bls(folder: Path) -> object:
    """Text in and out, by calls between models."""
    return _subject(folder, "bls")
