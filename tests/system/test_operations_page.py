"""docs/operations.md keeps its word: its lines are run, by the real grpcurl, against a mesh with the real model.

In a `console` block a line that starts with "$ " is a command (it goes on while lines end in a backslash, or a
quote is open), and what follows is its output. A line "…" stands for any number of lines, "…" within a line for
anything in it. Runs of blanks count as one.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import StatusCode

from tests.system.mesh import Mesh

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "operations.md"
SCRIPTS = Path(sys.executable).parent
PROGRAMS = ("grpcurl", "headrace")
GRPCURL_ERRORS = 64
"""grpcurl exits with this plus the gRPC code."""
CODES = {code.name.replace("_", "").lower(): code.value[0] for code in StatusCode}
WITHIN_S = 3.0
"""Rules travel, and spans are written in batches: the page's output may take a moment to be there."""


@dataclass(frozen=True)
class Line:
    """A command of the page, with the output that it promises."""

    command: str
    output: str

    @property
    def exit_code(self) -> int:
        """What the promised output means: 0, or grpcurl's code for the error that is shown."""
        error = re.search(r"^ERROR:\n +Code: (\w+)$", self.output, re.M)
        return GRPCURL_ERRORS + CODES[error[1].lower()] if error else 0

    @property
    def pattern(self) -> re.Pattern[str]:
        """The promised output as an expression."""
        first, *others = _stretches(squeezed(self.output).splitlines())
        # Each stretch between two "…" at its first place, for good (atomic): else a page that is wrong takes ages
        # to be found so. Only the last one may have to look further: it has to end where the output ends.
        found = [f"(?:.*\n)*?{stretch}" for stretch in others]
        return re.compile(first + "".join(f"(?>{each})" for each in found[:-1]) + "".join(found[-1:]))


def squeezed(text: str) -> str:
    """The text with runs of blanks as one, and none around a line."""
    return "\n".join(re.sub(r"[ \t]+", " ", line).strip() for line in text.splitlines())


def _stretches(lines: list[str]) -> list[str]:
    """Expressions for the lines in front of, between and behind lines of "…"."""
    stretches = [""]
    for line in lines:
        if line == "…":
            stretches.append("")
        else:
            stretches[-1] += ".*".join(re.escape(part) for part in line.split("…")) + "\n"
    return stretches


def blocks(page: str) -> Iterator[tuple[str, list[Line]]]:
    """The page's console blocks: the heading above each, and its commands."""
    heading = ""
    for match in re.finditer(r"^## (?P<heading>[^\n]+)$|^```console\n(?P<body>.*?)^```$", page, re.M | re.S):
        if match["heading"]:
            heading = match["heading"]
        else:
            yield heading, [_line(part) for part in re.split(r"^\$ ", match["body"], flags=re.M)[1:]]


def _line(text: str) -> Line:
    """Takes lines into the command until the shell would run it."""
    lines = text.splitlines()
    for count in range(1, len(lines) + 1):
        command = "\n".join(lines[:count])
        if not command.endswith("\\") and command.count("'") % 2 == 0:
            return Line(command.replace("\\\n", " "), "\n".join(lines[count:]))
    raise ValueError(f"this command has no end: {text}")


BLOCKS = list(blocks(PAGE.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh(engine="openvino", executors=1, envoy=True) as running:
        yield running


def run(command: str, mesh: Mesh) -> tuple[int, str]:
    """Runs a command of the page; returns its exit code and all that it printed."""
    program, *arguments = shlex.split(
        command.replace("localhost:8400", mesh.target).replace("headrace-dev-key", mesh.key)
    )
    assert program in PROGRAMS, f"{program} is not a program of the page"
    ran = subprocess.run(
        [str(SCRIPTS / program), *arguments],
        env={**os.environ, "HEADRACE_STATE_DIR": str(mesh.state_dir), "COLUMNS": "160", "NO_COLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60,
    )  # fmt: skip
    return ran.returncode, ran.stdout


@pytest.mark.parametrize(
    "lines", [pytest.param(lines, id=f"{index}: {heading}") for index, (heading, lines) in enumerate(BLOCKS)]
)
def test_the_lines_do_what_the_page_says(mesh: Mesh, lines: list[Line]) -> None:
    for line in lines:
        until = time.monotonic() + WITHIN_S
        while True:
            code, output = run(line.command, mesh)
            shown = squeezed(output).replace(mesh.target, "localhost:8400") + "\n"
            kept = code == line.exit_code and line.pattern.fullmatch(shown)
            if kept or time.monotonic() > until:
                break
            time.sleep(0.2)
        assert kept, f"$ {line.command}\nexit code {code}, promised {line.exit_code}; output:\n{output}"


def test_the_page_has_every_call_of_the_public_services() -> None:
    """But Session, which nobody types by hand."""
    for proto in ("inference", "operations"):
        source = (ROOT / f"protos/headrace/{proto}/v1/{proto}.proto").read_text()
        package = re.search(r"^package ([\w.]+);", source, re.M)
        service = re.search(r"^service (\w+) \{\n(.*?)^\}", source, re.M | re.S)
        assert package is not None
        assert service is not None
        calls = {f"{package[1]}.{service[1]}/{name}" for name in re.findall(r"^  rpc (\w+)\(", service[2], re.M)}
        run_by_page = {line.command.split()[-1] for _, lines in BLOCKS for line in lines}
        assert calls - run_by_page <= {"headrace.inference.v1.InferenceService/Session"}
