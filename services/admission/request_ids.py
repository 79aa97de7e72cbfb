"""What requests are called that bring no name: 128 random bits of the operating system each, so no two are alike and
nobody can guess one.

They are fetched many at a time: whoever asks the operating system for random bits lets go of the interpreter, and has
to wait for it while another thread, as that of the audit log, has something to do.
"""

import secrets

AT_ONCE = 256
ID_BYTES = 16


class RequestIds:
    """A stock of ids."""

    def __init__(self) -> None:
        self._stock: list[str] = []

    def next(self) -> str:
        """An id, in hexadecimal."""
        if not self._stock:
            digits, length = secrets.token_hex(ID_BYTES * AT_ONCE), 2 * ID_BYTES
            self._stock = [digits[start : start + length] for start in range(0, len(digits), length)]
        return self._stock.pop()
