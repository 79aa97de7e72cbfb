"""What is told of an engine's exceptions."""

import pytest

from services.executor.child.fault import MOST_CHARACTERS, last_line


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("Traceback\n  at x\n\n  it does not fit  \n", "it does not fit"),
        ("Exception from src/cpp/grammar.cc:31: Check failed: (a > b) is false: no rule", "no rule"),
        ("", "ValueError"),
        ("x" * 10_000, "x" * MOST_CHARACTERS),
    ],
)
def test_the_last_line_without_places(said: str, line: str) -> None:
    assert last_line(ValueError(said)) == line
