"""Models that are ready to be loaded: finding them, and having them made.

The work itself runs in a process of its own (`python -m libs.models.prepare`): it needs seconds of computing
and memory for the whole model, which a service's event loop and heap are spared.
"""

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from libs.models.source import Source, SourceInvalid, fingerprint, resolve

RECIPE = 2
"""Counts changes of how models are prepared; part of the folder's name, so that a change prepares anew."""

MANIFEST = "headrace.json"
"""Lies in a prepared folder and is written last."""

Progress = Callable[[str, float], None]
"""Told what is being done, and the share of the whole that is done, 0 to 1."""


class PrepareFailed(Exception):
    """The preparing process failed; the text says why, to an operator."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a prepared model; the content of its manifest."""

    vocabulary: int
    """Token ids are below this."""
    context_tokens: int
    """Tokens that the model was made for; 0 when it does not say."""
    eos_ids: tuple[int, ...]
    """Ids that end an answer."""
    places: dict[str, tuple[int, int]] = {}
    """Inputs and outputs of the linear layers that an adapter can change, by name: "model.layers.0.mlp.up_proj"."""
    surprise: float
    """Nats per token at a plain English text; see libs.models.check."""
    temperature: float | None = None
    """The model's own default for sampling, as for the next three; None when it states none."""
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """A model in a form that the engine loads."""

    path: Path
    """The OpenVINO model directory."""
    tokenizer_path: Path
    """The folder to give to `libs.tokens.tokenizer.Tokenizer.load`."""
    grammar_path: Path
    """A tiny model of the same vocabulary, to try grammars on."""
    facts: Facts


def folder_of(source: Source, cache_dir: Path) -> Path:
    """Where a source's prepared model is, or will be."""
    if source.weights is None:
        raise SourceInvalid(f"{source.text} has no weights to prepare")
    return cache_dir.absolute() / "models" / f"{source.name}-{fingerprint(source.weights)}-r{RECIPE}"


def find(source: str, cache_dir: Path) -> PreparedModel | None:
    """The prepared model, if it is there. Takes milliseconds. Raises SourceInvalid."""
    found = resolve(source)
    folder = folder_of(found, cache_dir)
    try:
        facts = msgspec.json.decode((folder / MANIFEST).read_bytes(), type=Facts)
    except FileNotFoundError:
        return None
    assert found.weights is not None
    made = (folder / "openvino_model.xml").is_file()
    tokenizer = found.weights if found.kind == "openvino" else folder
    return PreparedModel(folder if made else found.weights, tokenizer, folder / "grammar", facts)


async def prepare(source: str, cache_dir: Path, progress: Progress = lambda _what, _share: None) -> PreparedModel:
    """The prepared model; it is made first if it is not there yet (about 20 s for the default model).

    Idempotent. Of several processes that ask for the same, one works and the others wait. Cancelling kills the
    preparing process; what it had begun is made anew next time.

    Raises SourceInvalid and PrepareFailed.
    """
    if (found := find(source, cache_dir)) is not None:
        return found
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "libs.models.prepare", source, str(cache_dir),
        cwd=os.getcwd(), env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'protos'}"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        async with asyncio.TaskGroup() as tasks:
            noise = tasks.create_task(process.stderr.read())
            error = await _follow(process.stdout, progress)
        status = await process.wait()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if error is not None:
        raise SourceInvalid(error)
    if (found := find(source, cache_dir)) is None:
        last = noise.result().decode(errors="replace").strip().splitlines()[-1:]
        raise PrepareFailed(f"preparing {source} failed with status {status}: {''.join(last)}")
    return found


async def _follow(lines: asyncio.StreamReader, progress: Progress) -> str | None:
    """Passes progress on; returns what is wrong with the source, if that is what came."""
    async for line in lines:
        report = msgspec.json.decode(line, type=Report)
        if report.invalid:
            return report.invalid
        progress(report.doing, report.share)
    return None


class Report(msgspec.Struct, omit_defaults=True):
    """A line that the preparing process prints."""

    doing: str = ""
    share: float = 0.0
    invalid: str = ""
    """The source cannot be prepared, and this is why. The last line then."""
