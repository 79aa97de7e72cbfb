"""What a template puts around the turns of a chat, by their roles: rendered and tokenized once.

Most templates only put text around what was said (`looking`), so of chats with the same roles only what was said
differs: a template that takes 25 µs to render and to search for control tokens becomes a look into a dict. Where
control tokens stand is the same, too: none can begin or end in what was said (`ControlTokens.mark`), and a template
where one could reach around it is left alone.
"""

import re
from collections.abc import Callable, Sequence

from libs.tokens.template import MARKS, ChatTemplate, ControlTokens

MOST_TURNS = 32
"""Of a chat whose shape is remembered."""
MOST_SHAPES = 128
"""That are remembered, a few kB each; with one more, all are forgotten."""

_PLACES = [chr(0xF0000 + number) for number in range(MOST_TURNS)]
"""Each stands for what was said in one turn: for private use, so a template hardly has them."""
_PLACE = re.compile(f"([{_PLACES[0]}-{_PLACES[-1]}])")

Step = list[int] | tuple[str | int, ...]
"""Tokens; or texts and numbers of turns, whose texts are to be tokenized together."""


class Shapes:
    """The shapes of one template. May be used from several threads.

    Args:
        encode: The tokens of a text from outside.
    """

    def __init__(self, template: ChatTemplate, controls: ControlTokens, encode: Callable[[str], Sequence[int]]) -> None:
        self._template = template
        self._controls = controls
        self._encode = encode
        self._known: dict[tuple[str, ...], Sequence[Step] | None] = {}
        self._usable = not (template.looks or any(map(_PLACE.search, (*template.texts, *controls.ids))))

    def render(self, messages: Sequence[tuple[str, str]]) -> list[int] | None:
        """The tokens of a prompt; None for chats and templates that this is not for. Raises as ChatTemplate does."""
        if not self._usable or len(messages) > MOST_TURNS:
            return None
        roles = tuple([role for role, _ in messages])
        steps = self._known[roles] if roles in self._known else self._learn(roles)
        if steps is None or any(MARKS[0] in content for _, content in messages):
            return None
        ids: list[int] = []
        for step in steps:
            if isinstance(step, tuple):
                ids += self._encode("".join([each if isinstance(each, str) else messages[each][1] for each in step]))
            else:
                ids += step
        return ids

    def _learn(self, roles: tuple[str, ...]) -> Sequence[Step] | None:
        text = self._template.around(list(zip(roles, _PLACES, strict=False)))
        reaching = any(map(self._controls.begins_at_end, _PLACE.split(text)[:-1:2]))
        if len(self._known) >= MOST_SHAPES:
            self._known.clear()
        known = self._known[roles] = None if reaching else self._steps(text)
        return known

    def _steps(self, text: str) -> Sequence[Step]:
        steps: list[Step] = [[]]
        for part in self._controls.split(text):
            if isinstance(part, str) and _PLACE.search(part):
                pieces = filter(None, _PLACE.split(part))
                steps += [tuple(_PLACES.index(each) if each in _PLACES else each for each in pieces), []]
            else:
                constant = steps[-1]
                assert isinstance(constant, list)
                constant += [part] if isinstance(part, int) else self._encode(part)
        return [step for step in steps if step]
