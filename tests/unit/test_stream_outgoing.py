"""What a stream says goes out within the windows, in order, and the same way alone and among many."""

import pytest

from libs.streams.frames import DATA, FRAME_BYTES, HEAD, head
from libs.streams.outgoing import PREFIX, SHORT, Outgoing, scatter


class Wire:
    """A connection whose frames are kept."""

    def __init__(self, window: int = 2**30) -> None:
        self.window = window
        self.writable = True
        self.said: dict[int, bytes] = {}
        self.frames = 0

    def send(self, data: bytes) -> None:
        stream = int.from_bytes(data[5:HEAD])
        size = len(data) - HEAD
        assert data[:HEAD] == head(size, DATA, 0, stream)
        assert 0 < size <= FRAME_BYTES
        self.said[stream] = self.said.get(stream, b"") + data[HEAD:]
        self.frames += 1


def message(data: bytes) -> bytes:
    """With its prefix."""
    return len(data).to_bytes(PREFIX) + data


@pytest.mark.parametrize("size", [0, 1, SHORT - PREFIX, SHORT - PREFIX + 1, FRAME_BYTES - PREFIX, FRAME_BYTES, 100_000])
def test_a_message_arrives_whole(size: int) -> None:
    wire = Wire()
    out = Outgoing(wire, 0x01020304, 2**30)
    out.write(bytes(size))
    assert wire.said == {0x01020304: message(bytes(size))}
    assert wire.frames == -(-(size + PREFIX) // FRAME_BYTES)
    assert out.window == wire.window == 2**30 - size - PREFIX


@pytest.mark.parametrize("of_stream", [True, False])
def test_no_more_goes_out_than_either_window_takes(of_stream: bool) -> None:
    wire = Wire(2**30 if of_stream else 7)
    out = Outgoing(wire, 1, 7 if of_stream else 2**30)
    out.write(b"abcd")
    out.write(b"ef")
    whole = message(b"abcd") + message(b"ef")
    assert wire.said == {1: whole[:7]}
    assert not out.room
    narrow = out if of_stream else wire
    for end in range(8, len(whole) + 1):
        narrow.window += 1
        out.flush()
        assert wire.said == {1: whole[:end]}
    assert out.room
    assert narrow.window == 0


def test_many_are_told_as_each_would_be() -> None:
    wire, alone = Wire(), Wire()
    texts = [b"x" * size for size in (0, 1, 9, SHORT - PREFIX)]
    outs = [Outgoing(wire, 2 * n + 1, 300) for n in range(len(texts))]
    assert scatter(outs, texts) == []
    for n, text in enumerate(texts):
        Outgoing(alone, 2 * n + 1, 300).write(text)
    assert wire.said == alone.said
    assert [out.window for out in outs] == [300 - len(text) - PREFIX for text in texts]
    assert wire.window == alone.window


def test_of_many_those_without_room_are_told_apart() -> None:
    wire, narrow, full = Wire(), Wire(9), Wire()
    full.writable = False
    late = Outgoing(wire, 7, 100)
    late.unsent = b"before"
    over = Outgoing(wire, 9, 100)
    over.over = True
    outs = [
        Outgoing(wire, 1, 100), Outgoing(wire, 3, 9), Outgoing(wire, 5, 100), late, over,
        Outgoing(narrow, 1, 100), Outgoing(full, 1, 100), Outgoing(wire, 11, 10),
    ]  # fmt: skip
    texts = [b"hello"] * len(outs)
    texts[2] = b"x" * (SHORT - PREFIX + 1)
    assert scatter(outs, texts) == [1, 2, 3, 4, 5, 6]
    assert wire.said == {1: message(b"hello"), 11: message(b"hello")}
    assert not narrow.said
    assert not full.said
    assert (narrow.window, outs[1].window, late.unsent) == (9, 9, b"before")
