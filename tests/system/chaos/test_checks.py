"""Every check of the chaos suite can fail: histories with one thing wrong, and the line that says so."""

from dataclasses import replace

import pytest

from tests.system.chaos.checks import violations
from tests.system.chaos.history import Expected, Injected, Record, Rest, Round, TenantUsage, Usage
from tests.system.chaos.report import Report
from tests.system.chaos.schedule import Fault

EXPECTED = [Expected((1, 2, 3), "abc", Usage(7, 3)), Expected((4, 5), "de", Usage(5, 2))]
DOCUMENTED = frozenset({"NO_EXECUTOR", "STAGE_UNAVAILABLE", "OVERLOADED"})
OUTAGE = Injected(Fault(1, 9.0, "kill all of a service", ("router-1", "router-2"), 1.0), 9.0, 11.0)
KILL = Injected(Fault(2, 9.0, "kill", ("router-1",), 1.0), 9.0, 11.0)


def finished(question: int = 0) -> Record:
    want = EXPECTED[question]
    return Record(
        question, "red", "generate", began_s=10.0, ended_s=12.0, ends=1, tokens=list(want.tokens), text=[want.text],
        usage=want.usage,
    )  # fmt: skip


def failed(reason: str) -> Record:
    return Record(0, "red", "session", began_s=10.0, ended_s=12.0, ends=1, error=reason, said="it said")


def rest(life: int = 1, **usage: TenantUsage) -> Rest:
    return Rest(life, resident=60_000_000, files=40, tasks=30, usage=usage)


def whole() -> Round:
    """Two requests, both well; the admission counted 10 requests before."""
    return Round(
        records=[finished(), finished(1)],
        faults=[KILL],
        before={"admission-1": rest(red=TenantUsage(10, 100, 1000)), "router-1": rest(1)},
        after={"admission-1": rest(red=TenantUsage(12, 112, 1005)), "router-1": rest(2)},
        first={"admission-1": rest(), "router-1": rest(1)},
    )


def wrong(one: Round) -> str:
    return "\n".join(violations(one, EXPECTED, ["red"], DOCUMENTED))


def test_a_round_without_fault_has_no_violation() -> None:
    assert wrong(whole()) == ""


@pytest.mark.parametrize("ends", [0, 2])
def test_a_request_ends_once(ends: int) -> None:
    one = whole()
    one.records[0].ends = ends
    assert f"ended {ends} times" in wrong(one)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([1, 2], "2 tokens came, and should be 3"),
        ([1, 2, 2, 3], "token 2 is 2, and should be 3"),
        ([1, 2, 3, 3], "4 tokens came, and should be 3"),
        ([2, 3], "token 0 is 2, and should be 1"),
    ],
    ids=["lost at the end", "repeated", "one too many", "lost in front"],
)
def test_tokens_are_those_of_an_undisturbed_run(tokens: list[int], said: str) -> None:
    one = whole()
    one.records[0].tokens = tokens
    assert said in wrong(one)


def test_a_text_is_that_of_its_tokens() -> None:
    one = whole()
    one.records[0].text = ["ab", "bc"]
    assert "the text is not" in wrong(one)


def test_an_answer_that_was_left_begins_right() -> None:
    one = whole()
    left = replace(finished(), usage=None, left=True, tokens=[1, 2])
    one.records[0] = left
    assert "token" not in wrong(one)
    left.tokens = [1, 3]
    assert "which did not finish: token 1 is 3, and should be 2" in wrong(one)


def test_a_finish_counts_each_token_once() -> None:
    one = whole()
    one.records[0].usage = Usage(7, 4)
    assert "its finish counts Usage(prompt=7, output=4)" in wrong(one)


def test_an_error_is_documented() -> None:
    one = whole()
    one.records = [failed("INTERNAL")]
    one.faults = [OUTAGE]
    assert "not documented: INTERNAL: it said" in wrong(one)


