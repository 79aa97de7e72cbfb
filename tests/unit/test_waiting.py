"""What a work waits for that has no copy to run on."""

from services.batcher.executors import ExecutorInfo
from services.batcher.seat import ModelCapacity
from services.batcher.waiting import gone, why_waiting
from tests.unit.lanes import HandStage

HERE = {"m@1": ModelCapacity(2, 100, 16)}


def info(ready: bool = False, coming: str = "", leaving: bool = False) -> ExecutorInfo:
    return ExecutorInfo(
        HandStage(), HERE if ready else {}, {"m@1": coming} if coming else {}, frozenset({"m@1"} if leaving else ())
    )


def test_a_pool_is_gone_when_neither_the_catalogue_nor_an_executor_has_it() -> None:
    assert gone("m@1", frozenset({"m@2"}), [])
    assert gone("m@1", frozenset({"m@2"}), [info()])
    assert not gone("m@1", frozenset({"m@1"}), [])


def test_a_pool_is_not_gone_while_a_copy_comes_answers_or_leaves() -> None:
    for one in (info(ready=True), info(coming="is being loaded"), info(leaving=True)):
        assert not gone("m@1", frozenset(), [info(), one])


def test_nothing_is_gone_while_the_catalogue_is_not_known() -> None:
    assert not gone("m@1", None, [])


def test_a_ready_copy_is_not_waited_for() -> None:
    assert why_waiting("m@1", {"a": info(ready=True), "b": info(coming="is being loaded")}) == ""


def test_what_comes_is_named_with_where_and_what_for() -> None:
    infos = {"b": info(coming="is being loaded"), "a": info(coming="waits to be loaded (9 bytes are needed)")}
    assert why_waiting("m@1", infos) == "m waits to be loaded (9 bytes are needed) on a; m is being loaded on b"
    assert why_waiting("m@2", infos) == "no executor has m yet"
    assert why_waiting("m@1", {"a": info(leaving=True)}) == "no executor has m yet"


def test_of_many_only_some_are_named() -> None:
    infos = {f"executor-{n}": info(coming="is being loaded") for n in range(9)}
    assert why_waiting("m@1", infos).count("is being loaded") == 3


def test_executors_that_do_not_answer_have_no_copy_that_is_ready() -> None:
    infos = {"a": info(ready=True), "b": info(ready=True)}
    assert why_waiting("m@1", infos, {"a"}) == ""
    assert why_waiting("m@1", infos, {"a", "b"}) == "a, which has m, does not answer; b, which has m, does not answer"
