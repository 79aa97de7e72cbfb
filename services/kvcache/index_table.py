"""A hash table from blocks to set numbers, in plain memory, that finds hundreds of blocks in one go.

A block may lie in one row only, the one that the low bits of its hash name (index_rows.py). So NumPy finds a whole
chain in a handful of operations: gather the rows, compare. What finds its row full goes into a dict beside them
(index_spill.py): 1 or 2 blocks in 100. Block hashes are uniform already (libs.tokens.blocks), so nothing is mixed; were
they not, more would lie in the dict, and everything would still hold.

It grows by linear hashing (Litwin, VLDB 1980), some rows at a time while changes come in: below a millisecond each, or
10 where a virtual machine has to get the next huge page from its host first.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from libs.kvcache.values import Hashes
from services.kvcache.index_rows import ROW, ZERO, Ints, Rows, Sets, to_hashes, to_keys
from services.kvcache.index_spill import Spill

Becomes = Callable[[int], int]
"""The set that blocks of a set go over to; 0 is that of blocks that are not there."""
Moves = list[tuple[int, int, int]]
"""Old set, new set, which differ, and number of blocks."""

FEW = 12
"""Up to here, blocks are looked for one by one: measured, that is where the two ways cost the same."""
MANY = 4096
"""Beyond this, they are taken in parts: what is there already needs no room, and that shows only part by part."""
GROW_AT, FULL_AT = 0.65, 0.75
"""Share of cells in use at which it begins to grow, and the one at which changes wait until it has."""
STEP_ROWS, STEP_CHANGES = 1024, 256
"""Upkeep goes by this many rows, or so many blocks of the dict, each time so many blocks have changed."""


class BlockTable:
    """Memory: 12 bytes for a cell, 16 to 37 for a block, and 130 for one in the dict.

    It does not shrink. Not bounded: whoever calls bounds the number of blocks.
    """

    def __init__(self) -> None:
        self.used = 0
        """Blocks in it."""
        self._rows = Rows()
        self._spill = Spill()
        self._becomes: Becomes = int
        self._upkeep: Iterator[Moves] | None = None
        self._owed = 0

    @property
    def busy(self) -> bool:
        """Whether it is growing, or being swept."""
        return self._upkeep is not None

    @property
    def memory_bytes(self) -> int:
        """Memory taken."""
        return self._rows.memory_bytes + self._spill.memory_bytes

    def leading(self, hashes: Hashes) -> tuple[list[int], list[int]]:
        """Sets of the leading blocks that are there, as runs: their sets, and how many blocks each has."""
        if not hashes or not (first := self.get(hashes[0])):
            return [], []
        if len(hashes) <= FEW:
            return self._leading_few(hashes, first)
        numbers = self._leading_many(hashes)
        (changes,) = (numbers[1:] != numbers[:-1]).nonzero()
        if not len(changes):
            return [first], [len(numbers)]
        starts = np.concatenate(([0], changes + 1, [len(numbers)]))
        return numbers[starts[:-1]].tolist(), np.diff(starts).tolist()

    def get(self, block: int) -> int:
        """The set of a block, 0 if it is not there."""
        cell = self._rows.find(block or ZERO)
        return self._rows.set_cells[cell] if cell >= 0 else self._spill.get(block or ZERO)

    def change(self, hashes: Hashes, becomes: Becomes) -> Moves:
        """Has blocks go over to the sets that `becomes` gives for the sets they are in; returns what went where."""
        if len(hashes) > MANY:
            parts = (hashes[start : start + MANY] for start in range(0, len(hashes), MANY))
            return [move for part in parts for move in self.change(part, becomes)]
        self._make_room(len(hashes))
        if self._upkeep is not None:
            self._owed += len(hashes)
        if len(hashes) <= FEW:
            return self._change_few(hashes, becomes)
        keys, distinct = to_keys(hashes), set(hashes)
        if len(distinct) < len(hashes) or 0 in distinct:
            keys = np.unique(keys)
        return self._change_many(keys, becomes)

    def sweep(self) -> None:
        """Begins to replace the sets of all blocks, step by step, by what `upkeep` is told; unless it is busy."""
        if self._upkeep is None:
            self._upkeep, self._owed = self._sweeping(), 0

    def upkeep(self, becomes: Becomes) -> Moves:
        """Goes on with growing or sweeping by as much as is owed for what was changed."""
        self._becomes = becomes
        moves: Moves = []
        while self._upkeep is not None and self._owed >= STEP_CHANGES:
            self._owed -= STEP_CHANGES
            moves += self._step()
        return moves

    def content(self) -> Iterator[tuple[int, int]]:
        """Every block and its set. Raises AssertionError if one lies where it would not be found, or twice."""
        rows, spilled = self._rows, dict(self._spill.items())
        yield from spilled.items()
        seen = set(spilled)
        for cell in rows.keys.nonzero()[0].tolist():
            key, number = rows.key_cells[cell], rows.set_cells[cell]
            if key in seen or rows.find(key) != cell or not number:
                raise AssertionError(f"block {key} is in the wrong place")
            seen.add(key)
            yield key, number
        if len(seen) != self.used or np.count_nonzero(rows.sets) != self.used - self._spill.count:
            raise AssertionError("the table does not count its blocks")

    # One by one.

    def _leading_few(self, hashes: Hashes, first: int) -> tuple[list[int], list[int]]:
        numbers, lengths = [first], [1]
        for block in hashes[1:]:
            number = self.get(block)
            if number == numbers[-1]:
                lengths[-1] += 1
            elif number:
                numbers.append(number)
                lengths.append(1)
            else:
                break
        return numbers, lengths

    def _change_few(self, hashes: Hashes, becomes: Becomes) -> Moves:
        rows, spill = self._rows, self._spill
        find, sets = rows.find, rows.set_cells
        moves: Moves = []
        last = new = blocks = 0
        known = False
        for block in hashes:
            key = block or ZERO
            cell = find(key)
            old = sets[cell] if cell >= 0 else spill.get(key)
            if old != last or not known:
                if blocks:
                    moves.append((last, new, blocks))
                last, new, blocks, known = old, becomes(old), 0, True
            if old == new:
                continue
            blocks += 1
            if cell >= 0:
                sets[cell] = new
                if not new:
                    rows.key_cells[cell] = 0
                    self.used -= 1
            elif old:
                spill.set(key, new)
                self.used -= not new
            else:
                self.used += 1
                if not rows.put(key, new):
                    spill.set(key, new)
        if blocks:
            moves.append((last, new, blocks))
        return moves

    # All at once.

    def _leading_many(self, hashes: Hashes) -> Sets:
        """Sets of the leading blocks that are there."""
        keys = to_keys(hashes)
        _, cells, there = self._rows.find_many(keys, self._rows.rows(keys))
        numbers: Sets = self._rows.sets.take(cells)
        if np.count_nonzero(there) < len(there):
            for place in (~there).nonzero()[0].tolist():
                number = self._spill.get(hashes[place] or ZERO)
                if not number:
                    return numbers[:place]
                numbers[place] = number
        return numbers

    def _change_many(self, keys: Ints, becomes: Becomes) -> Moves:
        rows = self._rows.rows(keys)
        content, cells, there = self._rows.find_many(keys, rows)
        found = np.count_nonzero(there)
        if found == len(keys):
            return self._rewrite(cells, becomes)
        moves: Moves = []
        if found:
            moves = self._rewrite(cells[there], becomes)
            missing = ~there
            keys, rows, content = keys[missing], rows[missing], content[missing]
        if self._spill.count and True in (inside := self._spill.among(to_hashes(keys))):
            spilled = np.array(inside)
            moves += self._change_few(to_hashes(keys[spilled]), becomes)
            keys, rows, content = keys[~spilled], rows[~spilled], content[~spilled]
        if len(keys) and (new := becomes(0)):
            self._insert(keys, rows, content, new)
            moves.append((0, new, len(keys)))
        return moves

    def _rewrite(self, cells: Ints, becomes: Becomes) -> Moves:
        """Gives the blocks of cells, which differ, new sets."""
        olds = self._rows.sets.take(cells)
        if np.count_nonzero(olds == olds[0]) == len(olds):
            return self._rewrite_equals(cells, int(olds[0]), becomes)
        order = olds.argsort()
        olds, cells = olds[order], cells[order]
        (cuts,) = (olds[1:] != olds[:-1]).nonzero()
        moves: Moves = []
        for start, stop in pairwise((0, *(cuts + 1).tolist(), len(olds))):
            moves += self._rewrite_equals(cells[start:stop], int(olds[start]), becomes)
        return moves

    def _rewrite_equals(self, cells: Ints, old: int, becomes: Becomes) -> Moves:
        new = becomes(old)
        if new == old:
            return []
        self._rows.sets[cells] = new
        if not new:
            self._rows.keys[cells] = 0
            self.used -= len(cells)
        return [(old, new, len(cells))]

    def _insert(self, keys: Ints, rows: Ints, content: Ints, number: int) -> None:
        """Puts new blocks, which differ, into their rows; `content` is what lies there."""
        self.used += len(keys)
        while True:
            full, keys = self._rows.put_many(keys, rows, content, number)
            for key in to_hashes(full):
                self._spill.set(key, number)
            if len(keys) <= FEW:
                break
            rows = self._rows.rows(keys)
            content = self._rows.content(rows)
        for key in to_hashes(keys):
            if not self._rows.put(key, number):
                self._spill.set(key, number)

    # Growing, and sweeping.

    def _make_room(self, blocks: int) -> None:
        while self.used + blocks > FULL_AT * self._rows.cells:
            self._grow()
            while self._upkeep is not None:
                self._step()
        if self._upkeep is None and self.used > GROW_AT * self._rows.cells:
            self._grow()

    def _step(self) -> Moves:
        assert self._upkeep is not None
        moves = next(self._upkeep, None)
        if moves is None:
            self._upkeep = None
        return moves or []

    def _grow(self) -> None:
        """Begins to grow, unless it does. A sweep that is under way is given up: what it leaves does no harm."""
        if not self._rows.growing:
            self._rows.double()
            self._upkeep, self._owed = self._growing(), 0

    def _growing(self) -> Iterator[Moves]:
        while self._rows.growing:
            self._rows.split(STEP_ROWS)
            yield []
        for keys in self._spill.parts(STEP_CHANGES):
            for key in keys:
                if self._rows.put(key, self._spill.get(key)):
                    self._spill.set(key, 0)
            yield []

    def _sweeping(self) -> Iterator[Moves]:
        for start in range(0, self._rows.cells, STEP_ROWS * ROW):
            (cells,) = self._rows.sets[start : start + STEP_ROWS * ROW].nonzero()
            yield self._rewrite(cells + start, self._becomes) if len(cells) else []
        for keys in self._spill.parts(STEP_CHANGES):
            yield self._change_few(keys, self._becomes)
