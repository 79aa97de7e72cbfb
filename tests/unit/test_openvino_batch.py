"""The child's bookkeeping, without an engine: the test plays the engine."""

from libs.tokens.blocks import chain, salt
from services.executor.child.wire import Stepped
from services.executor.openvino.batch import Batch, Turn
from services.executor.openvino.wire import Submit

BLOCK = 4


def work(work_id: int, prompt: list[int], **changes: object) -> Submit:
    fields: dict[str, object] = {
        "work_id": work_id, "prompt": prompt, "resumed": [], "max_tokens": 20, "deadline": 1e12, "temperature": 0.0,
        "top_p": 1.0, "top_k": 0, "seed": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
        "frequency_penalty": 0.0, "ignore_end": False, "log_probs": False, "grammar_form": "", "grammar_text": "",
        "hashes": None, **changes,
    }  # fmt: skip
    return Submit(**fields)  # type: ignore[arg-type]


def batch(slots: int = 2, blocks: int = 16) -> Batch:
    return Batch("m", slots, blocks, BLOCK)


def report(batch: Batch) -> Stepped:
    out = batch.report()
    assert out is not None
    batch.blocks.check_integrity()
    return out


def test_that_a_work_waits_is_told_even_first_and_alone() -> None:
    subject = batch()
    subject.submit(work(1, [1]), 0.0)
    assert report(subject).stats == (0, 1, 0, 0)
    assert subject.report() is None, "nothing is new"


def test_admits_in_order_up_to_the_slots() -> None:
    subject = batch(slots=2)
    for n in (1, 2, 3):
        subject.submit(work(n, [n] * 5), 0.0)
    assert [run.work.work_id for run in subject.admit(0.0)] == [1, 2]
    out = report(subject)
    assert out.started == [(1, 0), (2, 0)]
    assert out.stats == (2, 1, 4, 0)
    assert subject.report() is None, "nothing is new"


def test_a_work_without_blocks_waits_and_holds_up_the_rest() -> None:
    subject = batch(slots=4, blocks=4)
    for n, length in ((1, 12), (2, 8), (3, 4)):
        subject.submit(work(n, list(range(length))), 0.0)
    assert [run.work.work_id for run in subject.admit(0.0)] == [1]
    subject.end(subject.running[1], "stop")
    assert [run.work.work_id for run in subject.admit(0.0)] == [2, 3]


def test_blocks_follow_the_tokens() -> None:
    subject = batch()
    subject.submit(work(1, [1, 2, 3, 4, 5]), 0.0)
    [run] = subject.admit(0.0)
    for token in range(6, 14):
        subject.advance(run, [token], [])
    out = report(subject)
    assert (out.work_ids, out.offsets, out.counts) == ([1] * 8, list(range(8)), [1] * 8)
    assert out.stats == (1, 0, 3, 0)
    assert out.events == [("stored", chain(list(range(1, 13)), BLOCK, salt("m")))]
    subject.end(run, "stop")
    assert report(subject).stats == (0, 0, 0, 3)
    subject.submit(work(2, list(range(1, 14))), 0.0)
    subject.admit(0.0)
    assert report(subject).started == [(2, 12)]


def test_hashes_without_a_first_one_are_not_continued() -> None:
    subject = batch()
    subject.submit(work(1, [1, 2], hashes=[]), 0.0)
    [run] = subject.admit(0.0)
    subject.advance(run, list(range(10)), [])
    assert report(subject).events == []


def test_a_resumed_work_goes_on_behind_its_tokens() -> None:
    subject = batch()
    subject.submit(work(1, [1, 2], resumed=[3, 4]), 0.0)
    [run] = subject.admit(0.0)
    assert (run.tokens, run.remaining) == ([1, 2, 3, 4], 18)
    subject.advance(run, [5], [])
    subject.end(run, "length")
    out = report(subject)
    assert (out.offsets, out.token_ids, out.ended[0].output_tokens) == ([2], [5], 3)


def test_a_grammar_repeats_the_answer_first() -> None:
    subject = batch()
    subject.submit(work(1, [1, 2], resumed=[3, 4, 5], grammar_form="regex", log_probs=True), 0.0)
    [run] = subject.admit(0.0)
    assert (run.tokens, run.remaining, run.behind) == ([1, 2], 20, True)
    assert subject.advance(run, [3, 4], [-1.0, -2.0])
    assert report(subject).token_ids == []
    assert subject.advance(run, [5, 6], [-3.0, -4.0])
    assert not run.behind
    out = report(subject)
    assert (out.offsets, out.token_ids, out.log_probs) == ([3], [6], [-4.0])
    subject.submit(work(2, [1, 2], resumed=[3, 4], grammar_form="regex"), 0.0)
    [other] = subject.admit(0.0)
    assert not subject.advance(other, [3, 9], []), "it came out different"


