"""Text and chats to token ids, and back.

Control tokens come from the model's template alone. Text from outside is encoded by a second tokenizer,
equal to the first but for one thing: it takes the text of a control token for text.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer as Encoder

from libs.tokens.byte_table import ByteTable, byte_table
from libs.tokens.parts import Parts
from libs.tokens.seams import separable
from libs.tokens.shapes import Shapes
from libs.tokens.template import ChatTemplate, ControlTokens
from libs.tokens.words import NotByWords, Words, word_pattern

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
"""That make a tokenizer, of a folder."""
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """A model's vocabulary and chat template. Immutable but for what it remembers (`words`, `parts`), which no answer
    depends on; may be used from several threads."""

    def __init__(self, tokenizer_json: str, config: Mapping[str, Any]) -> None:
        """Args:
            tokenizer_json: The text of a tokenizer.json, as the `tokenizers` package reads it.
            config: What tokenizer_config.json says; used are `chat_template`, the special tokens, and
                `eos_token_ids`, ids that end an answer besides `eos_token`.

        Raises ValueError when one of them is not valid.
        """
        document = _rules(tokenizer_json)
        special = {name: text for name in SPECIAL_TOKENS if (text := _content(config.get(name)))}
        template = _default(config.get("chat_template"))
        controls = _controls(document, template or "")
        self._controls = controls
        self._control_ids = frozenset(controls.ids.values())
        self._template = ChatTemplate(template, special) if template else None
        self._plain = _encoder(_with_special(tokenizer_json, document, controls))
        self._plain.encode_special_tokens = True
        # A vocabulary takes 15 MB: where the first tokenizer would never be asked, there is none.
        self._full = None if separable(document, controls) else _encoder(tokenizer_json)
        flagged = {token["content"] for token in document["added_tokens"] if token["special"]}
        added = self._plain.get_added_tokens_decoder().items()
        self.special_ids = frozenset(token for token, entry in added if entry.content in flagged)
        """Ids that leave no text."""
        self._words = self._words_of(document)
        self._parts = Parts(self._encode_part)
        alone = self._template if self._full is None else None
        self._shapes = Shapes(alone, controls, self._parts.encode) if alone is not None else None
        self._before, self._behind = _frame(self._plain)
        vocabulary = self._plain.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values(), default=-1) + 1
        """One more than the greatest id."""
        eos = vocabulary.get(special.get("eos_token", ""))
        self.eos_ids = frozenset(config.get("eos_token_ids") or ()) | ({eos} if eos is not None else frozenset())
        """Ids that end an answer."""

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a folder with a tokenizer.json (and tokenizer_config.json, chat_template.jinja and
        generation_config.json, where they are), such a file itself, or a .gguf file. Blocks for up to
        a second.

        Raises FileNotFoundError and ValueError.
        """
        path = Path(path)
        if path.suffix == ".gguf":
            from libs.tokens.gguf import tokenizer_from_gguf  # a third of a second that others need not pay

            found = tokenizer_from_gguf(path)
            return cls(found.json, found.config)
        file = path / "tokenizer.json" if path.is_dir() else path
        return cls(file.read_text("utf-8"), _read_config(file.parent))

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` may be called."""
        return self._template is not None

    def encode(self, text: str, add_special: bool = False) -> list[int]:
        """The tokens of a text from outside; never a control token, whatever the text says.

        Args:
            text: Any text.
            add_special: Also add what the model wants around a whole prompt (often a begin-of-text token).
        """
        ids = self._encode_plain(text)
        return [*self._before, *ids, *self._behind] if add_special else list(ids)

    def render_chat(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        """The tokens of a prompt: (role, content) turns in the model's template, then the answer's opening.

        Raises TemplateRefusedError when the template does not take these turns, and ValueError when there
        is no template or a role is unknown.
        """
        if self._template is None:
            raise ValueError("the model has no chat template")
        if self._shapes is not None and (known := self._shapes.render(messages)) is not None:
            return known
        marked, mark = self._template.render(messages, self._controls)
        if self._full is not None:
            text = marked.replace(mark, "")
            if text == marked or self._controls.found(marked) == self._controls.found(text):
                # Nobody wrote a control token: exactly what the model was trained on.
                return self._full.encode(text, add_special_tokens=False).ids
        # Where parts are tokenized alike alone and together, this is the same.
        ids: list[int] = []
        for part in self._controls.split(marked):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += self._encode_plain(part.replace(mark, ""))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer. Special tokens are left out, bytes that are not UTF-8 become U+FFFD."""
        if self.byte_table is not None:
            return self.byte_table.join(ids).decode("utf-8", "replace")
        return self.decode_slowly(ids)

    def decode_slowly(self, ids: Sequence[int]) -> str:
        """The same by the `tokenizers` package, which knows every kind of vocabulary."""
        special = self.special_ids
        return self._plain.decode([token for token in ids if token not in special], skip_special_tokens=False)

    @cached_property
    def byte_table(self) -> ByteTable | None:
        """The bytes of each token, for byte-level vocabularies. Made when it is first used, in 0.1 s."""
        return byte_table(self._plain, self.special_ids)

    def _words_of(self, document: Mapping[str, Any]) -> Words | None:
        """None for vocabularies whose words cannot be told here."""
        pattern = word_pattern(document.get("pre_tokenizer"))
        if self._full is not None or pattern is None:
            return None
        others = [token for token in document["added_tokens"] if token["content"] not in self._controls.ids]
        if document.get("normalizer") is not None and any(token["normalized"] for token in others):
            return None
        tokenize, encode = self._plain.model.tokenize, self._plain.encode
        return Words(
            pattern,
            lambda word: [token.id for token in tokenize(word)],
            lambda piece: encode(piece, add_special_tokens=False).ids,
            self._control_ids,
            [token["content"] for token in others],
        )

    def _encode_plain(self, text: str) -> Sequence[int]:
        return self._parts.encode(text)

    def _encode_part(self, text: str) -> list[int]:
        if self._words is not None:
            try:
                return self._words.encode(text)
            except NotByWords:
                pass
        ids = self._plain.encode(text, add_special_tokens=False).ids
        if self._control_ids.isdisjoint(ids):
            return ids
        # Some models (Unigram with "</s>" in its vocabulary) know control tokens as words. Cut the word.
        cut = (self._plain.encode(part, add_special_tokens=False).ids for part in self._controls.cut(text))
        return [token for token in chain.from_iterable(cut) if token not in self._control_ids]


def _rules(tokenizer_json: str) -> dict[str, Any]:
    """A tokenizer.json without its vocabulary, which takes 20 MB as Python's values. Raises ValueError."""
    try:
        parts = msgspec.json.decode(tokenizer_json, type=dict[str, msgspec.Raw])
        rules = {name: msgspec.json.decode(raw) for name, raw in parts.items() if name != "model"}
        model = msgspec.json.decode(parts["model"], type=_Model)
    except (msgspec.DecodeError, KeyError) as error:
        raise ValueError(f"not a tokenizer.json: {error}") from error
    return {"added_tokens": [], **rules, "model": {"type": model.type, "dropout": model.dropout}}


class _Model(msgspec.Struct):
    """What is looked at of a model in a tokenizer.json."""

    type: str = ""
    dropout: float | None = None


def _with_special(tokenizer_json: str, document: Mapping[str, Any], controls: ControlTokens) -> str:
    """The tokenizer.json with exactly the control tokens marked special. They are not taken out: that would give other
    added tokens new ids."""
    parts = msgspec.json.decode(tokenizer_json, type=dict[str, msgspec.Raw])
    added = [{**token, "special": token["content"] in controls.ids} for token in document["added_tokens"]]
    parts["added_tokens"] = msgspec.Raw(msgspec.json.encode(added))
    return msgspec.json.encode(parts).decode()


def _encoder(tokenizer_json: str) -> Encoder:
    try:
        encoder = Encoder.from_str(tokenizer_json)
    except Exception as error:  # the package raises plain Exception
        raise ValueError(f"not a tokenizer.json: {error}") from error
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _controls(document: Mapping[str, Any], template: str) -> ControlTokens:
    """The added tokens that are special, look like markup, or are named in the template.

    The flag alone is not enough: `<tool_call>` or `</think>` are often not flagged. Others, such as runs of
    spaces and single characters, are ordinary vocabulary.
    """
    added = document["added_tokens"]
    chosen = [
        token
        for token in added
        if len((text := token["content"]).strip()) > 1
        and (token["special"] or (text[0] == "<" and text[-1] == ">") or text in template)
    ]
    return ControlTokens(
        {token["content"]: token["id"] for token in chosen},
        {token["content"]: (token["lstrip"], token["rstrip"]) for token in chosen},
    )


def _frame(encoder: Encoder) -> tuple[list[int], list[int]]:
    """What the post-processor puts before and behind a text."""
    encoding = encoder.encode("a", add_special_tokens=True)
    mask = encoding.special_tokens_mask
    first = mask.index(0)
    last = len(mask) - mask[::-1].index(0)
    return encoding.ids[:first], encoding.ids[last:]


def _read_config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = {}
    if (file := folder / "tokenizer_config.json").exists():
        config = json.loads(file.read_text("utf-8"))
    if (file := folder / "chat_template.jinja").exists():
        config["chat_template"] = file.read_text("utf-8")
    if (file := folder / "generation_config.json").exists():
        ends = json.loads(file.read_text("utf-8")).get("eos_token_id")
        config["eos_token_ids"] = ends if isinstance(ends, list) else [ends] if ends is not None else []
    return config


def _content(token: Any) -> str | None:
    """A special token, which is either its text or an object with it."""
    text: object = token.get("content") if isinstance(token, dict) else token
    return str(text) if text is not None else None


def _default(template: str | list[dict[str, str]] | None) -> str | None:
    """The template's text; the default one, where a model has several."""
    if isinstance(template, list):
        return {entry["name"]: entry["template"] for entry in template}.get("default")
    return template
