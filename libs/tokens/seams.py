"""Whether a text may be tokenized part by part, cut at its control tokens. Decided by what a tokenizer.json says.

It may where nothing looks across a control token: byte-level vocabularies cut a text into words that a control token
ends, and tokenize each word by itself. Others know whether a text begins the prompt (SentencePiece's first blank),
merge at random (dropout), or have control tokens that take in the white space around them.
"""

from collections.abc import Mapping
from typing import Any

from libs.tokens.template import ControlTokens
from libs.tokens.words import steps

_NORMALIZERS = frozenset({"NFC"})
_PRE_TOKENIZERS = frozenset({"Digits", "Split", "ByteLevel"})
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def separable(document: Mapping[str, Any], controls: ControlTokens) -> bool:
    """Whether the tokens of a text are those of the parts between its control tokens, each tokenized alone.

    Args:
        document: A tokenizer.json; of its model only `type` and `dropout` are looked at.
    """
    model, cuts = document["model"], steps(document.get("pre_tokenizer"))
    return (
        model["type"] == "BPE"
        and not model.get("dropout")
        and all(step["type"] in _NORMALIZERS for step in steps(document.get("normalizer")))
        and all(step["type"] in _PRE_TOKENIZERS and not step.get("add_prefix_space") for step in cuts)
        and any(step["type"] == "ByteLevel" for step in cuts)
        and _found_alike(document, controls)
    )


def _found_alike(document: Mapping[str, Any], controls: ControlTokens) -> bool:
    """Whether the control tokens of a text are found without the vocabulary's other added tokens: none of these can
    reach into one, and none takes part of what stands around it."""
    begins = {text[0] for text in controls.ids}
    for token in document["added_tokens"]:
        if token["content"] in controls.ids:
            if any(token.get(flag) for flag in _FLAGS):
                return False
        elif not begins.isdisjoint(token["content"]) or token.get("lstrip") or token.get("rstrip"):
            return False
    return True
