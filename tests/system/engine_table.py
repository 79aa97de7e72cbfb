"""The table of capabilities in docs/engines.md: every engine's own word, which the conformance suite has checked.

    python -m tests.system.engine_table [SUBJECT…]

loads each subject (all of the default run, unless some are named) and rewrites its row.
"""

import asyncio
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from services.executor.engine import Capabilities

PAGE = Path(__file__).resolve().parents[2] / "docs" / "engines.md"
COLUMNS = (
    "engine", "block events", "grammars", "log-probs", "adapters", "cache by salt", "tells hits", "seeds", "penalties",
    "ignore_end", "top_k", "priority", "resumed tokens", "speaks",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |"


def row(name: str, can: Capabilities) -> str:
    """A line of the table."""
    cells = [
        name,
        can.exactness.name.lower(),
        ", ".join(form for form in ("json_schema", "regex", "ebnf") if form in can.grammars) or "–",
        *("yes" if value else "–" for value in (can.log_probs,)),
        {"none": "–", "swap": "one at a time", "batch": "many in a batch"}[can.adapters],
        *(
            "yes" if value else "–"
            for value in (
                can.salted_cache, can.cached_tokens, can.seeds, can.penalties, can.ignore_end, can.top_k, can.priority,
            )
        ),
        {"prompt": "are prompt", "replay": "are made again"}[can.resume],
        "token ids" if can.token_ids else "text",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def rows() -> dict[str, str]:
    """The rows of the page, by engine."""
    lines = PAGE.read_text("utf-8").splitlines()
    start = lines.index(HEAD) + 2
    found = {}
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        found[line.split("|")[1].strip()] = line
    return found


def write(name: str, line: str) -> None:
    """Puts a row into the page, in the place of the one with the same name or at the end."""
    known = rows()
    text = PAGE.read_text("utf-8")
    if name in known:
        text = text.replace(known[name], line)
    else:
        last = list(known.values())[-1] if known else f"{HEAD}\n|{'---|' * len(COLUMNS)}"
        text = text.replace(last, f"{last}\n{line}")
    PAGE.write_text(text, "utf-8")


async def main(names: Sequence[str]) -> None:
    """Entry point."""
    from tests.system.engine_conformance import loaded
    from tests.system.engine_subjects import SUBJECTS

    for name in names or list(SUBJECTS):
        with tempfile.TemporaryDirectory() as folder:
            async with SUBJECTS[name](Path(folder)) as subject, loaded(subject) as it:
                write(name, row(name, it.can))
                print(row(name, it.can))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
