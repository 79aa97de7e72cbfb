"""Runs all tests in two halves at once: those that start meshes, and beside them, on what CPU is left, all others.

    python -m tests.suites [arguments of pytest for both]

What the others say is shown when the first half has ended. Ends with pytest's own closing line, for both together.
"""

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

ENGINES = sorted(str(path) for path in Path("tests/system").glob("test_*engine*.py"))
"""Of an engine each, without a mesh around it."""
SYSTEM = ["tests/system", *(f"--ignore={path}" for path in ENGINES)]
OTHERS = ["tests/unit", "tests/rpc", "tests/sim", *ENGINES]
NICE = 5
"""Of the others: they keep a quarter of a core. Tests of processes mostly wait, and find one when they do not."""
_CLOSING = re.compile(r"^(=+ )?\d+ [a-z]+(, \d+ [a-z]+)* in [\d.]+s( \([\d:]+\))?( =+)?$")
_COUNT = re.compile(r"(\d+) (passed|failed|error|errors|skipped|xfailed|xpassed|warnings?|deselected)\b")


def main(arguments: list[str]) -> int:
    """Returns pytest's exit status, the worse of two."""
    begin = time.monotonic()
    with tempfile.TemporaryFile("w+") as told:
        others = subprocess.Popen(
            ["nice", "-n", str(NICE), *command("others", OTHERS), *arguments],
            stdout=told,
            stderr=subprocess.STDOUT,
            text=True,
        )
        counts: dict[str, int] = {}
        try:
            system = subprocess.Popen([*command("system", SYSTEM), *arguments], stdout=subprocess.PIPE, text=True)
            assert system.stdout is not None
            show(system.stdout, counts)
            codes = [system.wait(), others.wait()]
        finally:
            others.kill()
        told.seek(0)
        show(told, counts)
    total = ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "no tests ran"
    print(f" {total} in {time.monotonic() - begin:.2f}s ".center(80, "="))
    return max(codes, key=abs)


def command(half: str, tests: list[str]) -> list[str]:
    """pytest on these, what it remembers apart from the other half's."""
    return [sys.executable, "-m", "pytest", "-o", f"cache_dir=.pytest_cache/{half}", *tests]


def show(lines: Iterable[str], counts: dict[str, int]) -> None:
    """Passes lines on, but for pytest's closing line, which is counted."""
    for line in lines:
        if _CLOSING.match(line.strip()):
            for count, what in _COUNT.findall(line):
                counts[what] = counts.get(what, 0) + int(count)
        else:
            print(line, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
