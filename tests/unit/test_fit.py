"""What a work asks for, against what a loaded model can do; and works that no engine could take."""

import math
from dataclasses import replace

import pytest
from msgspec import structs

from libs.catalogue import salted
from libs.errors import NotSupported
from libs.lane.work import Grammar, Sampling, Work
from services.executor.engine import Capabilities, Exactness
from services.executor.fit import faults, grammar_violation, prompt_faults, refusal
from tests.unit.lanes import work

NOTHING = Capabilities(Exactness.EXACT)
EVERYTHING = Capabilities(
    Exactness.EXACT, frozenset({"regex"}), log_probs=True, adapters="swap", penalties=True, ignore_end=True, top_k=True
)
ASKS_ALL = work(
    grammar=Grammar("regex", "a"), log_probs=True, adapter="a@1",
    sampling=Sampling(8, top_k=5, presence_penalty=0.5, ignore_end=True),
)  # fmt: skip


def test_a_plain_work_runs_anywhere() -> None:
    assert refusal(work(), NOTHING) is None
    assert refusal(work(sampling=Sampling(8, temperature=0.5, top_p=0.9, seed=7)), NOTHING) is None


def test_what_is_there_is_not_refused() -> None:
    assert refusal(ASKS_ALL, EVERYTHING) is None


def test_everything_that_lacks_is_said_at_once() -> None:
    error = refusal(ASKS_ALL, NOTHING)
    assert isinstance(error, NotSupported)
    for what in ("a grammar in the form regex", "log-probabilities", "adapters", "penalties", "ignore_end", "top_k"):
        assert what in error.message


def test_an_isolated_tenant_runs_where_prefixes_are_kept_apart_or_not_found() -> None:
    isolated = work(salt=salted("lora@1", "acme"))
    error = refusal(isolated, NOTHING)
    assert isinstance(error, NotSupported)
    assert "apart from those of others" in error.message
    assert "acme" in error.message
    assert refusal(isolated, replace(NOTHING, salted_cache=True)) is None
    assert refusal(isolated, replace(NOTHING, remembers=False)) is None
    assert refusal(work(salt="lora@1"), NOTHING) is None, "an adapter's prefix is no secret"


def test_a_form_of_grammar_is_not_another() -> None:
    error = refusal(structs.replace(ASKS_ALL, grammar=Grammar("ebnf", "a")), EVERYTHING)
    assert error is not None
    assert error.message.endswith("a grammar in the form ebnf")


@pytest.mark.parametrize(
    ("sampling", "acts"),
    [
        (Sampling(8, repetition_penalty=1.0), False),
        (Sampling(8, repetition_penalty=1.1), True),
        (Sampling(8, presence_penalty=0.0, frequency_penalty=0.0), False),
        (Sampling(8, presence_penalty=1.0), True),
        (Sampling(8, frequency_penalty=-1.0), True),
        (Sampling(8, top_k=0), False),
    ],
)
def test_a_penalty_that_does_nothing_is_none(sampling: Sampling, acts: bool) -> None:
    one: Work = work(sampling=sampling)
    assert (refusal(one, NOTHING) is not None) == acts


FIT = work(prompt=3, sampling=Sampling(8))


@pytest.mark.parametrize(
    ("unfit", "subjects"),
    [
        (structs.replace(FIT, prompt=()), ["input"]),
        (structs.replace(FIT, prompt=(1,) * 16), ["input"]),
        (structs.replace(FIT, prompt=(1,) * 15 + (100,)), ["input", "input"]),
        (structs.replace(FIT, prompt=(100,), resumed=(-1,)), ["input", "resumed_token_ids"]),
        (
            structs.replace(
                FIT, sampling=Sampling(0, temperature=math.nan, top_p=0.0, top_k=-1, repetition_penalty=0.0)
            ),
            ["sampling.max_tokens", "sampling.top_k", "sampling.temperature", "sampling.top_p",
             "sampling.repetition_penalty"],
        ),
        (
            structs.replace(FIT, sampling=Sampling(8, presence_penalty=3, frequency_penalty=-3)),
            ["sampling.presence_penalty", "sampling.frequency_penalty"],
        ),
        (structs.replace(FIT, prompt=(), grammar=Grammar("ebnf", " ")), ["input", "grammar.ebnf"]),
    ],
)  # fmt: skip
def test_everything_that_is_wrong_is_named_at_once(unfit: Work, subjects: list[str]) -> None:
    assert [violation.subject for violation in faults(unfit, 16, 100)] == subjects


def test_what_is_right_passes() -> None:
    edge = Sampling(1, temperature=0.0, top_p=1.0, top_k=0, repetition_penalty=10.0, presence_penalty=-2.0)
    schema = Grammar("json_schema", '{"type": "object"}')
    assert faults(structs.replace(FIT, prompt=(0,) * 15, resumed=(99,), sampling=edge, grammar=schema), 16, 100) == []


def test_what_is_not_known_is_left_to_the_engine() -> None:
    assert prompt_faults(structs.replace(FIT, prompt=(10**6,) * 500)) == []
    assert prompt_faults(structs.replace(FIT, prompt=())) != []


def test_prompts_are_judged_in_the_words_of_admission() -> None:
    long = structs.replace(FIT, prompt=(60,) * 100)
    assert [violation.description for violation in prompt_faults(long, 100, 50)] == [
        "has 100 tokens; at most 99 are allowed",
        "has ids outside the vocabulary of 50",
    ]


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Grammar("json_schema", '{"type": 3}'), "is not a JSON schema"),
        (Grammar("json_schema", "[1]"), "is not a JSON schema"),
        (Grammar("json_schema", "nothing"), "is not JSON"),
        (Grammar("json_schema", '{"enum": ["' + "x" * 70_000 + '"]}'), "is longer than"),
        (Grammar("regex", "(" * 65 + ")" * 65), "is nested deeper than"),
        (Grammar("ebnf", "\n"), "is empty"),
    ],
)
def test_grammars_that_need_no_compiler_to_be_refused(grammar: Grammar, said: str) -> None:
    [violation] = faults(structs.replace(FIT, grammar=grammar))
    assert violation == grammar_violation(grammar, violation.description)
    assert violation.description.startswith(said)
