"""A tokenizer that the mesh and the models inside tritonserver share: bytes, and some whole words."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

ANSWERS = (
    "mill", "wheel", "water", "gate", "river", "stone", "grain", "flour", "miller", "channel", "sluice", "pond",
    "weir", "shaft", "sack", "meadow",
)  # fmt: skip
"""What the language model says."""
MAGIC = ("ends", "fails", "refuses", "snow")
"""What makes it do something: see models/language.py."""
END = "<|end|>"
TURNS = ("<|user|>", "<|assistant|>", "<|system|>")
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_tokenizer(folder: Path) -> dict[str, Any]:
    """Writes tokenizer.json and its companions; returns the ids that the models know by name."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: n for n, character in enumerate(alphabet)}
    merges: list[tuple[str, str]] = []
    for word in (*ANSWERS, *MAGIC):
        for left, right in _chain(f"\u0120{word}"):
            if left + right not in vocabulary:
                merges.append((left, right))
                vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in (END, *TURNS)])
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id(END)
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END, "chat_template": TEMPLATE}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [end]}))
    encoded = [tokenizer.encode(bytes([byte]).decode("latin-1")).ids for byte in range(128)]
    ascii_ids = [ids[0] for ids in encoded]
    snowman = tokenizer.encode("\u2603").ids
    by_byte = {**{str(n): each for n, each in enumerate(ascii_ids)}}
    by_byte |= {str(byte): each for byte, each in zip("\u2603".encode(), snowman, strict=True)}
    return {
        "end": end,
        "answers": [tokenizer.token_to_id(f"\u0120{word}") for word in ANSWERS],
        "bytes": by_byte,
        **{word: tokenizer.token_to_id(f"\u0120{word}") for word in MAGIC},
    }


def _chain(word: str) -> Iterator[tuple[str, str]]:
    """The merges that make a word from left to right."""
    for length in range(1, len(word)):
        yield word[:length], word[length]
