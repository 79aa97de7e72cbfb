"""Header blocks read with a memory are what they are without one, and what is written can be read."""

import grpc
from hpack import Decoder, Encoder
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.streams.call import Ended
from libs.streams.headers import HeaderReader, trailers, written

TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12)
FIELDS = st.lists(st.tuples(TEXT.map(str.lower), TEXT), max_size=6)
Call = tuple[list[tuple[str, str]], bool, int]
CALLS = st.lists(st.tuples(FIELDS, st.booleans(), st.integers(1, 3)), max_size=25)


def decoded(decoder: Decoder, block: bytes) -> list[tuple[str, str]]:
    """By the library alone."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in decoder.decode(block, raw=True)]


@given(CALLS, st.sampled_from([0, 64, 200, 4096]))
@settings(max_examples=200)
def test_a_reader_that_remembers_reads_the_same(calls: list[Call], size: int) -> None:
    writer, plain, reader = Encoder(), Decoder(), HeaderReader()
    writer.header_table_size = size  # so small that entries are pushed out all the time
    for fields, huffman, times in calls:
        for _ in range(times):
            block = writer.encode(fields, huffman=huffman)
            wanted: dict[str, str] = {}
            for name, value in decoded(plain, block):
                wanted[name] = f"{wanted[name]},{value}" if name in wanted else value
            assert reader.read(block) == wanted


@given(st.lists(st.tuples(TEXT, st.text(st.characters(max_codepoint=255), max_size=300)), max_size=5))
def test_what_is_written_is_read(fields: list[tuple[str, str]]) -> None:
    assert decoded(Decoder(max_header_list_size=100_000), written(fields)) == fields


def test_long_values_and_statuses() -> None:
    for size in (126, 127, 128, 254, 255, 16_511, 16_512, 70_000):
        assert decoded(Decoder(max_header_list_size=100_000), written([("x", "y" * size)])) == [("x", "y" * size)]
    said = Ended(grpc.StatusCode.NOT_FOUND, "50 %: ü", (("a-bin", b"\xff"), ("b", "c")))
    assert decoded(Decoder(), trailers(said)) == [
        ("grpc-status", "5"), ("grpc-message", "50 %25: %C3%BC"), ("a-bin", "/w"), ("b", "c"),
    ]  # fmt: skip
