"""A model's tokenizer in the form that `libs.tokens.tokenizer.Tokenizer.load` reads."""

import json
from pathlib import Path

from libs.models.source import DEFAULT_PACKAGE, Source, SourceInvalid, fingerprint, resolve
from libs.models.store import build_once
from libs.tokens.gguf import tokenizer_from_gguf

ELSEWHERE = ("remote:", "triton:")
"""Sources of models that another server has."""

RECIPE = 1
"""Counts changes of what is written; part of the folder's name."""


def tokenizer_files(source: str, cache_dir: Path) -> Path:
    """The folder with tokenizer.json, tokenizer_config.json (chat template and special tokens) and
    generation_config.json (ids that end an answer).

    Blocks for about a second the first time for a GGUF, for milliseconds later. A directory with a
    tokenizer.json is its own tokenizer folder. A model that lies elsewhere and names no tokenizer is counted in
    tokens of the default model. Imports no engine. Raises SourceInvalid.
    """
    if source in ELSEWHERE:
        source = f"package:{DEFAULT_PACKAGE}"
    folder = Path(source).expanduser().absolute()
    if (folder / "tokenizer.json").is_file():
        return folder
    return tokenizer_folder(resolve(source), cache_dir)


def tokenizer_folder(source: Source, cache_dir: Path) -> Path:
    """The same for a source that is resolved."""
    if source.tokenizer.is_dir():
        return source.tokenizer
    folder = cache_dir / "tokenizers" / f"{source.tokenizer.stem}-{fingerprint(source.tokenizer)}-r{RECIPE}"
    return build_once(folder, lambda partial: _write(source.tokenizer, partial))


def _write(gguf: Path, folder: Path) -> None:
    try:
        found = tokenizer_from_gguf(gguf)
    except ValueError as error:
        raise SourceInvalid(str(error)) from error
    config = dict(found.config)
    ends = config.pop("eos_token_ids", [])
    (folder / "tokenizer.json").write_text(found.json, "utf-8")
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "generation_config.json", {"eos_token_id": ends})


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1), "utf-8")
