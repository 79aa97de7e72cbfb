"""The options of the chaos suite, whose form the schedule's owner chose: `pytest tests/system/chaos --chaos-seed N`.

The one conftest of this tree: only a conftest can add options to pytest.
"""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """The seed and the length of the run."""
    group = parser.getgroup("chaos", "faults on a running mesh")
    group.addoption("--chaos-seed", type=int, default=None, help="of the schedule of faults")
    group.addoption("--chaos-minutes", type=float, default=None, help="of faults; a short run without")
