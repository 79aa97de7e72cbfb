"""The rows of a hash table: eight keys of 64 bits in a row, one line of the processor's cache, and a set number of
32 bits for each key.

`mmap` gives the memory: unlike an ndarray's it grows in place without being copied or touched, and it can be searched
for eight bytes, which makes single keys cheap.
"""

import contextlib
import mmap
import sys
from array import array

import numpy as np
from numpy.typing import NDArray

from libs.kvcache.values import Hashes

ROW = 8
"""Keys in a row."""
FIRST = 64
"""Rows at first."""

ZERO = 0x9E3779B97F4A7C15
"""The key of a block whose hash is 0: as likely to be taken for another as any two hashes."""

_KEY, _SET = 8, 4
_LINE = ROW * _KEY
_SPARE = _KEY
"""Bytes behind the last row: up to Python 3.11.3 `mmap.find` reads one byte more than it is to search (gh-105235), and
dies where there is none. Debian 12 has 3.11.2."""
_EMPTY = bytes(_KEY)
_WIDTH, _PLACE, _NONE = (
    np.array(ROW),
    np.array(ROW - 1),
    np.array(0),
)  # in arrays of no dimension, for NumPy takes longer over ints

Ints = NDArray[np.int64]
Sets = NDArray[np.uint32]


class Rows:
    """A key lies in the row that its low bits name. The key 0 is that of an empty cell. Cells are counted through.

    In arrays keys are the same 64 bits as signed integers, for NumPy has no unsigned indices.
    """

    def __init__(self) -> None:
        self.count = FIRST
        """Rows in use."""
        self._half = FIRST
        self._mask = FIRST - 1
        """Of as many rows as there is memory for: twice `_half` while it grows."""
        self._key_memory = _memory(FIRST * _LINE + _SPARE)
        self._set_memory = _memory(FIRST * ROW * _SET)
        self._search = self._key_memory.find
        self._view()

    @property
    def cells(self) -> int:
        """Cells in use."""
        return self.count * ROW

    @property
    def growing(self) -> bool:
        """Whether some of the rows have not been split yet."""
        return self.count <= self._mask

    @property
    def memory_bytes(self) -> int:
        """Memory taken."""
        return self.cells * (_KEY + _SET)

    def row(self, key: int) -> int:
        """The row of a key."""
        row = key & self._mask
        return row if row < self.count else row - self._half

    def find(self, key: int) -> int:
        """The cell of a key, or -1."""
        row = key & self._mask
        if row >= self.count:
            row -= self._half
        end = (row + 1) * _LINE
        at = self._search(key.to_bytes(_KEY, sys.byteorder), end - _LINE, end)
        return self._aligned(key.to_bytes(_KEY, sys.byteorder), at, end) if at & _KEY - 1 else at // _KEY

    def put(self, key: int, number: int) -> bool:
        """Puts a key that is not there into its row; False if that is full."""
        end = (self.row(key) + 1) * _LINE
        at = self._search(_EMPTY, end - _LINE, end)
        cell = self._aligned(_EMPTY, at, end) if at & _KEY - 1 else at // _KEY
        if cell < 0:
            return False
        self.key_cells[cell], self.set_cells[cell] = key, number
        return True

    def rows(self, keys: Ints) -> Ints:
        """The rows of keys."""
        rows: Ints = keys & self._masks
        if self.growing:
            rows -= self._half * (rows >= self.count)
        return rows

    def content(self, rows: Ints) -> Ints:
        """The keys in rows."""
        return self._grid.take(rows, 0)

    def find_many(self, keys: Ints, rows: Ints) -> tuple[Ints, Ints, NDArray[np.bool_]]:
        """What lies in all the rows; a cell for each key, and whether the key is there."""
        content = self._grid.take(rows, 0)
        # Of a row without the key the first cell is told.
        cells = rows * _WIDTH + (content == keys[:, None]).argmax(1)
        return content, cells, self.keys.take(cells) == keys

    def put_many(self, keys: Ints, rows: Ints, content: Ints, number: int) -> tuple[Ints, Ints]:
        """Puts keys into their rows, that differ and are not there; returns those whose row is full, and those that
        lost their cell to another of the same row, which may try again."""
        cells = rows * _WIDTH + (content == _NONE).argmax(1)
        taken, full = self.keys.take(cells), keys[:0]
        if np.count_nonzero(taken):
            free = taken == 0
            full, keys, cells = keys[~free], keys[free], cells[free]
        self.keys[cells] = keys
        self.sets[cells] = number
        lost = self.keys.take(cells) != keys
        return full, keys[lost] if np.count_nonzero(lost) else keys[:0]

    def double(self) -> None:
        """Makes room for twice as many rows, none of which is in use yet."""
        self._half = self.count
        self._mask = 2 * self._half - 1
        self.key_cells.release()
        self.set_cells.release()
        del self.keys, self.sets, self._grid
        self._key_memory.resize(2 * self._half * _LINE + _SPARE)
        self._set_memory.resize(2 * self._half * ROW * _SET)
        self._view()

    def split(self, most: int) -> None:
        """Moves the keys of some rows that belong into new ones there: to the same place of the row."""
        half, start = self._half, self.count - self._half
        stop = min(start + most, half)
        low, high = self._grid[start:stop], self._grid[half + start : half + stop]
        goes = (low & half) != 0
        np.multiply(low, goes, out=high)
        low -= high
        low_sets = self.sets[start * ROW : stop * ROW]
        high_sets = self.sets[(half + start) * ROW : (half + stop) * ROW]
        np.multiply(low_sets, goes.ravel(), out=high_sets)
        low_sets -= high_sets
        self.count = half + stop

    def _aligned(self, key: bytes, at: int, end: int) -> int:
        """The cell of what was found at a byte, unless that is the end of one key and the beginning of the next."""
        while at >= 0 and at % _KEY:
            at = self._search(key, at + -at % _KEY, end)
        return at // _KEY

    def _view(self) -> None:
        self._masks = np.array(self._mask)
        self.keys = np.frombuffer(self._key_memory, np.int64, (self._mask + 1) * ROW)
        self.sets = np.frombuffer(self._set_memory, np.uint32)
        self._grid = self.keys.reshape(-1, ROW)
        self.key_cells = memoryview(self._key_memory)[:-_SPARE].cast("Q")
        self.set_cells = memoryview(self._set_memory).cast("I")


def to_keys(hashes: Hashes) -> Ints:
    """Hashes as an array of keys."""
    keys = np.frombuffer(hashes if isinstance(hashes, array) else array("Q", hashes), np.int64)
    if np.count_nonzero(keys) < len(keys):
        keys = np.where(keys == 0, np.uint64(ZERO).view(np.int64), keys)
    return keys


def to_hashes(keys: Ints) -> list[int]:
    """The way back."""
    hashes: list[int] = keys.view(np.uint64).tolist()
    return hashes


def _memory(size: int) -> mmap.mmap:
    """Zeros; in huge pages where there are any, for most of the time of a lookup would go into page tables."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
