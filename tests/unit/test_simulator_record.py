"""What is kept of a request over the engines that it runs on."""

import pytest

from libs.lane.work import Tier
from services.simulator.record import Record
from services.simulator.values import OK, Arrival


def record(at: float = 10.0) -> Record:
    return Record(0, Arrival(at, "t", Tier.INTERACTIVE, 100, 5, (), 16))


def test_an_answer_from_one_engine() -> None:
    kept = record()
    kept.starts = 1
    kept.entered(10.5, 1)
    kept.left(10.9, 5, 0.15)
    served = kept.end(11.0, OK, 0.2, 32, "e")
    assert (served.first_token_s, served.end_s) == (0.5, 1.0)
    assert served.worst_gap_s == 0.15
    assert served.mean_gap_s == pytest.approx(0.1)
    assert (served.output_tokens, served.cached_tokens, served.pushes) == (5, 32, 0)


def test_a_pause_between_two_engines_counts_as_a_gap() -> None:
    kept = record()
    kept.starts = 2
    kept.entered(10.5, 1)
    kept.left(10.6, 2, 0.1)
    kept.entered(13.0, 3)
    kept.left(13.2, 5, 0.1)
    served = kept.end(13.3, OK, 0.0, 0, "f")
    assert served.first_token_s == 0.5
    assert served.worst_gap_s == pytest.approx(2.4)
    assert served.mean_gap_s == pytest.approx(2.7 / 4)
    assert served.pushes == 1


def test_a_request_without_a_token() -> None:
    served = record().end(10.0, "OVERLOADED", 0.0, 0, "")
    assert (served.first_token_s, served.worst_gap_s, served.mean_gap_s) == (None, 0.0, 0.0)
    assert (served.output_tokens, served.pushes, served.end_s) == (0, 0, 0.0)


def test_one_token_has_no_gap() -> None:
    kept = record()
    kept.entered(11.0, 1)
    kept.left(11.0, 1, 0.0)
    assert kept.end(11.0, OK, 0.0, 0, "e").mean_gap_s == 0.0
