"""The state of a mirror: which items stand, and which deletions are held back. Pure; time is an argument."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Generic

import structlog

from libs.registry.values import M, ValueUnreadable, decode

log = structlog.get_logger(__name__)


class Replica(Generic[M]):
    """A copy of a prefix.

    After an outage of etcd, leases may have run out whose owners are alive and about to announce themselves
    again. So deletions that are seen within `hold_s` seconds after a reconnect are held back: the item stays,
    and goes at the end of that time if it has not been written again by then.

    A value that cannot be read is logged once and skipped: what was read under that key before stands.

    Args:
        message_type: What the values are.
        hold_s: Seconds; 0 applies every deletion at once.
    """

    def __init__(self, message_type: type[M], hold_s: float) -> None:
        self._message_type = message_type
        self._hold_s = hold_s
        self._items: dict[str, M] = {}
        self._held: set[str] = set()
        self._hold_until: float | None = None
        self._unreadable: dict[str, bytes] = {}

    @property
    def items(self) -> Mapping[str, M]:
        """The items as they are now, by name; a view."""
        return MappingProxyType(self._items)

    @property
    def hold_until(self) -> float | None:
        """When `release` is due; None when nothing waits for it."""
        return self._hold_until

    def replace(self, values: Mapping[str, bytes], now: float, *, again: bool) -> bool:
        """Takes in everything that lies in etcd. Returns whether an item changed.

        Args:
            values: All values by name.
            now: Monotonic seconds.
            again: Whether this follows an outage, so that deletions are to be held back.
        """
        if again and self._hold_s > 0:
            self._hold_until = now + self._hold_s
        gone = [name for name in self._items if name not in values]
        self._unreadable = {name: value for name, value in self._unreadable.items() if name in values}
        changed = [self._put(name, value) for name, value in values.items()]
        return any([*changed, *(self._delete(name) for name in gone)])

    def apply(self, changes: Iterable[tuple[str, bytes | None]]) -> bool:
        """Takes in changes, oldest first; None is a deletion. Returns whether an item changed."""
        changed = False
        for name, value in changes:
            changed |= self._delete(name) if value is None else self._put(name, value)
        return changed

    def suspend(self) -> None:
        """etcd is away: what is held back stays until after the next `replace`."""
        self._hold_until = None

    def release(self) -> bool:
        """Ends holding back: what has not come back by now goes. Returns whether an item changed."""
        self._hold_until = None
        for name in self._held:
            self._items.pop(name, None)
        changed = bool(self._held)
        self._held.clear()
        return changed

    def check_integrity(self) -> None:
        """Raises AssertionError when the parts contradict each other."""
        if not self._held <= self._items.keys():
            raise AssertionError(f"held, but not there: {self._held - self._items.keys()}")

    def _put(self, name: str, value: bytes) -> bool:
        self._held.discard(name)
        try:
            message = decode(value, self._message_type)
        except ValueUnreadable as error:
            if self._unreadable.get(name) != value:
                self._unreadable[name] = value
                log.error("value skipped", name=name, error=str(error))
            return False
        self._unreadable.pop(name, None)
        before = self._items.get(name)
        self._items[name] = message
        return before != message

    def _delete(self, name: str) -> bool:
        self._unreadable.pop(name, None)
        if name not in self._items:
            return False
        if self._hold_until is not None:
            self._held.add(name)
            return False
        self._held.discard(name)
        del self._items[name]
        return True
