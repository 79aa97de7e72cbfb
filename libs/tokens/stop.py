"""Ends an answer in front of a stop string."""

from collections.abc import Sequence


class StopStrings:
    """Finds the first stop string in a text that comes in pieces.

    The answer ends as soon as it contains a stop string: at the one that is complete first, and if two are
    complete with the same character, at the longer one. What is emitted depends on the text alone, not on
    how it was cut into pieces; so a stream that goes on elsewhere emits the same.

    Holds back at most the longest stop string less one character.
    """

    __slots__ = ("_beginnings", "_firsts", "_held", "_longest", "_stops")

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises ValueError for an empty stop string: it would end every answer before it begins."""
        if not all(stops):
            raise ValueError("a stop string has at least one character")
        self._stops = tuple(stops)
        self._firsts = frozenset(stop[0] for stop in stops)
        self._beginnings = frozenset(stop[:end] for stop in stops for end in range(1, len(stop)))
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes in the next piece; returns what may be shown, and the stop string if the answer ends here.

        After a stop string was found the text behind it is dropped, and push must not be called again.
        """
        if not self._stops:
            return text, None
        text = self._held + text
        found = self._find(text)
        if found is not None:
            start, stop = found
            self._held = ""
            return text[:start], stop
        keep = self._beginning_of_a_stop(text)
        self._held = text[keep:]
        return text[:keep], None

    def flush(self) -> str:
        """The text held back, when the answer ended in another way."""
        held, self._held = self._held, ""
        return held

    def _find(self, text: str) -> tuple[int, str] | None:
        """Position and text of the stop string that is complete first."""
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if not found:
            return None
        _, start, stop = min(found)
        return start, stop

    def _beginning_of_a_stop(self, text: str) -> int:
        """Where the longest end of `text` starts that a stop string may begin with; its length if none."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._firsts and text[start:] in self._beginnings:
                return start
        return len(text)