def test_an_error_has_a_fault_that_allows_it() -> None:
    one = whole()
    one.after = {**one.after, "admission-1": rest(red=TenantUsage(11, 100, 1000))}
    one.records = [failed("NO_EXECUTOR")]
    one.faults = [OUTAGE]
    assert wrong(one) == ""
    one.faults = [KILL]
    assert "NO_EXECUTOR, which no fault explains" in wrong(one)
    one.faults = [replace(OUTAGE, began_s=30.0, mended_s=32.0)]
    assert "NO_EXECUTOR, which no fault explains" in wrong(one)
    one.records, one.faults = [failed("OVERLOADED")], [OUTAGE]
    assert "OVERLOADED, which no fault explains" in wrong(one)


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (TenantUsage(13, 112, 1005), "3 requests are counted, and should be 2"),
        (TenantUsage(11, 112, 1005), "1 requests are counted, and should be 2"),
        (TenantUsage(12, 119, 1005), "19 prompt tokens are counted, and should be 12"),
        (TenantUsage(12, 112, 1008), "8 answer tokens are counted, and should be 5"),
        (TenantUsage(12, 112, 1002), "2 answer tokens are counted, and should be 5"),
        (TenantUsage(12, 112, 1005, running=1), "1 requests are counted as running"),
    ],
)
def test_a_tenants_page_counts_once(page: TenantUsage, said: str) -> None:
    one = whole()
    one.after = {**one.after, "admission-1": rest(red=page)}
    assert said in wrong(one)


def test_a_request_that_was_sent_again_is_counted_at_most_as_often() -> None:
    one = whole()
    one.records[0].resent = 1
    for page, said in (
        (TenantUsage(13, 119, 1008), ""),
        (TenantUsage(14, 119, 1008), "4 requests are counted, and should be 2 to 3"),
        (TenantUsage(13, 119, 1009), "9 answer tokens are counted, and should be 5 to 8"),
        (TenantUsage(13, 119, 1004), "4 answer tokens are counted, and should be 5 to 8"),
    ):
        one.after = {**one.after, "admission-1": rest(red=page)}
        assert said in wrong(one)
        assert bool(wrong(one)) is bool(said)


def test_an_admission_that_died_counted_no_more_than_was_sent() -> None:
    one = whole()
    one.after = {**one.after, "admission-1": rest(2, red=TenantUsage(1, 5, 2))}
    assert wrong(one) == ""
    one.after = {**one.after, "admission-1": rest(2, red=TenantUsage(3, 5, 2))}
    assert "3 requests are counted, and should be 0 to 2" in wrong(one)


@pytest.mark.parametrize(
    ("now", "said"),
    [
        (replace(rest(), resident=90_000_000), "admission-1 grew from 60 to 90 MB"),
        (replace(rest(), files=60), "admission-1 had 40 files open, and has 60"),
        (replace(rest(), tasks=60), "admission-1 had 30 tasks, and has 60"),
    ],
)
def test_a_process_that_lived_on_has_grown_little(now: Rest, said: str) -> None:
    one = whole()
    counted = one.after["admission-1"].usage
    one.after = {**one.after, "admission-1": replace(now, usage=counted)}
    assert said in wrong(one)
    one.first = {**one.first, "admission-1": rest(0)}  # another life
    assert said not in wrong(one)


def test_a_process_that_is_gone_is_told() -> None:
    one = whole()
    one.after = {"admission-1": one.after["admission-1"]}
    assert "router-1 is not there any more" in wrong(one)


def test_a_report_adds_rounds_up() -> None:
    report, one = Report(), whole()
    one.first = {"admission-1": replace(rest(), resident=50_000_000, files=38, tasks=29), "router-1": rest(1)}
    one.records.append(failed("OVERLOADED"))
    report.add(one, wrong(one).splitlines())
    report.add(one, [])
    assert "2 faults, 6 requests, 10 tokens, 0 sent again, errors {'OVERLOADED': 2}" in str(report)
    assert "grew by 10 MB, 2 files and 1 tasks at most, 1 violations" in str(report)


@pytest.mark.parametrize("what", ["busy", "deaths", "traces"])
def test_what_the_mesh_itself_tells_counts(what: str) -> None:
    one = whole()
    getattr(one, what).append("kvcache-1: headrace_kvcache_reserved_blocks 3")
    assert "headrace_kvcache_reserved_blocks 3" in wrong(one)
