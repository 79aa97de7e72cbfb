"""A run of the chaos suite: the short one of CI, or a longer one with a seed of your own (conftest.py)."""

import subprocess
import sys

import pytest

from tests.system.chaos.schedule import CASTS, SHORT_EVERY_S, SHORT_MINUTES
from tests.system.placement_mesh import ROOT

START_S = 120.0


@pytest.mark.timeout(0)  # the run ends itself: it is as long as its options say
@pytest.mark.parametrize("cast", CASTS)
def test_nothing_is_lost_whatever_breaks(pytestconfig: pytest.Config, cast: str) -> None:
    seed, minutes = pytestconfig.getoption("--chaos-seed", None), pytestconfig.getoption("--chaos-minutes", None)
    length = ["--minutes", str(minutes or SHORT_MINUTES), *([] if minutes else ["--every", str(SHORT_EVERY_S)])]
    whom = ["--cast", cast, "--seed", str(CASTS[cast].short_seed if seed is None else seed)]
    command = [sys.executable, "-m", "tests.system.chaos.run", *whom]
    ran = subprocess.run(
        [*command, *length], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=START_S + 60 * 4 * (minutes or 1),
    )  # fmt: skip
    print(ran.stdout)
    assert ran.returncode == 0, ran.stdout
    assert ", 0 violations" in ran.stdout.splitlines()[-2]
