"""vLLM against every check of tests/system/engine_conformance.py, with which other engines pass the default run."""

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import pytest_asyncio

from libs.clock import SystemClock
from libs.models.huggingface import huggingface_folder
from libs.tokens.tokenizer import Tokenizer
from services.executor.child.runner import ChildRunner
from services.executor.engine import Runner
from services.executor.vllm.engine import VllmEngine
from tests.system.engine_conformance import CHECKS, LOADING_CHECKS, Loaded, Subject, loaded
from tests.vllm.adapters import adapter_for
from tests.vllm.loaded import CACHE, PYTHON, SPEC

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


async def kill(runner: Runner) -> None:
    os.kill(cast(ChildRunner, runner).pid, signal.SIGKILL)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def subject(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Subject]:
    folder = tmp_path_factory.mktemp("adapters")
    base = await huggingface_folder(SPEC.source, CACHE)
    adapters = [
        replace(SPEC, name=name, base=SPEC.name, source=str(adapter_for(base, folder / name, seed)), version="1")
        for seed, name in enumerate(("red", "green"))
    ]
    large = replace(adapters[0], name="large", source=str(adapter_for(base, folder / "large", 3, rank=16)))
    bad = [
        (replace(SPEC, source=str(Path(folder) / "none")), "no such file"),
        (replace(SPEC, blocks=1), "at least"),
        (replace(SPEC, block_tokens=33), "block"),
    ]
    engine = VllmEngine(CACHE, SystemClock(), PYTHON)
    await engine.start()
    yield Subject("vllm", engine, SPEC, Tokenizer.load(base), kill, bad=bad, adapters=adapters, bad_adapter=large)
    await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(subject: Subject) -> AsyncIterator[Loaded]:
    """Shared by the checks that leave it as they found it."""
    async with loaded(subject) as it:
        yield it


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_loaded(model: Loaded, check: Callable[[Loaded], Awaitable[None]]) -> None:
    await check(model)
    await model.idle()
    assert not model.heard.faults
    assert not model.heard.broken


@pytest.mark.parametrize("check", LOADING_CHECKS, ids=lambda check: check.__name__)
async def test_loading(subject: Subject, check: Callable[[Subject], Awaitable[None]]) -> None:
    await check(subject)
