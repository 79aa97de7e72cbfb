"""The pages hold together: their links lead to something, and their tables are those of the code."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc import StatusCode

from headrace.inference.v1 import inference_pb2
from libs.errors import BY_REASON

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "services/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:")
"""A link with a scheme: not ours to check."""


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def links(page: Path) -> Iterator[str]:
    """Targets of the links of a page, in the line or by reference."""
    text = re.sub(r"`[^`\n]*`", "code", prose(page))
    yield from re.findall(r"\]\(\s*([^)\s]+)", text)
    yield from re.findall(r"^\[[^]]+\]:\s*(\S+)", text, re.M)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_something(page: Path) -> None:
    broken = []
    for link in links(page):
        if ELSEWHERE.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.is_relative_to(ROOT)
        if not (inside and target.exists()) or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_links_are_found_at_all() -> None:
    assert len(list(links(ROOT / "services/README.md"))) > 20
    assert len(list(links(ROOT / "docs/life-of-a-request.md"))) > 40


def test_the_table_of_errors_has_every_reason_with_its_code() -> None:
    text = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    table = re.search(r"^\| code \| reason .*?\n\n", text, re.M | re.S)
    assert table is not None
    rows = {(code, reason) for code, reason in re.findall(r"^\| ([A-Z_]+) \| ([A-Z_]+) \|", table[0], re.M)}
    names = {code.value[0]: code.name for code in StatusCode}
    assert rows == {(names[error.code], reason) for reason, error in BY_REASON.items()}
    public = {name.removeprefix("ERROR_REASON_") for name, _ in inference_pb2.ErrorReason.items()} - {"UNSPECIFIED"}
    assert {reason for _, reason in rows} == public


def test_a_stage_of_the_short_form_is_in_the_long_one() -> None:
    """Both tell the same way: what the list of services links, the page tells of."""

    def files(page: str) -> set[Path]:
        return {(ROOT / page).parent.joinpath(link).resolve() for link in links(ROOT / page) if link.endswith(".py")}

    only_short = files("services/README.md") - files("docs/life-of-a-request.md")
    assert {path.relative_to(ROOT).parts[1] for path in only_short} <= {"console", "simulator"}
