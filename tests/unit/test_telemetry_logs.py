"""Logs, as a process writes them: each test runs one."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from libs.telemetry.logs import setup_logs

ROOT = Path(__file__).parents[2]
START = """
import logging, structlog, warnings
from dataclasses import dataclass
from libs.telemetry.logs import setup_logs
log = structlog.get_logger(__name__)
setup_logs("router", "router-0", "info")
"""


def run(code: str) -> list[dict[str, object]]:
    done = subprocess.run(
        [sys.executable, "-c", START + code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout == ""
    return [json.loads(line) for line in done.stderr.splitlines()]


def test_a_line_says_who_when_what_and_where_in_the_trace() -> None:
    (line,) = run(f"""
log.debug("not shown")
log.warning("lane broke", peer="batcher-0", lost=3, traceparent="00-{"a" * 32}-{"b" * 16}-01")
""")
    assert str(line.pop("timestamp")).endswith("Z")
    assert line == {
        "event": "lane broke", "level": "warning", "service": "router", "instance": "router-0",
        "peer": "batcher-0", "lost": 3, "trace_id": "a" * 32, "span_id": "b" * 16,
    }  # fmt: skip


def test_libraries_and_warnings_come_out_in_the_same_form() -> None:
    lines = run("""
logging.getLogger("grpc").info("chatter")
logging.getLogger("grpc").error("broken: %s", "pipe")
logging.getLogger("libs.telemetry.export").info("ours")
warnings.warn("old")
""")
    assert [(line["level"], line["logger"]) for line in lines] == [
        ("error", "grpc"), ("info", "libs.telemetry.export"), ("warning", "py.warnings"),
    ]  # fmt: skip
    assert lines[0]["event"] == "broken: pipe"
    assert {line["service"] for line in lines} == {"router"}


def test_prompts_stay_in() -> None:
    lines = run("""
@dataclass
class Work:
    prompt: object = "hidden"

log.info("a", prompt="hidden", text="hidden", tokens=12, token_ids=[1, 2], work=Work(), model="smollm2")
log.info("b", values=list(range(424242, 424342)), nested={"authorization": "hidden"}, items=[Work(), {1, 2}])
def fail(prompt):
    raise ValueError("bad")
try:
    fail("hid" + "den")
except ValueError as error:
    log.exception("c", error=error)
    logging.getLogger("x").exception("d")
log.info("e", text_of="x" * 5000)
""")
    text = json.dumps(lines)
    assert "hidden" not in text
    assert "424242" not in text
    assert (lines[0]["tokens"], lines[0]["work"], lines[0]["model"]) == (12, "<Work>", "smollm2")
    assert lines[1]["values"] == "[100 items]"
    assert lines[1]["items"] == ["<Work>", [1, 2]]
    assert lines[2]["error"] == "ValueError: bad"
    assert all("in fail" in str(line["exception"]) for line in lines[2:4])
    assert len(str(lines[4]["text_of"])) == 2000


def test_a_person_at_a_terminal_gets_plain_lines() -> None:
    terminal, end = pty.openpty()
    code = START + 'log.info("lane ready", peer="batcher-0")'
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=end, check=True, timeout=30)
    os.close(end)
    text = os.read(terminal, 65536).decode()
    os.close(terminal)
    assert "lane ready" in text
    assert "batcher-0" in text
    assert not text.startswith("{")


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="loud"):
        setup_logs("router", "router-0", "loud")
