"""What a client is still to be told of a conversation. Pure."""

from collections import deque

from libs.errors import HeadraceError
from services.admission.generation import Chunk, Finish, ToolStep

TOOL_STEPS = 8
"""In one chunk: with results of 64 KiB each, a message stays far below gRPC's limit."""


class Outgoing:
    """Chunks in order, merged as far as their order allows.

    For a client that reads slowly it holds the whole answer, which its contract bounds: tokens, and for each call a
    result of 64 KiB.

    Args:
        resumed: The client has the beginning of the answer already: it is behind mark 0.
    """

    def __init__(self, resumed: bool = False) -> None:
        self._chunks: deque[Chunk] = deque()
        self._shown = [""] if resumed else []

    def __bool__(self) -> bool:
        return bool(self._chunks)

    def push(self, made: Chunk) -> None:
        """Text, tokens and news; its `restart`, `tool_steps` and end are not looked at."""
        chunk = self._open() if made.text or made.count else self._last()
        chunk.text += made.text
        chunk.count += made.count
        chunk.token_ids += made.token_ids
        chunk.log_probs += made.log_probs
        chunk.version = made.version or chunk.version
        chunk.waiting = made.waiting
        if made.text or made.count:
            self._shown.append(made.text)

    def mark(self) -> int:
        """Stands for what has been said so far, for `restart`."""
        return len(self._shown)

    def restart(self, mark: int) -> None:
        """What was said behind the mark is void: the answer begins anew, with what was said before."""
        if len(self._shown) == mark:
            return
        del self._shown[mark:]
        self._chunks.append(Chunk(restart=True, text="".join(self._shown)))

    def tool(self, step: ToolStep) -> None:
        """News of a tool call."""
        chunk = self._last()
        if len(chunk.tool_steps) >= TOOL_STEPS:
            chunk = Chunk()
            self._chunks.append(chunk)
        chunk.waiting = ""
        chunk.tool_steps.append(step)

    def end(self, how: Finish | HeadraceError) -> None:
        """Nothing comes behind this."""
        chunk = self._last()
        chunk.waiting = ""
        if isinstance(how, Finish):
            chunk.finish = how
        else:
            chunk.error = how

    def take(self) -> Chunk:
        """What is to be told next."""
        return self._chunks.popleft() if self._chunks else Chunk()

    def _last(self) -> Chunk:
        if not self._chunks:
            self._chunks.append(Chunk())
        return self._chunks[-1]

    def _open(self) -> Chunk:
        """The chunk that text goes into: not one with tool steps, which are told behind its text."""
        if not self._chunks or self._chunks[-1].tool_steps:
            self._chunks.append(Chunk())
        return self._chunks[-1]
