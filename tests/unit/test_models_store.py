"""Folders that are whole or not there, whoever builds them and whoever is killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from libs.models.store import build_once

BUILDER = """
import sys, time
from pathlib import Path
from libs.models.store import build_once

def build(partial):
    with open(sys.argv[2], "a") as log:
        log.write("built\\n")
    (partial / "half").touch()
    print("building", flush=True)
    time.sleep(float(sys.argv[3]))
    (partial / "content").write_text("whole")

folder = build_once(Path(sys.argv[1]), build, lambda: print("waiting", flush=True))
print((folder / "content").read_text(), flush=True)
"""


def builder(folder: Path, log: Path, seconds: float) -> "subprocess.Popen[str]":
    arguments = [sys.executable, "-c", BUILDER, str(folder), str(log), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def said(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_builds_once(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(partial: Path) -> None:
        calls.append(partial)
        (partial / "content").write_text("whole")

    for _ in range(2):
        folder = build_once(tmp_path / "cache" / "thing", build)
        assert (folder / "content").read_text() == "whole"
    assert len(calls) == 1
    assert not calls[0].exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build(partial: Path) -> None:
        (partial / "half").touch()
        raise ValueError("no good")

    with pytest.raises(ValueError, match="no good"):
        build_once(tmp_path / "thing", build)
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]
    build_once(tmp_path / "thing", lambda partial: None)
    assert (tmp_path / "thing").is_dir()


def test_others_wait_for_the_one_that_builds(tmp_path: Path) -> None:
    folder, log = tmp_path / "thing", tmp_path / "log"
    with builder(folder, log, 1.0) as first:
        assert said(first) == "building"
        with builder(folder, log, 1.0) as second, builder(folder, log, 1.0) as third:
            assert [said(other) for other in (second, third)] == ["waiting"] * 2
            assert [said(process) for process in (first, second, third)] == ["whole"] * 3
    assert [process.returncode for process in (first, second, third)] == [0] * 3
    assert log.read_text() == "built\n"


def test_a_killed_builder_is_swept_away(tmp_path: Path) -> None:
    folder, log = tmp_path / "thing", tmp_path / "log"
    with builder(folder, log, 60.0) as killed:
        assert said(killed) == "building"
        killed.kill()
    assert not folder.exists()
    assert list(tmp_path.glob("thing.partial-*"))
    with builder(folder, log, 0.0) as second:
        assert [said(second), said(second)] == ["building", "whole"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "thing", "thing.lock"]
