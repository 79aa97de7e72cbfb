"""Back-off, and logging once per change of state."""

import random

from structlog.testing import capture_logs

from libs.registry.contact import Backoff, Contact


def test_pauses_grow_to_their_bound_and_start_over() -> None:
    backoff = Backoff(0.1, 1.0, random.Random(7))
    pauses = [backoff.next() for _ in range(20)]
    for pause, bound in zip(pauses, [0.1, 0.2, 0.4, 0.8] + [1.0] * 16, strict=True):
        assert bound / 2 <= pause <= bound
    assert len(set(pauses)) == 20  # jitter: no two processes in step
    backoff.reset()
    assert backoff.next() <= 0.1


def test_logs_changes_not_attempts() -> None:
    contact = Contact("mirror of /x/")
    with capture_logs() as logs:
        contact.made()
        for _ in range(5):
            contact.lost(RuntimeError("gone"))
        contact.made()
        contact.made()
    assert [(entry["log_level"], entry["subject"]) for entry in logs] == [
        ("warning", "mirror of /x/"),
        ("info", "mirror of /x/"),
    ]
