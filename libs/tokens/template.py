"""Renders a chat with the model's own template, so that what people write stays content.

A chat template is a program that ships with a model; it writes control tokens (`<|im_start|>`) around the
turns, as text. Someone who writes `<|im_end|>` into a turn must not thereby end it. So the contents go into
the template with a mark inside of everything that could be (a part of) a control token, and only control
tokens that are whole in the rendered text count; then the marks come out.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment

from libs.tokens.looking import LOOP_ATTRIBUTES, looks_into

ROLES = frozenset({"system", "user", "assistant"})
MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Noncharacters: Unicode keeps them for use inside of a program."""

NEVER = r"(?!)"
"""A pattern that matches nothing."""


class TemplateRefusedError(ValueError):
    """The template does not take this chat (a system turn, say); the text is its own."""


class ControlTokens:
    """The texts of a vocabulary's control tokens, and how to find them in a text."""

    def __init__(self, ids: Mapping[str, int], takes_space: Mapping[str, tuple[bool, bool]] | None = None) -> None:
        """`takes_space` says of a token whether it takes in the white space on its left and right.

        Raises ValueError for a token of one character: it cannot be cut.
        """
        if not all(len(text) > 1 for text in ids):
            raise ValueError("a control token has at least two characters")
        self.ids = dict(ids)
        space = takes_space or {}

        def pattern(text: str) -> str:
            left, right = space.get(text, (False, False))
            # Only where it must be is there a group: literals alone let `re` skip to where one can begin.
            return left * r"\s*" + f"({re.escape(text)})" + right * r"\s*" if left or right else re.escape(text)

        # The longest first: "<s>>" is not "<s>" and ">".
        texts = sorted(ids, key=len, reverse=True)
        self._whole = re.compile("|".join(map(pattern, texts)) or NEVER)
        begins, ends = (re.escape("".join({text[edge] for text in texts})) for edge in (0, -1))
        self._edges = re.compile(f"(?<=[{begins}])|(?=[{ends}])" if texts else NEVER)
        self._edge_characters = {text[edge] for text in texts for edge in (0, -1)}

    def found(self, text: str) -> list[str]:
        """The control tokens in `text`, in order."""
        return [match[match.lastindex or 0] for match in self._whole.finditer(text)]

    def mark(self, content: str, mark: str) -> str:
        """Puts marks behind each character that begins a control token, and before each that ends one.

        No control token can then lie in it, nor begin or end in it.
        """
        if not any(character in content for character in self._edge_characters):
            return content
        return self._edges.sub(mark, content)

    def begins_at_end(self, text: str) -> bool:
        """Whether a control token may begin in `text` that goes on behind it."""
        return any(text.endswith(beginning) for beginning in self._beginnings)

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(text[:end] for text in self.ids for end in range(1, len(text)))

    def cut(self, text: str) -> Iterable[str]:
        """`text` in parts, every control token cut in two."""
        position = 0
        for match in self._whole.finditer(text):
            middle = match.start(match.lastindex or 0) + 1
            yield text[position:middle]
            position = middle
        yield text[position:]

    def split(self, text: str) -> Iterable[str | int]:
        """The texts between control tokens, and the ids of the control tokens, in order."""
        position = 0
        for match in self._whole.finditer(text):
            yield text[position : match.start()]
            yield self.ids[match[match.lastindex or 0]]
            position = match.end()
        yield text[position:]


class _Sandbox(ImmutableSandboxedEnvironment):
    """jinja's own, which asks of each attribute of each object whether it is safe; that is known of `loop.first`."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is LoopContext and attribute in LOOP_ATTRIBUTES:
            return getattr(obj, attribute)
        return super().getattr(obj, attribute)


class ChatTemplate:
    """A compiled template. Rendering it has no effects."""

    def __init__(self, source: str, variables: Mapping[str, str]) -> None:
        """`variables` are what the template may name besides the chat (`bos_token` and the like).

        Raises ValueError when the template is not valid.
        """
        environment = _Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        # Not given, though some runtimes do: `strftime_now`. A date would make equal prompts differ, and
        # templates that use it have a fallback.
        try:
            tree = environment.parse(source)
            self.looks = looks_into(tree)
            """Whether the text around what was said may depend on what was said."""
            self.texts = frozenset({*variables.values(), *_texts(tree)})
            """All that stands in the template."""
            self._template = environment.from_string(tree)
        except TemplateError as error:
            raise ValueError(f"the chat template is not valid: {error}") from error
        # A context by `Template.render` copies jinja's whole chain of globals, which takes longer than the rendering.
        self._names = {**self._template.globals, **variables, "add_generation_prompt": True}

    def render(self, messages: Sequence[tuple[str, str]], controls: ControlTokens) -> tuple[str, str]:
        """Renders (role, content) turns and the opening of the answer.

        Returns the text with marks, and the mark. The template sees the marked contents: if it looks for a
        control token in them (some cut `</think>` out of old turns), it finds none.

        Raises TemplateRefusedError, and ValueError for an unknown role.
        """
        mark = next((m for m in MARKS if not any(m in content for _, content in messages)), None)
        if mark is None:
            raise ValueError("the chat uses every noncharacter of Unicode's block U+FDD0")
        return self.around([(role, controls.mark(content, mark)) for role, content in messages]), mark

    def around(self, messages: Sequence[tuple[str, str]]) -> str:
        """The same text, of contents in which nothing is to be marked. Raises as `render`."""
        for role, _ in messages:
            if role not in ROLES:
                raise ValueError(f"no such role: {role!r}")
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            context = self._template.new_context({**self._names, "messages": turns}, shared=True)
            return "".join(self._template.root_render_func(context))
        except TemplateError as error:
            raise TemplateRefusedError(str(error)) from error


def _texts(tree: nodes.Template) -> Iterable[str]:
    for constant in tree.find_all(nodes.Const):
        if isinstance(constant.value, str):
            yield constant.value
    for data in tree.find_all(nodes.TemplateData):
        yield data.data


def _refuse(message: str) -> NoReturn:
    raise TemplateRefusedError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    # jinja2's own filter escapes for HTML.
    return json.dumps(value, ensure_ascii=False, indent=indent)
