"""Models as Hugging Face folders, for engines that load nothing else: finding them, and having them made.

The writing runs in a process of its own (`python -m libs.models.huggingface_writer`), once per machine; see
libs.models.prepared.
"""

import asyncio
import os
import sys
from pathlib import Path

from libs.models.prepared import PrepareFailed
from libs.models.source import Source, SourceInvalid, fingerprint, resolve

RECIPE = 1
"""Counts changes of what is written; part of the folder's name."""

INVALID = 3
"""The writer's exit status when the source is no good."""


def is_huggingface(folder: Path) -> bool:
    """Whether a folder holds a model in this form."""
    needed = (folder / "config.json").is_file() and (folder / "tokenizer.json").is_file()
    return needed and any(folder.glob("*.safetensors"))


def folder_of(source: Source, cache_dir: Path) -> Path:
    """Where a GGUF source is written. Raises SourceInvalid for another one."""
    if source.kind != "gguf" or source.weights is None:
        raise SourceInvalid(f"{source.text} is neither a GGUF file nor a folder with config.json and *.safetensors")
    return cache_dir.absolute() / "models" / f"{source.name}-{fingerprint(source.weights)}-hf{RECIPE}"


def find(source: str, cache_dir: Path) -> tuple[Path, bool]:
    """The folder for a source, and whether it is there. Takes milliseconds. Raises SourceInvalid."""
    path = Path(source).expanduser().absolute()
    if is_huggingface(path):
        return path, True
    folder = folder_of(resolve(source), cache_dir)
    return folder, folder.is_dir()


async def huggingface_folder(source: str, cache_dir: Path) -> Path:
    """The folder for a source of the catalogue: itself if it is one, else one that is made of it if it is not there
    yet (about 5 s for the default model).

    Idempotent. Of several processes that ask for the same, one works and the others wait. Cancelling kills the
    writing process; what it had begun is made anew next time.

    Raises SourceInvalid and PrepareFailed.
    """
    folder, there = find(source, cache_dir)
    if there:
        return folder
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "libs.models.huggingface_writer", source, str(cache_dir),
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'protos'}"},
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, noise = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    last = "".join(noise.decode(errors="replace").strip().splitlines()[-1:])
    if process.returncode == INVALID:
        raise SourceInvalid(last)
    if process.returncode:
        raise PrepareFailed(f"converting {source} failed with status {process.returncode}: {last}")
    return folder
