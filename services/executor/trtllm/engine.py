"""Loads models into TensorRT-LLM, a process for each; see services.executor.engine.Engine."""

import asyncio
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import structlog

from libs.catalogue import ModelSpec
from libs.clock import Clock
from services.executor.child.process import ChildProcess
from services.executor.child.start import start_loaded
from services.executor.engine import EngineUnavailable, Listener, LoadFailed
from services.executor.trtllm.runner import TrtLlmRunner
from services.executor.trtllm.wire import Found, Load, Missing, decode_probe

log = structlog.get_logger()

LOAD_S = 3600.0
"""A child that has not answered after this long has failed. The TensorRT backend compiles a model for minutes."""

PROBE_S = 180.0
"""How long an import of TensorRT-LLM may take: the first one on a machine reads gigabytes."""

IN_PROCESS = {"TLLM_WORKER_USE_SINGLE_PROCESS": "1"}
"""Has a model on one GPU run in the child itself: who ends the child then ends all of it, GPU memory included."""


class TrtLlmEngine:
    """TensorRT-LLM 1.2 or 1.3, installed for any Python interpreter of this machine.

    Args:
        cache_dir: Where the engine may keep what it downloads and compiles.
        clock: For the time that loading takes.
        python: The interpreter that has TensorRT-LLM. It needs msgspec besides, and Python 3.11 or later.
        environment: Variables for the children beside those of this process.
    """

    def __init__(
        self,
        cache_dir: Path,
        clock: Clock,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._clock = clock
        self._python = python
        self._environment = {"HF_HOME": str(cache_dir / "huggingface"), **(environment or {})}
        self._runners: list[TrtLlmRunner] = []

    async def start(self) -> None:
        """Imports TensorRT-LLM in a process of its own, which takes some seconds. Raises EngineUnavailable."""
        if shutil.which(self._python) is None:
            raise EngineUnavailable(f"{self._python} is no program: name a Python interpreter")
        child = await ChildProcess.start(
            "services.executor.trtllm.probe", python=self._python, environment=self._environment
        )
        status = 0
        try:
            async with asyncio.timeout(PROBE_S):
                data = await child.receive()
        except TimeoutError:
            raise EngineUnavailable(f"{self._python} did not import TensorRT-LLM in {PROBE_S:.0f} s") from None
        finally:
            status = await child.close(kill=True)
        if data is None:
            raise EngineUnavailable(
                f"{self._python} ended with status {status} while it imported TensorRT-LLM; its standard error says"
                " why. It must be Python 3.11 or later, with msgspec installed"
            )
        answer = decode_probe(data)
        if isinstance(answer, Missing):
            raise EngineUnavailable(
                f"{self._python} cannot use TensorRT-LLM: {answer.reason}. Install tensorrt-llm 1.2 or 1.3 and msgspec"
                " for it, or name another interpreter in HEADRACE_TRTLLM_PYTHON"
            )
        assert isinstance(answer, Found)
        log.info("TensorRT-LLM found", version=answer.version, python=self._python)

    async def load(self, model: ModelSpec, listener: Listener) -> TrtLlmRunner:
        """Starts a process, has it load the model, and returns when that has passed its self-test."""
        if min(model.slots, model.step_tokens) < 1:
            raise LoadFailed("slots and step_tokens must be at least 1")
        options = model.trtllm
        alone = options.tensor_parallel * options.pipeline_parallel == 1
        environment = {**(IN_PROCESS if alone else {}), **self._environment}
        started = self._clock.monotonic()
        if shutil.which(self._python) is None:
            raise LoadFailed(f"{self._python} is no program any more")
        child, ready = await start_loaded(
            "services.executor.trtllm.child", _load(model), LOAD_S, python=self._python, environment=environment
        )
        log.info("model loaded", model=model.name, seconds=round(self._clock.monotonic() - started, 1))
        runner = TrtLlmRunner(child, ready, listener, model.context_tokens)
        self._runners = [*(other for other in self._runners if not other.closed), runner]
        return runner

    async def close(self) -> None:
        """Closes every runner."""
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.close() for runner in runners))


def _load(model: ModelSpec) -> Load:
    options = model.trtllm
    return Load(
        model=model.name,
        source=model.source,
        revision=model.revision,
        tokenizer=model.tokenizer,
        context_tokens=model.context_tokens,
        blocks=model.blocks,
        block_tokens=model.block_tokens,
        slots=model.slots,
        step_tokens=model.step_tokens,
        kv_fraction=options.kv_fraction,
        host_cache_bytes=options.host_cache_bytes,
        tensor_parallel=options.tensor_parallel,
        pipeline_parallel=options.pipeline_parallel,
        backend=options.backend,
        max_adapters=options.max_adapters,
        max_adapter_rank=options.max_adapter_rank,
        guided_backend=options.guided_backend,
        trust_remote_code=options.trust_remote_code,
    )
