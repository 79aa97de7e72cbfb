"""A paged KV cache with reuse: a tree of blocks, keyed at its root by salt and adapter, and its events."""

from collections import deque
from itertools import count
from typing import Any

from tensorrt_llm.runtime.hashing import block_key

HOST_BLOCK_BYTES = 1 << 20
"""What a block takes in the host's memory."""


class Block:
    """A stored block. `parent` is None at the root of a chain; one that is not full has no children."""

    def __init__(self, name: int, tokens: tuple[int, ...], parent: "Block | None", owner: tuple[Any, Any]) -> None:
        self.name = name
        self.tokens = tokens
        self.parent = parent
        self.owner = owner
        self.children: dict[tuple[int, ...], Block] = {}
        self.level = 0
        self.users = 0
        self.used_at = 0


class Events:
    """Numbered events, kept until they are taken; the oldest are dropped when there are too many."""

    def __init__(self, most: int, window: int) -> None:
        self._numbers = count()
        self._window = window
        self._kept: deque[dict[str, Any]] = deque(maxlen=most)
        self._on = most > 0

    def add(self, data: dict[str, Any]) -> None:
        if self._on:
            self._kept.append({"event_id": next(self._numbers), "data": data, "window_size": self._window})

    def take(self) -> list[dict[str, Any]]:
        taken = list(self._kept)
        self._kept.clear()
        return taken


class Cache:
    """Blocks of the GPU (level 0) and of the host (level 1)."""

    def __init__(self, blocks: int, block_tokens: int, host_blocks: int, events: Events) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._host_blocks = host_blocks
        self._events = events
        self._roots: dict[tuple[Any, Any, tuple[int, ...]], Block] = {}
        self._stored: list[Block] = []
        self._private = 0
        self._now = 0
        events.add({"type": "created", "num_blocks_per_cache_level": [blocks, host_blocks]})

    @property
    def used(self) -> int:
        """Blocks of requests that run."""
        return self._private + sum(1 for block in self._stored if block.users)

    def enter(self, tokens: list[int], most_tokens: int, owner: tuple[Any, Any]) -> list[Block] | None:
        """Blocks found for a prompt, when there is room for all of the request; else None."""
        found: list[Block] = []
        size = self.block_tokens
        for start in range(0, (len(tokens) - 1) // size * size, size):
            block = self._child(found[-1] if found else None, tuple(tokens[start : start + size]), owner)
            if block is None:
                break
            found.append(block)
        needed = -(-most_tokens // size) - len(found)
        others = sum(1 for block in self._stored if block.users and block not in found)
        if self._private + needed + len(found) + others > self.blocks:
            return None
        for block in found:
            self._use(block)
        for block in found:
            if block.level:
                self._make_room(1)
                block.level = 0
                self._updated(block, 0, 1)
        self._make_room(needed)
        self._private += needed
        return found

    def store(self, held: list[Block], tokens: list[int], owner: tuple[Any, Any], final: bool) -> int:
        """Makes blocks findable; those of the request become the tree's. Returns how many did."""
        size, made = self.block_tokens, 0
        parent: Block | None = None
        fresh: list[Block] = []
        end = len(tokens) if final else len(tokens) // size * size
        behind: Block | None = None
        for start in range(0, end, size):
            key = tuple(tokens[start : start + size])
            block = self._child(parent, key, owner)
            if block is None:
                if not fresh:
                    behind = parent
                name = block_key(key, parent.name if parent else 0, owner[1], owner[0])
                block = Block(name, key, parent, owner)
                self._siblings(parent)[self._key(parent, key, owner)] = block
                self._stored.append(block)
                fresh.append(block)
                self._private -= 1
                made += 1
                held.append(block)
                self._use(block)
            elif block not in held:
                if block.level:
                    break  # on the host: what runs has its own
                self._private -= 1
                made += 1
                held.append(block)
                self._use(block)
            parent = block
        if fresh:
            self._events.add(
                {
                    "type": "stored",
                    "parent_hash": behind.name if behind else None,
                    "blocks": [
                        {
                            "type": "stored_block",
                            "block_hash": block.name,
                            "tokens": [
                                {"type": "unique_token", "token_id": token, "token_extra_id": 0}
                                for token in block.tokens
                            ],
                            "cache_level": 0,
                            "priority": 35,
                        }
                        for block in fresh
                    ],
                }
            )
        return made

    def leave(self, held: list[Block], private: int) -> None:
        """A request ends."""
        self._private -= private
        for block in held:
            block.users -= 1

    def truth(self) -> list[dict[str, Any]]:
        """Every full block that is stored: its salt's number, its adapter's, and the tokens of its whole prefix."""
        facts = []
        for block in self._stored:
            if len(block.tokens) == self.block_tokens:
                tokens: list[int] = []
                up: Block | None = block
                while up is not None:
                    tokens = [*up.tokens, *tokens]
                    up = up.parent
                facts.append({"salt": block.owner[0], "adapter": block.owner[1], "tokens": tokens})
        return facts

    def _child(self, parent: Block | None, key: tuple[int, ...], owner: tuple[Any, Any]) -> Block | None:
        return self._siblings(parent).get(self._key(parent, key, owner))

    def _siblings(self, parent: Block | None) -> dict[Any, Block]:
        return self._roots if parent is None else parent.children

    @staticmethod
    def _key(parent: Block | None, key: tuple[int, ...], owner: tuple[Any, Any]) -> Any:
        return (*owner, key) if parent is None else key

    def _use(self, block: Block) -> None:
        self._now += 1
        block.users += 1
        block.used_at = self._now

    def _make_room(self, needed: int) -> None:
        while True:
            here = [block for block in self._stored if block.level == 0]
            if self._private + needed + len(here) <= self.blocks:
                return
            idle = [b for b in here if not b.users and not any(c.level == 0 for c in b.children.values())]
            victim = min(idle, key=lambda block: block.used_at)
            on_host = [block for block in self._stored if block.level]
            if self._host_blocks and len(victim.tokens) == self.block_tokens:
                if len(on_host) >= self._host_blocks:
                    oldest = min(
                        (b for b in on_host if not b.children and not b.users), key=lambda block: block.used_at
                    )
                    self._remove(oldest)
                victim.level = 1
                self._updated(victim, 1, 0)
            else:
                self._remove(victim)

    def _remove(self, block: Block) -> None:
        for child in list(block.children.values()):
            self._remove(child)
        siblings = self._siblings(block.parent)
        del siblings[self._key(block.parent, block.tokens, block.owner)]
        self._stored.remove(block)
        self._events.add({"type": "removed", "block_hashes": [block.name]})

    def _updated(self, block: Block, new: int, old: int) -> None:
        self._events.add(
            {
                "type": "updated",
                "block_hash": block.name,
                "cache_level": {"type": "event_diff", "new_value": new, "old_value": old},
                "priority": None,
            }
        )
