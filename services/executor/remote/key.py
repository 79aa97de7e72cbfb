"""The key of an endpoint, in a file that may change."""

from pathlib import Path

import structlog

log = structlog.get_logger()

KEY_BYTES = 16 * 1024


class KeyUnreadable(Exception):
    """There is no key in the file; the text says why, and holds nothing of it."""


class ApiKey:
    """A key that is read again when its file has changed: secrets are replaced while processes run.

    Blocks for the time of one `stat`, and of reading a small local file.

    Args:
        path: "" is no key at all.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path) if path else None
        self._seen: tuple[int, int] | None = None
        self._value = ""

    def read(self) -> str:
        """The key; "" when there is none. Raises KeyUnreadable when it could never be read."""
        if self._path is None:
            return ""
        try:
            stat = self._path.stat()
            if (seen := (stat.st_mtime_ns, stat.st_ino)) != self._seen:
                self._value, self._seen = _key(self._path), seen
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it holds no key of one line in plain ASCII"
            if not self._value:
                raise KeyUnreadable(f"the key cannot be read from {self._path}: {why}") from None
            log.warning("key cannot be read again, the last one stays", path=str(self._path), reason=why)
        return self._value

    @property
    def value(self) -> str:
        """As read last."""
        return self._value


def _key(path: Path) -> str:
    """Raises OSError and ValueError."""
    with path.open("rb") as file:
        key = file.read(KEY_BYTES).decode("ascii").strip()
    if not key or not key.isprintable():
        raise ValueError
    return key
