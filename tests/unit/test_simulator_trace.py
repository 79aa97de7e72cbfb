"""Reading traces: both formats, compressed or not, and everything that can be wrong with a file."""

import gzip
import json
from pathlib import Path

import pytest

from services.simulator import trace
from services.simulator.trace import MOST_FAULTS, Request, TraceInvalid, parse, read

MOONCAKE = [
    {"timestamp": 2000, "input_length": 513, "output_length": 3, "hash_ids": [0, 7]},
    {"timestamp": 500, "input_length": 512, "output_length": 1, "hash_ids": [0]},
]
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 23:59:59.7500000,374,44\r\n2023-11-17 00:00:01,5,1\r\n"


def faults(*lines: str) -> tuple[str, ...]:
    """What is said of a file with these lines."""
    with pytest.raises(TraceInvalid) as invalid:
        parse(lines)
    return invalid.value.faults


def test_mooncake_comes_in_order_from_its_first_arrival_on() -> None:
    found = parse(json.dumps(row) for row in MOONCAKE)
    assert (found.form, found.block_tokens, found.duration_s) == ("mooncake", 512, 1.5)
    assert found.requests == [Request(0.0, 512, 1, (0,)), Request(1.5, 513, 3, (0, 7))]


def test_azure_has_times_to_seven_decimals_and_no_prefixes() -> None:
    found = parse(AZURE.splitlines())
    assert (found.form, found.block_tokens) == ("azure", 0)
    assert [(each.prompt_tokens, each.output_tokens, each.prefix) for each in found.requests] == [
        (374, 44, ()), (5, 1, ()),
    ]  # fmt: skip
    assert found.requests[1].at_s == pytest.approx(1.25, abs=1e-6)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_file_is_told_by_its_content_not_by_its_name(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "anything"
    data = AZURE.encode()
    path.write_bytes(gzip.compress(data) if compressed else data)
    assert read(path).form == "azure"


def test_every_wrong_line_is_told_at_once() -> None:
    said = faults(
        json.dumps(MOONCAKE[0]),
        "{not json",
        "[1]",
        json.dumps({**MOONCAKE[0], "input_length": 0, "output_length": "3"}),
        json.dumps({**MOONCAKE[0], "hash_ids": [0]}),
        json.dumps({**MOONCAKE[0], "timestamp": -1}),
        json.dumps({**MOONCAKE[0], "hash_ids": [0, True]}),
    )
    assert [line.split(":")[0] for line in said] == [f"line {number}" for number in range(2, 8)]
    assert "input_length is 0" in said[2]
    assert "output_length is '3'" in said[2]
    assert "513 tokens have 2 blocks of 512, not 1" in said[3]
    assert "timestamp is -1" in said[4]
    assert "hash_ids is not a list" in said[5]


def test_wrong_lines_of_a_csv_are_told_with_their_column() -> None:
    said = faults("TIMESTAMP,ContextTokens,GeneratedTokens", "yesterday,5,-1", "2023-11-16 18:15:46.68,5", "")
    assert said == (
        'line 2: TIMESTAMP is "yesterday", not a time like 2023-11-16 18:15:46.6805900; '
        'GeneratedTokens is "-1", not a whole number from 1 on',
        "line 3: has 2 fields, not 3",
    )


def test_faults_are_bounded_and_counted() -> None:
    said = faults(*["{"] * (MOST_FAULTS + 5))
    assert len(said) == MOST_FAULTS + 1
    assert said[-1] == "and 5 more"


def test_what_is_no_trace_is_shown() -> None:
    with pytest.raises(TraceInvalid, match='line 2 begins neither trace format: it is "a,b"'):
        parse(["", "a,b"])
    for nothing in ([], ["", " "], ["TIMESTAMP,ContextTokens,GeneratedTokens"]):
        with pytest.raises(TraceInvalid, match="empty"):
            parse(nothing)


def test_damaged_files_are_told(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gz"
    cut.write_bytes(gzip.compress(AZURE.encode() * 100)[:-20])
    with pytest.raises(TraceInvalid, match="damaged"):
        read(cut)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceInvalid, match="not a text file"):
        read(binary)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")


def test_the_length_of_a_trace_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MOST_REQUESTS", 1)
    with pytest.raises(TraceInvalid, match="more than 1 requests"):
        parse(json.dumps(row) for row in MOONCAKE)
