"""The longer parts of prompts, and their ids: a system prompt, or the earlier turns of a chat, come again and again.

A part is kept when it comes for the second time among SEEN, so prompts that come once take no room, and one chat's
turns are kept from its second request on. (A doorkeeper, as in Einziger et al., "TinyLFU", 2017.) What is kept is
young or old: when the young are half of what there is room for they become the old, and the old go that have not come
again meanwhile.

Whether a part came before can be told by timing, and all tenants share what is kept. An answer never depends on it.
Several threads may use it at once: each operation on a dict is atomic, and of a sum that is off by a part nothing is
left when the young become the old.
"""

from array import array
from collections.abc import Callable, Sequence

LEAST = 256
"""Characters of a part that is worth it."""
MOST_CHARACTERS = 4_000_000
"""In all parts that are kept; with their ids some 8 MB, if all are ASCII."""
SEEN = 4096
"""Parts that came once and are known by their hash alone; with one more, all are forgotten."""


class Parts:
    """The parts of one vocabulary."""

    def __init__(self, encode: Callable[[str], Sequence[int]]) -> None:
        self._encode = encode
        self._young: dict[str, array[int]] = {}
        self._old: dict[str, array[int]] = {}
        self._characters = 0
        """Of the young."""
        self._seen: set[int] = set()

    def encode(self, part: str) -> Sequence[int]:
        """The ids of a part, remembered or made by the function that this was made with."""
        if not LEAST <= len(part) <= MOST_CHARACTERS // 8:
            return self._encode(part)
        known = self._young.get(part)
        if known is not None:
            return known
        known = self._old.get(part)
        if known is None:
            ids = self._encode(part)
            if not self._came_before(part):
                return ids
            known = array("I", ids)
        self._keep(part, known)
        return known

    def _came_before(self, part: str) -> bool:
        number, seen = hash(part), self._seen
        if number in seen:
            return True
        if len(seen) >= SEEN:
            seen.clear()
        seen.add(number)
        return False

    def _keep(self, part: str, ids: "array[int]") -> None:
        if self._characters > MOST_CHARACTERS // 2:
            self._old, self._young, self._characters = self._young, {}, 0
        self._young[part] = ids
        self._characters += len(part)
