"""An answer under a contract, step by step: what is shown of it, its repairs, and its end."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from libs.errors import (
    Cancelled,
    ContractBroken,
    DeadlinePassed,
    HeadraceError,
    InternalError,
    Overloaded,
    QuotaExceeded,
)
from libs.lane.work import FinishReason, Grammar, Note, Outcome
from tests.unit.conversations import SCHEMA, SPACIOUS, Talk, ToolServer, call, sleep, talking, tool_server
from tests.unit.letters import tokens


@pytest.fixture
async def server() -> AsyncIterator[ToolServer]:
    async with tool_server() as running:
        yield running


@pytest.fixture
async def talk(server: ToolServer, tmp_path: Path) -> AsyncIterator[Talk]:
    async with talking(server, tmp_path) as made:
        yield made


def bare(talk: Talk) -> None:
    """The model cannot be held to a grammar."""
    talk.policy = replace(talk.policy, models={"letters": replace(SPACIOUS, capabilities=("chat",))})


# --- output schemas --------------------------------------------------------------------------------


async def test_a_constrained_answer_is_shown_as_it_is_made(talk: Talk) -> None:
    await talk.ask("form", token_ids=True)
    work = await talk.work(1)
    assert work.grammar == Grammar("json_schema", SCHEMA)
    assert b"schema" not in bytes(work.prompt), "the grammar says it"
    talk.say('{"n"')
    await talk.take(lambda talk: talk.text == '{"n"')
    talk.say(": 1}", Outcome(FinishReason.STOP))
    finish = await talk.ended()
    assert talk.text == '{"n": 1}'
    assert [token for chunk in talk.chunks for token in chunk.token_ids] == tokens('{"n": 1}')
    assert finish.output_tokens == 8
    assert talk.counted("headrace_admission_contracts_total", contract="form", result="OK") == 1
    assert talk.counted("headrace_admission_conversations") == 0


async def test_a_constrained_answer_that_is_cut_is_not_valid(talk: Talk) -> None:
    await talk.ask("strict")
    await talk.says(1, '{"n": ', FinishReason.LENGTH)
    with pytest.raises(ContractBroken) as caught:
        await talk.ended()
    assert "was cut after 6 tokens" in caught.value.violations[0].description


async def test_a_constrained_answer_that_is_wrong_begins_anew(talk: Talk) -> None:
    await talk.ask("form")
    await talk.says(1, "{}")
    prompt = await talk.says(2, '{"n": 1}')
    assert "'n' is a required property" in prompt
    finish = await talk.ended()
    assert talk.text == '{"n": 1}'
    assert sum(chunk.restart for chunk in talk.chunks) == 1
    assert finish.output_tokens == 10
    assert talk.counted("headrace_admission_repairs_total", contract="form") == 1


async def test_an_unconstrained_answer_is_shown_once_it_is_valid(talk: Talk) -> None:
    bare(talk)
    await talk.ask("form", token_ids=True)
    work = await talk.work(1)
    assert work.grammar is None
    assert SCHEMA.encode() in bytes(work.prompt)
    await talk.says(1, "One.")
    await talk.says(2, '{"n": ', FinishReason.LENGTH)
    assert talk.text == ""
    await talk.says(3, '{"n": 1}')
    finish = await talk.ended()
    assert talk.text == '{"n": 1}'
    assert not any(chunk.restart for chunk in talk.chunks)
    assert [token for chunk in talk.chunks for token in chunk.token_ids] == tokens('{"n": 1}')
    assert (finish.output_tokens, finish.prompt_tokens) == (18, sum(len(work.prompt) for work in talk.lane.sent))


async def test_repairs_are_bounded_and_every_violation_is_told(talk: Talk) -> None:
    bare(talk)
    await talk.ask("form")
    for number in (1, 2, 3):
        await talk.says(number, "[]" if number == 3 else "{}")
    with pytest.raises(ContractBroken) as caught:
        await talk.ended()
    assert [violation.subject for violation in caught.value.violations] == ["answer"]
    assert "is not of type 'object'" in caught.value.violations[0].description
    assert talk.text == ""
    assert talk.counted("headrace_admission_contracts_total", contract="form", result="CONTRACT_BROKEN") == 1


async def test_only_what_the_caller_wants_is_shown(talk: Talk) -> None:
    bare(talk)
    await talk.ask("form", text=False, token_ids=True)
    await talk.says(1, '{"n": 1}')
    await talk.ended()
    assert talk.text == ""
    assert [token for chunk in talk.chunks for token in chunk.token_ids] == tokens('{"n": 1}')


async def test_a_contract_may_bound_the_answer_and_nothing_else(talk: Talk) -> None:
    await talk.ask("free", text=False, token_ids=True)
    assert (await talk.work(1)).sampling.max_tokens == 9
    await talk.says(1, "123456789", FinishReason.LENGTH)
    assert (await talk.ended()).reason is FinishReason.LENGTH


async def test_a_resumed_answer_is_judged_whole(talk: Talk) -> None:
    await talk.ask("form", resumed=tokens('{"n"'), token_ids=True)
    await talk.says(1, ": 1}")
    await talk.ended()
    assert talk.text == ": 1}"


async def test_what_was_resumed_is_void_with_the_rest(talk: Talk) -> None:
    await talk.ask("form", resumed=tokens("{}"), token_ids=True)
    await talk.says(1, "")
    await talk.says(2, '{"n": 1}')
    await talk.ended()
    assert talk.chunks[0].restart
    assert talk.text == '{"n": 1}'


# --- its end ---------------------------------------------------------------------------------------


async def test_a_client_that_goes_away_ends_everything(talk: Talk, server: ToolServer) -> None:
    server.answers = [sleep]
    await talk.ask("tools")
    await talk.says(1, call())
    await talk.take(lambda talk: talk.steps)
    talk.conversation.cancel()
    talk.conversation.cancel()
    with pytest.raises(Cancelled):
        await talk.ended()
    await talk.tasks.close()
    assert len(talk.lane.sent) == 1
    assert talk.counted("headrace_admission_contracts_total", contract="tools", result="CANCELLED") == 1


async def test_a_client_that_goes_away_in_a_step_stops_the_model(talk: Talk) -> None:
    await talk.ask("form")
    talk.conversation.cancel()
    async with asyncio.timeout(5):
        while not talk.lane.cancels:
            await asyncio.sleep(0.001)


async def test_an_error_of_a_step_is_that_of_the_answer(talk: Talk) -> None:
    await talk.ask("tools")
    talk.say("abc")
    (work_id,) = talk.lane.works
    talk.lane.end(work_id, Outcome(error=DeadlinePassed("late")))
    with pytest.raises(DeadlinePassed):
        await talk.ended()
    assert talk.text == "abc"


async def test_a_step_without_room_waits_as_it_is_told(talk: Talk) -> None:
    await talk.ask("tools")
    talk.rules.refuse = [QuotaExceeded("tokens", retry_after_s=0.01), Overloaded("full", retry_after_s=0.01)]
    await talk.says(1, call())
    await talk.says(2, "Noon.")
    await talk.ended()
    assert not talk.rules.refuse


@pytest.mark.parametrize("refusal", [Overloaded("full"), Overloaded("full", retry_after_s=900.0)])
async def test_a_step_that_cannot_come_in_time_ends_the_answer(talk: Talk, refusal: Overloaded) -> None:
    await talk.ask("tools")
    talk.rules.refuse = [refusal]
    await talk.says(1, call())
    with pytest.raises(Overloaded):
        await talk.ended()


async def test_a_bug_ends_the_answer_without_its_text(talk: Talk) -> None:
    await talk.ask("form")
    talk.rules.refuse = [ZeroDivisionError("secret")]  # type: ignore[list-item]
    await talk.says(1, "{}")
    with pytest.raises(InternalError) as caught:
        await talk.ended()
    assert "secret" not in caught.value.message


async def test_a_process_that_stops_says_so(talk: Talk) -> None:
    await talk.ask("form")
    await talk.work(1)
    await asyncio.sleep(0.01)
    await talk.tasks.close()
    with pytest.raises(HeadraceError, match="stopping"):
        await talk.ended()


async def test_an_answer_that_the_router_begins_anew_begins_anew(talk: Talk) -> None:
    await talk.ask("tools")
    await talk.says(1, f"Let me look. {call()}")
    await talk.work(2)
    talk.say("It may be")
    await talk.take(lambda talk: talk.text.endswith("may be"))
    (work_id,) = talk.lane.works
    talk.lane.sink.on_note(work_id, Note(restart=True))
    talk.lane.made[work_id] = 0
    await talk.says(2, "It is noon.")
    finish = await talk.ended()
    assert talk.text == "Let me look. It is noon."
    assert finish.output_tokens == len(f"Let me look. {call()}It may beIt is noon.")
