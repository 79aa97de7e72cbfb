"""The SDK against a real server that plays a script: answers, sessions, tools, and what is in the package."""

import asyncio
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.inference.v1 import inference_pb2 as pb
from libs import client as sdk
from libs.client import GenerateOptions, HeadraceClient
from tests.rpc.script import (
    ANSWER,
    SHOWN,
    STOP,
    TOKENS,
    UNDER,
    WITH_STOP,
    Served,
    both_doors,
    finish,
    serving,
    status,
    tool,
)


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as running:
        yield running


@both_doors
async def test_an_answer_comes_in_pieces_and_as_a_whole(served: Served, multiplex: bool) -> None:
    async with served.client(api_key="key", multiplex=multiplex, timeout=20.0) as client:
        chunks = [chunk async for chunk in client.generate("m", chat=[("user", "hi")], options=WITH_STOP)]
        assert "".join(chunk.text for chunk in chunks) == SHOWN
        end = chunks[-1].finish
        assert end is not None
        assert (end.reason, end.stop, end.model) == ("stop", STOP, "m")
        assert all(chunk.finish is None for chunk in chunks[:-1])

        options = GenerateOptions(log_probs=True, output="both", max_tokens=99, temperature=0.0, tags={"a": "b"})
        whole = await client.complete("m", prompt="hi", options=options)
        assert whole.text == ANSWER
        assert list(whole.token_ids) == TOKENS
        assert whole.log_probs == (-0.5,) * len(TOKENS)
        assert whole.usage == sdk.Usage(3, 2, len(TOKENS))
        assert whole.timings.first_token == 0.25
        assert whole.request_id == "made-by-mesh"
    sent = served.script.requests[-1]
    assert (sent.prompt, sent.sampling.max_tokens, sent.tags["a"]) == ("hi", 99, "b")
    assert sent.sampling.HasField("temperature")
    assert not sent.sampling.HasField("top_p")
    assert sent.HasField("timeout") == multiplex  # the call's own deadline says it otherwise
    if not multiplex:
        assert served.script.metadata[0]["authorization"] == "Bearer key"


async def test_32_answers_share_one_stream(served: Served) -> None:
    async with served.client() as client, client.session() as session:
        forms = ("text", "token_ids", "both")
        options = [GenerateOptions(log_probs=n % 2 == 0, output=forms[n % 3]) for n in range(32)]  # type: ignore[arg-type]
        answers = await asyncio.gather(*(session.complete("m", prompt="x", options=one) for one in options))
    assert served.script.sessions == 1
    assert len(served.script.requests) == 32
    for one, answer in zip(options, answers, strict=True):
        assert list(answer.token_ids) == TOKENS
        assert len(answer.log_probs) == (len(TOKENS) if one.log_probs else 0)
    assert {answers[0].text, answers[2].text} == {ANSWER}


async def test_no_more_answers_run_on_a_session_than_allowed(served: Served) -> None:
    served.script.pace = 0.002
    async with served.client(multiplex=True, max_running=2) as client:
        first = [client.generate("m", prompt="x") for _ in range(2)]
        for answer in first:
            await anext(answer)
        third = asyncio.create_task(client.complete("m", prompt="x"))
        await asyncio.sleep(0.03)
        assert len(served.script.requests) == 2
        first[0].cancel()
        assert (await third).text == ANSWER
        running = [client.generate("m", prompt="x") for _ in range(2)]
        for answer in running:
            await anext(answer)
        with pytest.raises(sdk.DeadlinePassed):
            await client.complete("m", prompt="x", options=GenerateOptions(timeout=0.02))


async def test_tokens_are_counted_and_models_listed_page_by_page(served: Served) -> None:
    async with served.client() as client:
        served.script.errors = [status(14, "ERROR_REASON_STAGE_UNAVAILABLE", retry_after=0.01)]
        assert await client.count_tokens("m", chat=[("user", "four"), ("assistant", "!")]) == sdk.TokenCount(5, 100)
        models = [model async for model in client.list_models(page_size=2)]
    assert [model.name for model in models] == ["m0", "m1", "m2", "m3", "m4"]
    assert models[0].capabilities == {"chat"}


