"""Seeds of works."""

from libs.lane.work import Sampling
from services.executor.sampling import seed_of
from tests.unit.lanes import work


def test_a_work_that_is_sent_again_chooses_alike_and_others_do_not() -> None:
    assert seed_of(work(1)) == seed_of(work(1, tier=2)) != seed_of(work(2))
    assert seed_of(work(1, sampling=Sampling(8, seed=7))) == seed_of(work(2, sampling=Sampling(8, seed=7))) == 7


def test_what_is_drawn_is_not_drawn_again() -> None:
    last = work(sampling=Sampling(8, seed=2**64 - 1))
    assert (seed_of(last), seed_of(last, 2)) == (2**64 - 1, 1)
    assert seed_of(work(1), 3) == (seed_of(work(1)) + 3) % 2**64
