"""A run of the chaos suite: the short one of CI, or a longer one with a seed of your own (conftest.py)."""

import subprocess
import sys

import pytest

from tests.system.placement_mesh import ROOT

SEED = 1
SHORT = ("--minutes", "0.4", "--every", "2.2")
"""Some ten faults and the rest after them; with the mesh's start about a minute."""
START_S = 120.0


@pytest.mark.timeout(0)  # the run ends itself: it is as long as its options say
def test_nothing_is_lost_whatever_breaks(pytestconfig: pytest.Config) -> None:
    seed = pytestconfig.getoption("--chaos-seed", SEED)
    minutes = pytestconfig.getoption("--chaos-minutes", None)
    length = SHORT if minutes is None else ("--minutes", str(minutes))
    command = [sys.executable, "-m", "tests.system.chaos.run", "--seed", str(seed), *length]
    ran = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=START_S + 60 * 4 * (minutes or 0.5),
    )  # fmt: skip
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout
    assert " 0 violations" in ran.stdout.splitlines()[-2]
