"""Answers that break, fail, are cancelled or late: what the SDK goes on with, and what it raises."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from google.rpc import error_details_pb2

from headrace.inference.v1 import inference_pb2 as pb
from libs import client as sdk
from libs.client import GenerateOptions, HeadraceClient, RetryPolicy
from tests.rpc.script import ANSWER, SHOWN, TOKENS, UNDER, WITH_STOP, Served, both_doors, finish, serving, status, tool


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as running:
        yield running


@both_doors
@pytest.mark.parametrize("at", [0, 1, 3, 8, 9, 20, 36, 40])
async def test_an_answer_that_breaks_goes_on_without_a_seam(served: Served, multiplex: bool, at: int) -> None:
    served.script.breaks = [at, 2, 1]
    async with served.client(multiplex=multiplex) as client:
        answer = client.generate("m", prompt="x", options=WITH_STOP)
        whole = await answer.complete()
    assert whole.text == SHOWN
    assert list(whole.token_ids) == TOKENS[: len(whole.token_ids)]
    assert answer.resent == 3
    assert [len(request.resumed_token_ids) for request in served.script.requests] == [0, at, at + 2, at + 3]
    if at:
        assert {request.request_id for request in served.script.requests[1:]} <= {"made-by-mesh", ""}


@both_doors
async def test_a_server_that_stops_cancels_calls_and_they_go_on_elsewhere(served: Served, multiplex: bool) -> None:
    """gRPC's servers end calls that are left when they stop as CANCELLED, without a reason of the mesh."""
    served.script.breaks, served.script.how = [3], grpc.StatusCode.CANCELLED
    async with served.client(multiplex=multiplex) as client:
        answer = client.generate("m", prompt="x", options=WITH_STOP)
        assert (await answer.complete()).text == SHOWN
    assert answer.resent == 1


