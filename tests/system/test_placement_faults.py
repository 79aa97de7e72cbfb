"""A short run of the fault test; `python -m tests.system.placement_faults` is the long one."""

from tests.system.placement_faults import run

KINDS = [
    "kill placement's leader in mid-plan",
    "kill an executor while it loads",
    "kill etcd's leader",
    "freeze placement's leader",
    "freeze an executor",
    "freeze etcd's leader",
    "change the demand",
]


async def test_no_placement_is_lost_or_doubled() -> None:
    faults = await run(len(KINDS), 1, KINDS)
    assert len(faults.history.seen) >= 3
