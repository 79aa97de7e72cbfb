"""Traces of real traffic, read from files in two published formats.

- Mooncake (JSON lines): `timestamp` in milliseconds, `input_length` and `output_length` in tokens, `hash_ids` with one
  id per 512 tokens of the prompt. Equal ids mean that the prompts are equal up to and including that block. From the
  Mooncake project; paper: Qin et al., "Mooncake: Trading More Storage for Less Computation", FAST 25.
- Azure (CSV): `TIMESTAMP,ContextTokens,GeneratedTokens`. It says nothing of prefixes: each prompt is its own. From
  Azure's public data set; paper: Patel et al., "Splitwise: Efficient Generative LLM Inference Using Phase
  Splitting", ISCA 24.

Which one a file is, and whether it is compressed with gzip, is told by its content.
"""

import csv
import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

MOONCAKE_BLOCK = 512
"""Tokens per hash id."""
MOST_REQUESTS = 5_000_000
"""A longer trace is refused: it would not fit in memory."""
MOST_IDS = 1 << 40
"""Ids of prefixes are below it: a mix has room for copies of them within 64 bits."""
MOST_FAULTS = 20
"""Reported by line; those beyond are counted."""
_AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace."""

    at_s: float
    """Seconds since the first one."""
    prompt_tokens: int
    output_tokens: int
    prefix: tuple[int, ...] = ()
    """One id per block of the prompt, the last one perhaps not full; empty where the trace does not know."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A trace, in order of arrival."""

    form: str
    """"mooncake" or "azure"."""
    block_tokens: int
    """Tokens that an id of a prefix stands for; 0 where there are none."""
    requests: Sequence[Request]

    @property
    def duration_s(self) -> float:
        """From the first arrival to the last."""
        return self.requests[-1].at_s if self.requests else 0.0


class TraceInvalid(Exception):
    """A file that is no trace. `faults` says where and why, one line each, at most MOST_FAULTS and a count."""

    def __init__(self, headline: str, faults: Sequence[str] = ()) -> None:
        super().__init__("\n".join([headline, *faults]))
        self.headline = headline
        self.faults = tuple(faults)


def read(path: Path) -> Trace:
    """Reads a file, compressed or not. Raises TraceInvalid, and OSError where it cannot be read."""
    with path.open("rb") as probe:
        compressed = probe.read(2) == _GZIP
    try:
        with gzip.open(path, "rt", encoding="utf-8") if compressed else path.open(encoding="utf-8") as lines:
            return parse(lines)
    except (EOFError, gzip.BadGzipFile) as error:
        raise TraceInvalid(f"{path} is damaged: {error}") from error
    except UnicodeDecodeError as error:
        raise TraceInvalid(f"{path} is not a text file: {error.reason} at byte {error.start}") from error


def parse(lines: Iterable[str]) -> Trace:
    """Reads the lines of a trace; the order of arrival is made where they are not in it. Raises TraceInvalid."""
    numbered = ((number, line.strip()) for number, line in enumerate(lines, 1))
    filled = ((number, line) for number, line in numbered if line)
    first = next(filled, None)
    if first is None:
        raise TraceInvalid("the trace is empty: it has no request")
    faults = _Faults()
    if first[1].startswith("{"):
        form, block_tokens = "mooncake", MOONCAKE_BLOCK
        requests = list(_mooncake(_chain(first, filled), faults))
    elif [name.strip() for name in first[1].removeprefix("\ufeff").split(",")] == list(_AZURE):
        form, block_tokens = "azure", 0
        requests = list(_azure(filled, faults))
    else:
        shown = first[1] if len(first[1]) <= 60 else first[1][:60] + "…"
        raise TraceInvalid(
            f'line {first[0]} begins neither trace format: it is "{shown}"',
            ["expected a JSON object a line (Mooncake) or the header " + ",".join(_AZURE) + " (Azure)"],
        )
    faults.check()
    if not requests:
        raise TraceInvalid("the trace is empty: it has a header and no request")
    requests.sort(key=lambda request: request.at_s)
    start = requests[0].at_s
    moved = [Request(each.at_s - start, each.prompt_tokens, each.output_tokens, each.prefix) for each in requests]
    return Trace(form, block_tokens, moved)