@both_doors
async def test_a_server_that_dies_and_comes_back_leaves_no_mark(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.002
    async with served.client(multiplex=multiplex, retry=RetryPolicy(first_delay=0.1, attempts=10)) as client:
        answer = client.generate("m", prompt="x")
        text = (await anext(answer)).text + (await anext(answer)).text
        await served.stop()
        await served.start()
        text += (await answer.complete()).text
    assert text == ANSWER
    assert answer.resent >= 1


@both_doors
async def test_without_resuming_a_broken_answer_raises(served: Served, multiplex: bool) -> None:
    served.script.breaks = [0, 3]
    policy = RetryPolicy(first_delay=0.01, resume=False)
    async with served.client(multiplex=multiplex, retry=policy) as client:
        answer = client.generate("m", prompt="x")
        with pytest.raises(sdk.StageUnavailable) as caught:
            await answer.complete()
    assert answer.resent == 1  # before its first token
    assert caught.value.code == 14
    assert served.script.requests[-1].output_form == pb.OUTPUT_FORM_TEXT


async def test_tries_without_progress_are_bounded(served: Served) -> None:
    served.script.breaks = [0] * 10
    async with served.client(retry=RetryPolicy(attempts=3, first_delay=0.001)) as client:
        with pytest.raises(sdk.StageUnavailable, match="draining"):
            await client.complete("m", prompt="x")
    assert len(served.script.breaks) == 7


@both_doors
async def test_errors_are_typed_and_carry_their_details(served: Served, multiplex: bool) -> None:
    bad = error_details_pb2.BadRequest(
        field_violations=[
            error_details_pb2.BadRequest.FieldViolation(field="sampling.temperature", description="is negative"),
            error_details_pb2.BadRequest.FieldViolation(field="model", description="is empty"),
        ]
    )
    quota = error_details_pb2.QuotaFailure(
        violations=[error_details_pb2.QuotaFailure.Violation(subject="tokens/min", description="used up")]
    )
    switch = error_details_pb2.PreconditionFailure(
        violations=[error_details_pb2.PreconditionFailure.Violation(subject="m", description="off")]
    )
    served.script.errors = [
        status(3, "ERROR_REASON_REQUEST_INVALID", bad),
        status(8, "ERROR_REASON_QUOTA_EXCEEDED", quota, retry_after=60.0),
        status(9, "ERROR_REASON_SWITCHED_OFF", switch),
        status(5, "ERROR_REASON_OF_THE_FUTURE"),
        status(13, "ERROR_REASON_INTERNAL"),
    ]
    kinds = [sdk.RequestInvalid, sdk.QuotaExceeded, sdk.SwitchedOff, sdk.ModelUnknown, sdk.InternalError]
    caught: list[sdk.HeadraceError] = []
    async with served.client(multiplex=multiplex) as client:
        for kind in kinds:
            with pytest.raises(kind) as info:
                await client.complete("m", prompt="x")
            caught.append(info.value)
    assert caught[0].violations == (
        sdk.Violation("sampling.temperature", "is negative"),
        sdk.Violation("model", "is empty"),
    )
    assert caught[0].metadata == {"k": "v"}
    assert (caught[1].violations[0].subject, caught[1].retry_after) == ("tokens/min", 60.0)
    assert caught[2].violations[0].subject == "m"
    assert caught[3].reason == "OF_THE_FUTURE"
    assert isinstance(caught[1], sdk.CapacityError)
    assert isinstance(caught[0], sdk.CallerError)


@both_doors
async def test_the_pause_that_the_mesh_asks_for_is_kept(served: Served, multiplex: bool) -> None:
    served.script.errors = [status(8, "ERROR_REASON_OVERLOADED", retry_after=0.15)]
    async with served.client(multiplex=multiplex) as client:
        begin = asyncio.get_running_loop().time()
        assert (await client.complete("m", prompt="x")).text == ANSWER
        assert asyncio.get_running_loop().time() - begin >= 0.15

        served.script.errors = [status(8, "ERROR_REASON_OVERLOADED", retry_after=0.2)]
        with pytest.raises(sdk.Overloaded):  # the pause does not fit into the time
            await client.complete("m", prompt="x", options=GenerateOptions(timeout=0.1))


@both_doors
async def test_leaving_the_loop_cancels_the_generation(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.01
    async with served.client(multiplex=multiplex) as client:
        async for chunk in client.generate("m", prompt="x"):
            assert chunk.token_ids
            break
        await asyncio.wait_for(served.script.cancelled.wait(), 5)


@both_doors
async def test_cancelling_the_task_cancels_the_generation(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.01
    async with served.client(multiplex=multiplex) as client:
        task = asyncio.create_task(client.complete("m", prompt="x"))
        await served.script.asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(served.script.cancelled.wait(), 5)


@both_doors
async def test_an_answer_is_its_own_context_and_ends_once(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.01
    async with served.client(multiplex=multiplex) as client:
        async with client.generate("m", prompt="x") as answer:
            await anext(answer)
        assert [chunk async for chunk in answer] == []
        with pytest.raises(RuntimeError, match="read or cancelled"):
            await answer.complete()
        await asyncio.wait_for(served.script.cancelled.wait(), 5)


@both_doors
async def test_a_deadline_ends_an_answer(served: Served, multiplex: bool) -> None:
    served.script.pace = 0.5
    async with served.client(multiplex=multiplex) as client:
        begin = asyncio.get_running_loop().time()
        with pytest.raises(sdk.DeadlinePassed):
            await client.complete("m", prompt="x", options=GenerateOptions(timeout=0.1))
        assert asyncio.get_running_loop().time() - begin < 2.0


async def test_closing_a_session_ends_what_runs_on_it(served: Served) -> None:
    served.script.pace = 0.01
    async with served.client(retry=RetryPolicy(attempts=1)) as client:
        async with client.session() as session:
            task = asyncio.create_task(session.complete("m", prompt="x"))
            await served.script.asked.wait()
        with pytest.raises(sdk.StageUnavailable, match="session was closed"):
            await task
        await asyncio.wait_for(served.script.cancelled.wait(), 5)


@both_doors
@pytest.mark.parametrize(
    "told", [[tool(pb.TOOL_STATE_DONE)], [pb.GenerateResponse(text="no tokens")]], ids=["tool", "text"]
)
async def test_what_cannot_be_gone_on_from_is_not_sent_again(
    served: Served, multiplex: bool, told: list[pb.GenerateResponse]
) -> None:
    served.script.told = [*told, pb.GenerateResponse(text="never")]
    served.script.breaks = [len(told)]
    async with served.client(multiplex=multiplex) as client:
        with pytest.raises(sdk.StageUnavailable):
            await client.complete("m", prompt="x", options=UNDER)
    assert len(served.script.requests) == 1


@both_doors
async def test_a_break_behind_a_restart_forgets_what_was_void(served: Served, multiplex: bool) -> None:
    served.script.told = [
        pb.GenerateResponse(text="ab", token_ids=[1, 2], model_version="m@1"),
        pb.GenerateResponse(restart=True),
        pb.GenerateResponse(text="c", token_ids=[3], finish=finish(3, None)),
    ]
    served.script.breaks = [2]
    async with served.client(multiplex=multiplex) as client:
        whole = await client.complete("m", prompt="x", options=UNDER)
    assert whole.text == "c"
    again = served.script.requests[1]
    assert (list(again.resumed_token_ids), again.resumed_model_version) == ([], "")


async def test_nobody_at_home_is_unavailable_within_the_bounds() -> None:
    async with HeadraceClient("127.0.0.1:1", retry=RetryPolicy(attempts=2, first_delay=0.01)) as client:
        with pytest.raises(sdk.StageUnavailable):
            await client.complete("m", prompt="x")
