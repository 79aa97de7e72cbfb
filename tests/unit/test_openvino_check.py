"""What reaches the engine, and in which words."""

from dataclasses import replace

import pytest
from msgspec import structs

from libs.errors import RequestInvalid
from libs.lane.work import Grammar, Sampling, Tier, Work
from libs.models.prepared import Facts
from services.executor.openvino.check import Limits, to_submit

FACTS = Facts(vocabulary=100, context_tokens=64, eos_ids=(2,), surprise=3.0)
LIMITS = Limits(context_tokens=64, block_tokens=4, facts=FACTS)
WORK = Work(
    "request", "tenant", Tier.INTERACTIVE, "model", (5, 6, 7), Sampling(max_tokens=10), deadline=1e12
)  # fmt: skip


def violations(work: Work) -> list[str]:
    with pytest.raises(RequestInvalid) as caught:
        to_submit(1, work, LIMITS)
    return [violation.subject for violation in caught.value.violations]


def test_defaults_are_the_models_own_then_plain_sampling() -> None:
    plain = to_submit(1, WORK, LIMITS)
    assert (plain.temperature, plain.top_p, plain.top_k, plain.repetition_penalty) == (1.0, 1.0, 0, 1.0)
    model = Facts(
        vocabulary=100, context_tokens=64, eos_ids=(2,), surprise=3.0, temperature=0.7, top_p=0.8, top_k=20,
        repetition_penalty=1.1,
    )  # fmt: skip
    own = to_submit(1, WORK, replace(LIMITS, facts=model))
    assert (own.temperature, own.top_p, own.top_k, own.repetition_penalty) == (0.7, 0.8, 20, 1.1)
    asked = structs.replace(WORK, sampling=Sampling(max_tokens=10, temperature=0.0, top_k=0))
    assert (to_submit(1, asked, replace(LIMITS, facts=model)).temperature) == 0.0


def test_tiny_temperatures_are_greedy() -> None:
    assert to_submit(1, structs.replace(WORK, sampling=Sampling(10, temperature=1e-5)), LIMITS).temperature == 0.0


def test_seeds_are_those_of_the_request() -> None:
    assert to_submit(1, WORK, LIMITS).seed == to_submit(2, WORK, LIMITS).seed
    assert to_submit(1, WORK, LIMITS).seed != to_submit(1, structs.replace(WORK, request_id="other"), LIMITS).seed
    seeded = structs.replace(WORK, sampling=Sampling(10, seed=2**64 - 1))
    assert to_submit(1, seeded, LIMITS).seed == 2**64 - 1
    assert to_submit(1, structs.replace(seeded, resumed=(5, 5)), LIMITS).seed == 1, (
        "other random numbers behind the resumed"
    )
    grammar = structs.replace(seeded, resumed=(5, 5), grammar=Grammar("regex", "a"))
    assert to_submit(1, grammar, LIMITS).seed == 2**64 - 1, "the same ones where the answer is repeated"


def test_the_context_bounds_the_answer() -> None:
    assert to_submit(1, structs.replace(WORK, prompt=(5,) * 60), LIMITS).max_tokens == 4


@pytest.mark.parametrize(
    ("salt", "adapter", "own"),
    [
        ("", "", ""),
        ("lora@1", "lora@1", "lora@1"),
        ("", "twin@1", " twin@1"),
        ("/acme", "", "/acme"),
        ("lora@1/acme", "lora@1", "lora@1/acme"),
        ("/acme", "twin@1", "/acme twin@1"),
    ],
)
def test_an_adapter_that_shares_prefixes_keeps_its_own_here(salt: str, adapter: str, own: str) -> None:
    named = structs.replace(WORK, prompt=(5,) * 9, block_hashes=(1, 2), block_tokens=4, salt=salt, adapter=adapter)
    submit = to_submit(1, named, LIMITS)
    assert submit.salt == own
    assert submit.hashes == ([1, 2] if own == salt else None)


def test_hashes_of_another_block_size_are_not_used() -> None:
    assert to_submit(1, WORK, LIMITS).hashes is None
    named = structs.replace(WORK, prompt=(5,) * 9, block_hashes=(1, 2, 3), block_tokens=4)
    assert to_submit(1, named, LIMITS).hashes == [1, 2]
    assert to_submit(1, structs.replace(named, block_tokens=8), LIMITS).hashes == []


def test_every_violation_comes_at_once() -> None:
    sampling = Sampling(
        max_tokens=0, temperature=-1.0, top_p=0.0, top_k=-1, repetition_penalty=0.0, presence_penalty=3.0,
        frequency_penalty=float("nan"),
    )  # fmt: skip
    work = structs.replace(WORK, prompt=(), resumed=(100,), sampling=sampling, grammar=Grammar("json_schema", "{"))
    assert violations(work) == [
        "input", "resumed_token_ids", "sampling.max_tokens", "sampling.top_k", "sampling.temperature",
        "sampling.top_p", "sampling.repetition_penalty", "sampling.presence_penalty", "sampling.frequency_penalty",
        "grammar.json_schema",
    ]  # fmt: skip


@pytest.mark.parametrize("prompt", [(5,) * 64, (100,), (-1,)])
def test_prompts_that_the_engine_would_take_silently(prompt: tuple[int, ...]) -> None:
    assert violations(structs.replace(WORK, prompt=prompt)) == ["input"]


def test_grammars_that_pass() -> None:
    for grammar in (Grammar("json_schema", '{"type": "object"}'), Grammar("regex", "[0-9]+")):
        submit = to_submit(1, structs.replace(WORK, grammar=grammar), LIMITS)
        assert (submit.grammar_form, submit.grammar_text) == (grammar.form, grammar.text)
