"""`python -m libs.models.prepare SOURCE CACHE_DIR`: prepares one model and prints its progress as JSON lines.

A GGUF goes GGUF → GGUF in F16 → OpenVINO graph → int8 weights → names and masks → self-check. An OpenVINO
directory is checked and stays where it is; if its graph lacks names or masks, a copy with them is made. Exit
status 0 when the model is prepared, 1 when the source is no good.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from libs.models.prepared import MANIFEST, Facts, Report, folder_of
from libs.models.source import Source, SourceInvalid, resolve
from libs.models.store import build_once
from libs.models.tokenizer_files import tokenizer_folder
from libs.tokens.tokenizer import Tokenizer

Tell = Callable[[str, float], None]


def main() -> int:
    """Reads the two arguments."""
    # NNCF and OpenVINO print to standard output: only our lines may go there.
    lines = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)

    def tell(doing: str, share: float) -> None:
        lines.write(msgspec.json.encode(Report(doing, round(share, 3))) + b"\n")

    try:
        source, cache_dir = resolve(sys.argv[1]), Path(sys.argv[2])
        build_once(
            folder_of(source, cache_dir),
            lambda partial: _build(source, cache_dir, partial, tell),
            lambda: tell("waiting for another process that prepares it", 0.0),
        )
    except SourceInvalid as error:
        lines.write(msgspec.json.encode(Report(invalid=str(error))) + b"\n")
        return 1
    tell("done", 1.0)
    return 0


def _build(source: Source, cache_dir: Path, partial: Path, tell: Tell) -> None:
    assert source.weights is not None
    tell("reading the tokenizer", 0.0)
    tokens = tokenizer_folder(source, cache_dir)
    from libs.models import check, convert, graph  # seconds of imports: after the first line is out

    metadata: dict[str, Any] = {}
    if source.kind == "gguf":
        half = partial / "half.gguf"
        metadata = convert.gguf_in_half_precision(
            source.weights, half, lambda share: tell("unpacking the weights", 0.05 + 0.25 * share)
        )
        tell("building the graph", 0.3)
        convert.openvino_model(half, partial)
        half.unlink()
        tell("compressing the weights to int8", 0.5)
        convert.compress_to_int8(partial)
        for file in tokens.iterdir():
            (partial / file.name).write_bytes(file.read_bytes())
        model = partial
    else:
        model = source.weights
        for file in (*model.glob("openvino_*tokenizer.*"), *model.glob("*.json")):
            (partial / file.name).write_bytes(file.read_bytes())  # where the grammar model looks for them
    tell("making the graph ready for adapters and salts", 0.75)
    vocabulary = convert.vocabulary_size(model)
    places = graph.ready(model, partial, vocabulary)
    if (partial / "openvino_model.xml").is_file():
        model = partial
    tell("making the grammar model", 0.8)
    grammar = partial / "grammar"
    grammar.mkdir()
    convert.grammar_model(grammar, vocabulary)
    tell("checking its answers", 0.85)
    surprise = check.check(source.text, model, tokens)
    defaults = _json(model / "generation_config.json")
    facts = Facts(
        vocabulary=vocabulary,
        context_tokens=_context(metadata, model),
        eos_ids=tuple(sorted(Tokenizer.load(tokens).eos_ids)),
        places=places,
        surprise=surprise,
        **{name: defaults.get(name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")},
    )
    (partial / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(facts)))


def _context(metadata: dict[str, Any], model: Path) -> int:
    if metadata:
        return int(metadata.get(f"{metadata['general.architecture']}.context_length", 0))
    return int(_json(model / "config.json").get("max_position_embeddings", 0))


def _json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8"))) if path.is_file() else {}


if __name__ == "__main__":
    sys.exit(main())