def test_a_fault_sends_everyone_back_and_finds_the_culprit() -> None:
    subject = batch(slots=4)
    for n in (1, 2, 3):
        subject.submit(work(n, [n] * 5), 0.0)
    first, second, third = subject.admit(0.0)
    subject.advance(second, [7, 8], [])
    report(subject)
    subject.recover()
    out = report(subject)
    assert out.ended == []
    assert out.events[-1][0] == "cleared"
    assert out.stats == (0, 3, 0, 0)
    assert [run.work.work_id for run in subject.admit(0.0)] == [2], "who has answered goes first, one at a time"
    assert subject.admit(0.0) == []
    subject.advance(second, [9], [])
    assert subject.admit(0.0) == [first]
    subject.recover()
    out = report(subject)
    assert [(ended.work_id, ended.how) for ended in out.ended] == [(1, "INTERNAL")]
    assert (out.token_ids, out.offsets) == ([9], [2])
    subject.admit(0.0)
    subject.advance(second, [10], [])
    assert subject.admit(0.0) == [third]
    assert (second.answer, subject.faults) == ([7, 8, 9, 10], 2)


def test_deadlines_are_seen_wherever_the_work_is() -> None:
    subject = batch(slots=1)
    subject.submit(work(1, [1], deadline=10.0), 0.0)
    subject.submit(work(2, [1], deadline=5.0), 0.0)
    subject.submit(work(3, [1], deadline=20.0), 0.0)
    subject.admit(0.0)
    assert [run.work.work_id for run in subject.overdue(10.0)] == [1, 2]


def test_more_tokens_than_blocks_keeps_the_books_whole() -> None:
    subject = batch(slots=2, blocks=4)
    for n in (1, 2):
        subject.submit(work(n, [n] * 8), 0.0)
    runs = subject.admit(0.0)
    for token in range(12):
        for run in runs:
            assert subject.advance(run, [token], [])
            subject.blocks.check_integrity()
    for run in runs:
        subject.end(run, "length")
    assert report(subject).stats[2] == 0


def test_works_of_one_adapter_run_at_a_time() -> None:
    subject = batch(slots=4)
    for n, adapter in ((1, ""), (2, "a"), (3, ""), (4, "b")):
        subject.submit(work(n, [n] * 5, adapter=adapter, salt=adapter), float(n))
    assert [run.work.work_id for run in subject.admit(4.0)] == [1, 3]
    assert subject.turn(0.05) is None, "its quantum"
    turn = subject.turn(5.0)
    assert turn == Turn("a", flush=False)
    subject.advance(subject.running[1], [7], [])
    assert [run.work.work_id for run in subject.pause(5.0)] == [1, 3]
    subject.begin(turn, 5.0, 0.02)
    assert [run.work.work_id for run in subject.admit(5.0)] == [2]
    assert report(subject).swaps == [0.02]
    subject.end(subject.running[2], "stop")
    turn = subject.turn(5.05)
    assert turn == Turn("b", flush=False), "it has waited longer than those whose turn has been"
    subject.pause(5.1)
    subject.begin(turn, 5.1, 0.02)
    subject.admit(5.1)
    turn = subject.turn(6.0)
    assert turn is not None
    subject.pause(6.0)
    subject.begin(turn, 6.0, 0.02)
    first, third = subject.admit(6.0)
    assert (turn.adapter, first.tokens, third.tokens) == ("", [1, 1, 1, 1, 1, 7], [3] * 5)
    subject.advance(first, [8], [])
    assert report(subject).offsets == [1], "it goes on behind its tokens"


def test_what_must_not_be_paused_keeps_others_out() -> None:
    subject = batch(slots=2)
    subject.submit(work(1, [1] * 5, presence_penalty=0.5), 0.0)
    subject.submit(work(2, [2] * 5, adapter="a", salt="a"), 0.0)
    [run] = subject.admit(0.0)
    assert subject.turn(9.0) == Turn("a", flush=False), "it has made nothing yet"
    subject.advance(run, [7], [])
    assert subject.turn(9.0) is None
    subject.submit(work(3, [3] * 5), 9.0)
    assert subject.admit(9.0) == [], "nobody enters behind it"
    subject.end(run, "stop")
    assert subject.turn(9.1) == Turn("a", flush=False)


def test_a_replay_gets_further_in_each_turn() -> None:
    subject = batch()
    subject.submit(work(1, [1, 2], resumed=[3, 4], grammar_form="regex"), 0.0)
    [run] = subject.admit(0.0)
    assert run.holds
    subject.advance(run, [3, 4, 5], [])
    assert run.holds
    subject.advance(run, [6], [])
    assert not run.holds, "it has made as many tokens as it repeated"


def test_a_penalised_prompt_of_another_salt_waits_for_an_empty_cache() -> None:
    subject = batch(slots=4)
    for n, salt_ in ((1, "x"), (2, "y"), (3, "x")):
        subject.submit(work(n, [5, 6, 7, 8, n], salt=salt_, repetition_penalty=1.2), 0.0)
    assert [run.work.work_id for run in subject.admit(0.0)] == [1, 3]
    assert subject.turn(1.0) is None
    turn = subject.turn(10.0)
    assert turn == Turn("", flush=True)
    subject.pause(10.0)
    subject.begin(turn, 10.0, 1.5)
    assert report(subject).events[-1][0] == "cleared"
    assert [run.work.work_id for run in subject.admit(10.0)] == [2], "who was kept out goes first"
    assert subject.turn(12.0) is None
    subject.end(subject.running[2], "stop")
    assert subject.turn(12.1) == Turn("", flush=True), "nothing else runs"


def test_random_numbers_are_not_drawn_twice() -> None:
    subject = batch()
    subject.submit(work(1, [1, 2], resumed=[3], seed=10), 0.0)
    [run] = subject.admit(0.0)
    assert run.seed == 10
    subject.advance(run, [4, 5], [])
    assert run.seed == 12
