"""A tokenizer.json out of a GGUF file's metadata.

GGUF has the vocabulary and the merges, but of the rules that cut a text into words only a name
(`tokenizer.ggml.pre`). The rules behind the names are those of the models' own tokenizer.json files. A name
that is not in PRE is refused: with wrong rules, texts would mostly look right and a model would be worse for
no visible reason. SentencePiece vocabularies ("llama", "t5") are refused as well: their merges are not in
the file, and ranking them by score is not exact.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from libs.tokens.gguf_metadata import read_metadata
from libs.tokens.words import LLAMA_3, QWEN_2

CONTROL, USER_DEFINED = 3, 4
"""Token types of GGUF that a tokenizer.json lists as added tokens."""


@dataclass(frozen=True, slots=True)
class GgufTokenizer:
    """What a Hugging Face folder says in two files."""

    json: str
    """The text of a tokenizer.json."""
    config: dict[str, Any]
    """As in tokenizer_config.json: special tokens and `chat_template`; besides, `eos_token_ids`."""


@dataclass(frozen=True, slots=True)
class _Rules:
    """How a text is cut into words before merging."""

    first: Mapping[str, Any] | None = None
    """A pre-tokenizer in front of the byte-level one."""
    byte_level_regex: bool = True
    """Whether the byte-level one cuts by GPT-2's expression."""
    ignore_merges: bool = False
    """Whether a word that is a token needs no merges."""
    nfc: bool = False
    """Whether texts are composed first."""
    add_bos: bool = False
    """Whether a prompt begins with bos when the file does not say."""


def _split(pattern: str) -> Mapping[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


_DIGITS = _Rules(first={"type": "Digits", "individual_digits": True})
PRE: Mapping[str, _Rules] = {
    "gpt-2": _Rules(),
    "smollm": _DIGITS,
    "starcoder": _DIGITS,
    "refact": _DIGITS,
    "llama-bpe": _Rules(_split(LLAMA_3), byte_level_regex=False, ignore_merges=True, add_bos=True),
    "qwen2": _Rules(_split(QWEN_2), byte_level_regex=False, nfc=True),
}


def tokenizer_from_gguf(path: str | Path) -> GgufTokenizer:
    """Builds the tokenizer of a GGUF file. Blocks for a fraction of a second.

    Raises FileNotFoundError, and ValueError when the file is broken or its kind of tokenizer cannot be
    rebuilt exactly.
    """
    metadata = read_metadata(path)

    def get(name: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{name}", default)

    model, pre = get("model"), get("pre")
    if model != "gpt2":
        raise ValueError(
            f"{path} has a tokenizer of type {model!r}, which cannot be rebuilt exactly; "
            "give a folder with the model's own tokenizer.json"
        )
    rules = PRE.get(pre)
    if rules is None:
        raise ValueError(
            f"{path} cuts words by rules named {pre!r}; known are {', '.join(PRE)}; "
            "give a folder with the model's own tokenizer.json"
        )
    tokens: list[str] = get("tokens", [])
    types: list[int] = get("token_type", [])
    if not tokens or len(types) != len(tokens):
        raise ValueError(f"{path} has {len(tokens)} tokens and {len(types)} token types")
    special = {name: tokens[n] for name, n in _special_ids(get).items() if 0 <= n < len(tokens)}
    ends = [n for name in ("eos", "eot", "eom") if (n := get(f"{name}_token_id")) is not None]
    bos = special.get("bos_token") if get("add_bos_token", rules.add_bos) else None
    document = _document(tokens, types, get("merges", []), rules, bos)
    config = {**special, "eos_token_ids": ends, "chat_template": metadata.get("tokenizer.chat_template")}
    return GgufTokenizer(json.dumps(document, ensure_ascii=False), config)


def _special_ids(get: Any) -> dict[str, int]:
    names = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
    found = {f"{ours}_token": get(f"{theirs}_token_id") for theirs, ours in names.items()}
    return {name: token for name, token in found.items() if token is not None}


def _document(
    tokens: Sequence[str], types: Sequence[int], merges: Sequence[str], rules: _Rules, bos: str | None
) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    cut = {**byte_level, "use_regex": rules.byte_level_regex}
    vocabulary = {token: n for n, token in enumerate(tokens)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(n, tokens[n], kind) for n, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)],
        "normalizer": {"type": "NFC"} if rules.nfc else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [rules.first, cut]} if rules.first else cut,
        "post_processor": _begin_with(bos, vocabulary[bos]) if bos else {**byte_level, "use_regex": True},
        "decoder": {**byte_level, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": rules.ignore_merges,
            "vocab": vocabulary,
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _added(token: int, text: str, kind: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token, "content": text, **flags, "special": kind == CONTROL}


def _begin_with(text: str, token: int) -> dict[str, Any]:
    bos = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in ("A", "B"))
    return {
        "type": "TemplateProcessing",
        "single": [bos, first],
        "pair": [bos, first, bos, second],
        "special_tokens": {text: {"id": text, "ids": [token], "tokens": [text]}},
    }