class _Faults:
    """What is wrong, line by line; bounded."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._count = 0

    def add(self, number: int, what: str) -> None:
        self._count += 1
        if len(self._lines) < MOST_FAULTS:
            self._lines.append(f"line {number}: {what}")

    def check(self) -> None:
        if self._count:
            rest = self._count - len(self._lines)
            things = "1 line is" if self._count == 1 else f"{self._count} lines are"
            raise TraceInvalid(f"{things} wrong", [*self._lines, *([f"and {rest} more"] if rest else [])])


def _chain(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


def _mooncake(lines: Iterator[tuple[int, str]], faults: _Faults) -> Iterator[Request]:
    for index, (number, line) in enumerate(lines):
        _bound(index)
        try:
            row = json.loads(line)
        except ValueError as error:
            faults.add(number, f"is not JSON: {error}")
            continue
        if not isinstance(row, dict):
            faults.add(number, "is not a JSON object")
            continue
        wrong = [*_mooncake_faults(row)]
        if wrong:
            faults.add(number, "; ".join(wrong))
            continue
        prefix = tuple(row.get("hash_ids", ()))
        yield Request(row["timestamp"] / 1000, row["input_length"], row["output_length"], prefix)


def _mooncake_faults(row: dict[str, object]) -> Iterator[str]:
    at = row.get("timestamp")
    if isinstance(at, bool) or not isinstance(at, int | float) or not 0 <= at < float("inf"):
        yield f"timestamp is {at!r}, not milliseconds from 0 on"
    for name in ("input_length", "output_length"):
        value = row.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            yield f"{name} is {value!r}, not a whole number from 1 on"
    ids, tokens = row.get("hash_ids", []), row.get("input_length")
    if not isinstance(ids, list) or any(type(each) is not int or not 0 <= each < MOST_IDS for each in ids):
        yield f"hash_ids is not a list of whole numbers from 0 to {MOST_IDS - 1:,}"
    elif ids and isinstance(tokens, int) and tokens > 0 and len(ids) != -(-tokens // MOONCAKE_BLOCK):
        yield f"{tokens} tokens have {-(-tokens // MOONCAKE_BLOCK)} blocks of {MOONCAKE_BLOCK}, not {len(ids)}"


def _azure(lines: Iterator[tuple[int, str]], faults: _Faults) -> Iterator[Request]:
    for index, (number, line) in enumerate(lines):
        _bound(index)
        row = next(csv.reader([line]))
        if len(row) != len(_AZURE):
            faults.add(number, f"has {len(row)} fields, not {len(_AZURE)}")
            continue
        wrong: list[str] = []
        at = _seconds(row[0])
        if at is None:
            wrong.append(f'TIMESTAMP is "{row[0]}", not a time like 2023-11-16 18:15:46.6805900')
        for name, value in zip(_AZURE[1:], row[1:], strict=True):
            if not value.strip().isdecimal() or len(value) > 12 or int(value) < 1:
                wrong.append(f'{name} is "{value}", not a whole number from 1 on')
        if wrong or at is None:
            faults.add(number, "; ".join(wrong))
        else:
            yield Request(at, int(row[1]), int(row[2]))


def _seconds(text: str) -> float | None:
    """Unix seconds of a time in UTC with any number of decimals (datetime takes six)."""
    whole, _, decimals = text.strip().partition(".")
    if decimals and not decimals.isdecimal():
        return None
    try:
        return datetime.fromisoformat(f"{whole}+00:00").timestamp() + (float(f"0.{decimals}") if decimals else 0.0)
    except ValueError:
        return None


def _bound(index: int) -> None:
    if index >= MOST_REQUESTS:
        raise TraceInvalid(f"the trace has more than {MOST_REQUESTS:,} requests: cut it into parts")
