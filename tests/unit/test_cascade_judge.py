"""When is a cheap model's answer in doubt?"""

import json
import math

import pytest

from services.router.cascade import HEAD, MOST_CHARACTERS, SAID, judge

PERSON = json.dumps({"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}})
REFUSAL = r"I('m| am) (sorry|unable)"


def test_nothing_asked_nothing_doubted() -> None:
    assert judge("anything", None, None, ()) is None
    assert judge("", -9.0, None, ()) is None, "0 means that log-probabilities are not looked at"


def test_an_answer_that_the_model_was_unsure_of_is_in_doubt() -> None:
    said = judge("Paris", -1.25, None, (), -0.5)
    assert said == "the mean log-probability of its tokens is -1.250, below -0.5"
    assert judge("Paris", -0.5, None, (), -0.5) is None
    assert judge("Paris", -math.inf, None, (), -0.5) is not None


def test_an_engine_without_log_probabilities_is_believed() -> None:
    assert judge("Paris", None, None, (), -0.5) is None
    assert judge("Paris", math.nan, None, (), -0.5) is None


def test_the_cheapest_reason_is_the_one_that_is_told() -> None:
    said = judge("I am sorry", -2.0, PERSON, (REFUSAL,), -0.5)
    assert said is not None
    assert "log-probability" in said
    said = judge("I am sorry", -0.1, PERSON, (REFUSAL,), -0.5)
    assert said is not None
    assert "not JSON" in said


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ('{"name": "Ada"', "it is not JSON: "),
        ('```json\n{"name": "Ada"}\n```', "it is not JSON: "),
        ('{"name": NaN}', "it is not JSON: NaN is not JSON"),
        ("", "it is not JSON: "),
        ("[" * 20_000, "it is not JSON: "),
        ("{}", "it is not valid by its schema: at $: 'name' is a required property"),
        ('{"name": 1}', "it is not valid by its schema: at $.name: 1 is not of type 'string'"),
    ],
)
def test_an_answer_that_its_schema_refuses_is_in_doubt(answer: str, reason: str) -> None:
    said = judge(answer, None, PERSON, ())
    assert said is not None
    assert said.startswith(reason)


def test_a_valid_answer_is_not_in_doubt() -> None:
    assert judge('\n{"name": "Ada"} ', None, PERSON, (REFUSAL,)) is None


def test_a_reason_is_short() -> None:
    said = judge(json.dumps({"name": ["x" * 5_000]}), None, PERSON, ())
    assert said is not None
    assert len(said) <= SAID


@pytest.mark.parametrize(
    "schema",
    [
        "not JSON",
        '{"type": "nothing"}',
        '{"$ref": "https://example.com/elsewhere.json"}',
        '{"$ref": "#/$defs/missing"}',
        '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}',
    ],
)
def test_a_schema_that_cannot_judge_speaks_for_the_answer(schema: str) -> None:
    assert judge('{"name": 1}', None, schema, ()) is None


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"pattern": "^(x+x+)+y$"}}},
        {"patternProperties": {"^(x+x+)+y$": {"type": "number"}}, "additionalProperties": False},
    ],
)
def test_a_pattern_that_could_take_for_ever_is_not_run(schema: object) -> None:
    answer = json.dumps({"a": "x" * 2_000, "x" * 2_000: 1})
    assert judge(answer, None, json.dumps(schema), ()) is None


def test_sound_patterns_of_a_schema_count() -> None:
    schema = json.dumps({"properties": {"id": {"pattern": "^[a-z]*$"}, "text": {"pattern": ".*"}}})
    assert judge('{"id": "abc", "text": "x"}', None, schema, ()) is None
    assert judge('{"id": "ABC"}', None, schema, ()) is not None


def test_an_answer_that_is_too_long_for_its_schema_is_believed() -> None:
    assert judge('"' + "x" * MOST_CHARACTERS + '"', None, PERSON, ()) is None


def test_refusals_are_found_at_the_head_of_an_answer() -> None:
    assert judge("Well, I'm sorry, but no.", None, None, ("nothing", REFUSAL)) == f"it matches {REFUSAL!r}"
    assert judge("x" * HEAD + "I'm sorry", None, None, (REFUSAL,)) is None


@pytest.mark.parametrize("pattern", ["", "(", "(a+)+$", ".*"])
def test_a_pattern_that_no_rule_would_take_escalates_nothing(pattern: str) -> None:
    assert judge("a" * 5_000 + "!", None, None, (pattern,)) is None