@both_doors
async def test_tools_and_their_results_come_in_order(served: Served, multiplex: bool) -> None:
    end = finish(3, None)
    end.degradation.level = 2
    end.degradation.rungs.extend(["short-answers", "defer"])
    end.tried.append("small")
    served.script.told = [
        pb.GenerateResponse(request_id="made-by-mesh", text="Let me look. "),
        tool(pb.TOOL_STATE_WAITING, approval_id="a.t"),
        tool(pb.TOOL_STATE_RUNNING),
        tool(pb.TOOL_STATE_DONE, result="noon"),
        pb.GenerateResponse(text="It is noon.", finish=end),
    ]
    async with served.client(multiplex=multiplex) as client:
        seen = [chunk async for chunk in client.generate("m", chat=[("user", "time?")], options=UNDER)]
        whole = await client.complete("m", chat=[("user", "time?")], options=UNDER)
    assert served.script.requests[0].contract == "c"
    assert list(served.script.requests[0].requires) == ["vision"]
    assert [chunk.text or (chunk.tool_step and chunk.tool_step.state) for chunk in seen] == [
        "Let me look. ", "waiting", "running", "done", "It is noon.",
    ]  # fmt: skip
    assert whole.text == "Let me look. It is noon."
    assert whole.tool_steps == (
        sdk.ToolStep(1, "clock", "{}", "waiting", approval_id="a.t"),
        sdk.ToolStep(1, "clock", "{}", "running"),
        sdk.ToolStep(1, "clock", "{}", "done", "noon"),
    )
    assert whole.finish.degradation == sdk.Degradation(2, ("short-answers", "defer"))
    assert whole.finish.tried == ("small",)


@both_doors
async def test_an_answer_that_begins_anew(served: Served, multiplex: bool) -> None:
    served.script.told = [
        pb.GenerateResponse(text="Perhaps", token_ids=[1, 2]),
        pb.GenerateResponse(restart=True),
        pb.GenerateResponse(text="Surely", token_ids=[3], finish=finish(3, None)),
    ]
    async with served.client(multiplex=multiplex) as client:
        whole = await client.complete("m", prompt="x", options=UNDER)
        seen = [chunk async for chunk in client.generate("m", prompt="x", options=UNDER)]
    assert (whole.text, whole.token_ids) == ("Surely", (3,))
    assert sdk.Chunk(restart=True) in seen
    assert seen[-1].text == "Surely"


async def test_a_decision_is_sent_once(served: Served) -> None:
    async with served.client() as client:
        await client.approve("a.t", approved=True, reason="fine")
        served.script.errors = [
            status(5, "ERROR_REASON_APPROVAL_UNKNOWN"),
            status(14, "ERROR_REASON_STAGE_UNAVAILABLE"),
        ]
        with pytest.raises(sdk.ApprovalUnknown):
            await client.approve("a.t", approved=False)
        with pytest.raises(sdk.StageUnavailable):
            await client.approve("a.t", approved=False)
    assert served.script.approvals[0] == pb.ApproveRequest(approval_id="a.t", approved=True, reason="fine")
    assert len(served.script.approvals) == 3


async def test_misuse_is_told_at_once() -> None:
    client = HeadraceClient("127.0.0.1:1")
    with pytest.raises(RuntimeError, match="async with"):
        await client.complete("m", prompt="x")
    with pytest.raises(ValueError, match="either chat or prompt"):
        client.generate("m")
    with pytest.raises(ValueError, match="no such role"):
        client.generate("m", chat=[("tool", "x")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="one of json_schema"):
        GenerateOptions(regex="a", ebnf="b")


def test_the_public_names_are_these() -> None:
    assert sdk.__all__ == [
        "Answer", "ApprovalDenied", "ApprovalUnknown", "CallerError", "Cancelled", "CapacityError", "Chunk",
        "Completion", "ContractBroken", "ContractUnknown", "CredentialsInvalid", "DeadlinePassed", "Degradation",
        "Finish", "GenerateOptions", "HeadraceClient", "HeadraceError", "InternalError", "Model", "ModelUnknown",
        "NoExecutor", "NotAllowed", "NotSupported", "Overloaded", "QuotaExceeded", "RequestInvalid", "RetryPolicy",
        "Session", "StageUnavailable", "SwitchedOff", "Timings", "Tls", "TokenCount", "ToolFailed", "ToolStep",
        "Usage", "Violation",
    ]  # fmt: skip
    assert all(hasattr(sdk, name) for name in sdk.__all__)


def test_the_wheel_stands_on_its_own(tmp_path: Path) -> None:
    folder = Path(sdk.__file__).parent
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=folder, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("headrace_client-*.whl")
    # Unpacked, as an installer does: a namespace package (headrace) is not found inside of an archive.
    installed = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(installed)
    assert {path.name for path in (installed / "headrace_client").iterdir()} == {
        path.name for path in folder.iterdir() if path.suffix == ".py" or path.name == "py.typed"
    }
    checkout = [str(folder.parents[1]), str(folder.parents[1] / "protos")]
    check = f"""
import sys, importlib.resources
# The checkout is installed in this environment; the wheel has to do without it.
sys.path[:] = [{str(installed)!r}] + [p for p in sys.path if p not in {checkout!r}]
import headrace_client
from headrace.inference.v1 import inference_pb2
assert headrace_client.HeadraceClient().generate('m', prompt='x').request_id == ''
assert inference_pb2.__file__.startswith({str(installed)!r}), inference_pb2.__file__
assert importlib.resources.files('headrace_client').joinpath('py.typed').is_file()
assert not [m for m in sys.modules if m.split('.')[0] in ('libs', 'services')]
"""
    ran = subprocess.run([sys.executable, "-I", "-c", check], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
