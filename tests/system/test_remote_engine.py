"""The remote engine before a real server, which is killed and asked for its state, and before a rude one."""

import asyncio
import json
import logging
import ssl
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from msgspec import structs

from libs.catalogue import ModelSpec, Price, Remote
from libs.catalogue.options import Breaker
from libs.clock import SystemClock
from libs.lane.work import FinishReason, Sampling, Tier, Work
from libs.models.source import resolve
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import LoadFailed, SelfCheckFailed
from services.executor.remote.engine import RemoteEngine, RemoteRunner
from tests.system.etcd import make_certificates
from tests.system.openai_server import OpenAiServer
from tests.system.recorder import Recorder
from tests.system.remote_subjects import DEFAULT, spec_of
from tests.system.rude_server import RudeServer, finish, status, stream, text, usage

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

QUESTION = "What is the capital of France? Answer in one sentence."
FRANCE = "The capital of France is Paris."
STORY = "Write a story about a mill."
ids = count(1)


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.load(resolve(DEFAULT).tokenizer)


class Costs:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.costs: list[tuple[str, str, float]] = []
        self.breaker: list[int] = []

    def on_cost(self, model: str, currency: str, amount: float) -> None:
        self.costs.append((model, currency, amount))

    def on_breaker(self, model: str, state: int) -> None:
        self.breaker.append(state)


class Loaded:
    """A loaded model, what was heard of it, and ways to ask it."""

    def __init__(self, runner: RemoteRunner, heard: Recorder, costs: Costs) -> None:
        self.runner = runner
        self.heard = heard
        self.costs = costs

    def submit(self, question: str | list[int], seconds: float = 60, max_tokens: int = 24, **fields: Any) -> int:
        work_id = next(ids)
        prompt = question if isinstance(question, list) else tokenizer().render_chat([("user", question)])
        chat = () if isinstance(question, list) else (("user", question),)
        work = Work(
            f"r{work_id}", "t", Tier.INTERACTIVE, "distant", prompt, Sampling(max_tokens, temperature=0.0),
            time.time() + seconds, chat=chat,
        )  # fmt: skip
        work = structs.replace(work, **fields)
        self.heard.resumed[work_id] = len(work.resumed)
        self.runner.submit(work_id, work)
        return work_id

    async def ask(self, question: str | list[int], **fields: Any) -> str:
        work_id = self.submit(question, **fields)
        [outcome] = await self.heard.ended(work_id)
        assert outcome.error is None, outcome.error
        return tokenizer().decode(self.heard.tokens.get(work_id, []))

    async def fails(self, question: str | list[int] = "Hi.", **fields: Any) -> tuple[str, float | None, str]:
        """Reason, retry and message of the error."""
        work_id = self.submit(question, **fields)
        [outcome] = await self.heard.ended(work_id)
        assert outcome.error is not None
        return outcome.error.reason, outcome.error.retry_after_s, outcome.error.message


@asynccontextmanager
async def loaded(spec: ModelSpec, folder: Path) -> AsyncIterator[Loaded]:
    heard, costs = Recorder(), Costs()
    engine = RemoteEngine(folder, SystemClock(), costs)
    await engine.start()
    try:
        yield Loaded(await engine.load(spec, heard), heard, costs)
    finally:
        await engine.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[OpenAiServer]:
    server = await OpenAiServer.start()
    yield server
    await server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def get(server: OpenAiServer, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", data)
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


async def busy(server: OpenAiServer) -> int:
    """Slots of the server that compute."""
    slots = await asyncio.to_thread(get, server, "/slots")
    return sum(slot["is_processing"] for slot in slots)


@pytest.mark.parametrize("api", ["chat", "completions", "completions_tokens"])
async def test_an_answer_streams_through_each_api(server: OpenAiServer, folder: Path, api: Any) -> None:
    async with loaded(spec_of(server, api), folder) as it:
        assert await it.ask(QUESTION) == FRANCE
        [*_, (work_id, outcome)] = it.heard.outcomes.items()
        assert outcome.finish is FinishReason.STOP
        assert it.heard.tokens[work_id] == tokenizer().encode(FRANCE)
        assert sum(work_id in together for together in it.heard.together) > 3, "it came at once"
        assert await it.ask(tokenizer().encode("The capital of France is"), max_tokens=2) if api != "chat" else True


@pytest.mark.parametrize(
    ("api", "resume"),
    [("chat", "replay"), ("completions", "replay"), ("completions", "continue"), ("completions_tokens", "continue")],
)
async def test_a_resumed_answer_goes_on_alike(server: OpenAiServer, folder: Path, api: Any, resume: str) -> None:
    async with loaded(spec_of(server, api, resume=resume), folder) as it:
        assert it.runner.capabilities.resume == ("replay" if resume == "replay" else "prompt")
        whole = tokenizer().encode(await it.ask(QUESTION))
        for passed in (1, 4, len(whole)):
            assert whole[:passed] + tokenizer().encode(await it.ask(QUESTION, resumed=tuple(whole[:passed]))) == whole


async def test_a_cancel_reaches_the_server(server: OpenAiServer, folder: Path) -> None:
    async with loaded(spec_of(server, "chat"), folder) as it:
        works = [it.submit(STORY, max_tokens=1500) for _ in range(4)]
        await it.heard.until(lambda: all(it.heard.tokens.get(work_id) for work_id in works))
        assert await busy(server) == 4
        for work_id in works:
            it.runner.cancel(work_id)
        outcomes = await it.heard.ended(*works)
        assert {outcome.error.reason for outcome in outcomes if outcome.error} == {"CANCELLED"}
        deadline = time.monotonic() + 5
        while await busy(server):
            assert time.monotonic() < deadline, "the server still computes"
            await asyncio.sleep(0.05)
        assert await it.ask(QUESTION) == FRANCE


async def test_a_deadline_reaches_the_server(server: OpenAiServer, folder: Path) -> None:
    async with loaded(spec_of(server, "chat"), folder) as it:
        assert (await it.fails(STORY, max_tokens=1500, seconds=0.5))[0] == "DEADLINE_PASSED"
        await asyncio.sleep(0.5)
        assert await busy(server) == 0


async def test_usage_is_counted_as_the_endpoint_counts(server: OpenAiServer, folder: Path) -> None:
    price = Price(input=1_000_000.0, cached_input=1_000_000.0, output=1.0, currency="EUR")
    async with loaded(replace(spec_of(server, "chat"), price=price), folder) as it:
        await it.ask("What is rain?", max_tokens=9)
        question = {"messages": [{"role": "user", "content": "What is rain?"}], "max_tokens": 1}
        prompt = (await asyncio.to_thread(get, server, "/v1/chat/completions", question))["usage"]["prompt_tokens"]
        [(model, currency, amount)] = it.costs.costs
        assert (model, currency, round(amount, 9)) == ("distant", "EUR", prompt + 9e-6)
        work_id = it.submit(STORY, max_tokens=1500)
        await it.heard.until(lambda: it.heard.tokens.get(work_id))
        it.runner.cancel(work_id)
        await it.heard.ended(work_id)
        await asyncio.sleep(0.05)
        assert it.costs.costs[1][2] > 1, "one that was cancelled costs, too, by our own count"


async def test_a_killed_server_opens_the_breaker_until_it_is_back(folder: Path) -> None:
    server = await OpenAiServer.start()
    policy = Breaker(failures=3, window_s=30, open_s=1.0, successes=2)
    try:
        async with loaded(spec_of(server, "chat", breaker=policy), folder) as it:
            works = [it.submit(STORY, max_tokens=1500) for _ in range(3)]
            await it.heard.until(lambda: all(it.heard.tokens.get(work_id) for work_id in works))
            await server.kill()
            outcomes = await it.heard.ended(*works)
            assert {outcome.error.reason for outcome in outcomes if outcome.error} == {"STAGE_UNAVAILABLE"}
            assert it.costs.breaker == [0, 2]
            reason, retry_s, _ = await it.fails()
            assert reason == "STAGE_UNAVAILABLE"
            assert retry_s is not None
            assert 0 < retry_s <= 1
            with pytest.raises(SelfCheckFailed):
                await it.runner.self_check()
            await asyncio.sleep(1.05)
            assert "cannot be reached" in (await it.fails())[2], "a probe"
            assert it.costs.breaker == [0, 2, 1, 2]
            server.process = (await OpenAiServer.start(port=server.port)).process
            await asyncio.sleep(1.05)
            assert [await it.ask(QUESTION) for _ in range(3)] == [FRANCE] * 3
            assert it.costs.breaker == [0, 2, 1, 2, 1, 0]
            await it.runner.self_check()
    finally:
        await server.kill()


async def test_a_frozen_server_is_noticed(folder: Path) -> None:
    server = await OpenAiServer.start()
    try:
        async with loaded(spec_of(server, "chat", read_timeout_s=2.0), folder) as it:
            work_id = it.submit(STORY, max_tokens=1500)
            await it.heard.until(lambda: it.heard.tokens.get(work_id))
            server.stop()
            [outcome] = await it.heard.ended(work_id)
            assert outcome.error is not None
            assert "fell silent" in outcome.error.message
    finally:
        await server.kill()


async def test_a_key_is_read_again_and_never_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = await OpenAiServer.start(key="sk-right")
    key = folder / "key"
    key.write_text("sk-wrong")
    spec = spec_of(server, "chat", api_key_file=str(key), breaker=Breaker(open_s=0.1, successes=1))
    try:
        with pytest.raises(LoadFailed, match="does not accept the key in") as refused:
            await RemoteEngine(folder, SystemClock()).load(spec, Recorder())
        assert "sk-" not in str(refused.value)
        key.write_text("sk-right\n")
        with structlog.testing.capture_logs() as logs, caplog.at_level(logging.DEBUG):
            async with loaded(spec, folder) as it:
                assert await it.ask(QUESTION) == FRANCE
                key.write_text("sk-wrong")
                reason, _, message = await it.fails()
                assert reason == "INTERNAL"
                assert it.costs.breaker == [0, 2]
                assert any("refuses the executor's key" in line["event"] for line in logs)
                key.write_text("sk-right")
                await asyncio.sleep(0.15)
                assert await it.ask(QUESTION) == FRANCE
        assert "sk-" not in message + caplog.text + str(logs)
    finally:
        await server.kill()


@asynccontextmanager
async def rude(folder: Path, api: Any = "chat", **remote: Any) -> AsyncIterator[tuple[RudeServer, Loaded]]:
    async with RudeServer.serve() as server:
        options = Remote(base_url=server.base_url, model="m", api=api, read_timeout_s=0.4, **remote)
        spec = ModelSpec("rude", "remote:", 1024, 64, 16, 4, 64, tokenizer=DEFAULT, remote=options)
        async with loaded(spec, folder) as it:
            yield server, it


YES = (text("yes"), finish("stop"), usage(7, 1))
SURROGATES = (
    b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"\\ude00"}}]}\n\n',
)


@pytest.mark.parametrize(
    ("behavior", "reason", "said"),
    [
        (status(429, {"error": {"message": "slow down"}}, Retry_After="7"), "OVERLOADED", "slow down"),
        (status(500, b"<html>oops"), "STAGE_UNAVAILABLE", "status 500"),
        (status(503, {"error": "no"}), "STAGE_UNAVAILABLE", "status 503"),
        (status(404, {"error": {"message": "no such model"}}), "STAGE_UNAVAILABLE", "no such model"),
        (status(307, None, Location="http://127.0.0.1:1/"), "STAGE_UNAVAILABLE", "status 307"),
        (status(200, {"choices": []}), "STAGE_UNAVAILABLE", "application/json"),
        (status(400, {"error": {"message": "seed is not supported"}}), "NOT_SUPPORTED", "seed"),
        (status(400, {"error": {"message": "top_p: at most 1 " + "x" * 999}}), "REQUEST_INVALID", "top_p"),
        (stream(text("a"), then="cut"), "STAGE_UNAVAILABLE", "middle of the answer"),
        (stream(text("a"), then="end"), "STAGE_UNAVAILABLE", "before the answer"),
        (stream(text("a"), then="silence"), "STAGE_UNAVAILABLE", "fell silent"),
        (stream(b"data: {nonsense\n\n"), "STAGE_UNAVAILABLE", "no chunk"),
        (stream(b'data: {"choices": 7}\n\n'), "STAGE_UNAVAILABLE", "no chunk"),
        (stream(b"data: " + b"x" * 2_000_000), "STAGE_UNAVAILABLE", "without an end"),
        (stream(text("a"), {"error": {"message": "out of memory", "code": 500}}), "STAGE_UNAVAILABLE", "out of"),
        (stream(text("a"), finish("content_filter")), "REQUEST_INVALID", "filter"),
    ],
)  # fmt: skip
async def test_rudeness_is_an_error_and_no_more(folder: Path, behavior: Any, reason: str, said: str) -> None:
    async with rude(folder) as (server, it):
        server.behavior = behavior
        found, retry_s, message = await it.fails()
        assert (found, said in message, len(message) < 400) == (reason, True, True), message
        assert (retry_s == 7) == (reason == "OVERLOADED")
        server.behavior = stream(*YES)
        if reason != "OVERLOADED":
            assert await it.ask("Hi.") == "yes"


async def test_what_a_server_may_do_is_borne(folder: Path) -> None:
    async with rude(folder) as (server, it):
        for behavior, answer in (
            (stream(*YES, then="close"), "yes"),
            (stream(*YES), "yes"),  # on a connection that has just been closed
            (stream(*YES, then="end"), "yes"),
            (stream(*SURROGATES, finish("stop")), "a😀"),
            (stream(b": ping\r\n\r\n", b'data: {"choices":[]}\r\n\r\n', b"event: x\n", *YES), "yes"),
            (stream(text("one two three four"), then="silence"), "one two"),  # max_tokens ends it
        ):
            server.behavior = behavior
            assert await it.ask("Hi.", max_tokens=2 if "one" in answer else 9) == answer
        assert it.costs.breaker == [0]


async def test_connections_are_kept(folder: Path) -> None:
    async with rude(folder) as (server, it):
        server.behavior = stream(*YES)
        for _ in range(5):
            await it.ask("Hi.")
        assert server.connections == 1


async def test_limits_hold_works_back_or_refuse_them(folder: Path) -> None:
    async with rude(folder, tokens_per_minute=1200) as (server, it):  # 200 at once, 20 flow in per second
        server.behavior = stream(text("yes"), finish("stop"), usage(100, 1))
        hundred = tokenizer().encode("water " * 100)[:100]
        await it.heard.ended(*[it.submit(hundred, max_tokens=1) for _ in range(2)])
        began, before = time.monotonic(), len(server.requests)
        reason, retry_s, _ = await it.fails(hundred, max_tokens=1, seconds=2.0)
        assert reason == "OVERLOADED"
        assert retry_s is not None
        assert 4 < retry_s < 6
        assert (len(server.requests), time.monotonic() - began < 0.5) == (before, True), "it could never be in time"
        await it.ask(hundred[:19], max_tokens=1)
        assert 0.8 < time.monotonic() - began < 3


async def test_an_endpoint_that_wants_a_pause_gets_it(folder: Path) -> None:
    async with rude(folder) as (server, it):
        server.behavior = status(429, None, Retry_After="1")
        await it.fails()
        server.behavior, before = stream(*YES), len(server.requests)
        assert (await it.fails(seconds=0.5))[0] == "OVERLOADED"
        assert len(server.requests) == before
        began = time.monotonic()
        assert await it.ask("Hi.") == "yes"
        assert time.monotonic() - began > 0.7


async def test_a_divergent_answer_is_not_passed_on(folder: Path) -> None:
    async with rude(folder) as (server, it):
        passed = tuple(tokenizer().encode("yes, but"))
        server.behavior = stream(text("yes, b"), text("ut no"), finish("stop"))
        assert await it.ask("Hi.", resumed=passed) == " no"
        for other in (stream(text("yes, and"), finish("stop")), stream(text("yes"), finish("stop"))):
            server.behavior = other
            assert (await it.fails(resumed=passed))[0] == "NOT_SUPPORTED"


async def test_the_authority_is_the_catalogues(folder: Path, tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    async with RudeServer.serve(context) as server:
        base_url = server.base_url.replace("http:", "https:")
        options = Remote(base_url=base_url, model="m", api="chat", ca_file=str(files.ca))
        spec = ModelSpec("safe", "remote:", 1024, 64, 16, 4, 64, tokenizer=DEFAULT, remote=options)
        async with loaded(spec, folder) as it:
            assert await it.ask("Hi.") == "yes"
        for ca_file, said in (("", "not trusted"), (str(tmp_path / "none"), "No such file")):
            other = replace(spec, remote=replace(options, ca_file=ca_file))
            with pytest.raises(LoadFailed, match=said):
                await RemoteEngine(folder, SystemClock()).load(other, Recorder())


async def test_dialects_are_found_out(folder: Path) -> None:
    rude_one: RudeServer

    async def picky(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, _, body = rude_one.requests[-1]
        for field, told in (
            ("max_tokens", "use 'max_completion_tokens'"),
            ("stream_options", "unknown stream_options"),
        ):
            if field in body:
                return await status(400, {"error": {"message": told}})(reader, writer)
        return await stream(*YES[:2])(reader, writer)

    async with RudeServer.serve() as rude_one:
        rude_one.behavior = picky
        options = Remote(base_url=rude_one.base_url, model="m", api="chat", headers={"X-Team": "mill"})
        spec = ModelSpec("picky", "remote:", 1024, 64, 16, 4, 64, tokenizer=DEFAULT, remote=options)
        async with loaded(spec, folder) as it:
            assert await it.ask("Hi.") == "yes"
            assert rude_one.requests[-1][2]["max_completion_tokens"] == 24
            assert rude_one.requests[-1][1]["x-team"] == "mill"


async def test_token_ids_are_taken_where_the_endpoint_tells_them(folder: Path) -> None:
    [eos] = tokenizer().eos_ids
    async with RudeServer.serve() as server:
        server.behavior = stream(text("yes", token_ids=[11]), finish("stop", token_ids=[eos]))
        options = Remote(base_url=server.base_url, model="m", api="completions_tokens")
        spec = ModelSpec("ids", "remote:", 1024, 64, 16, 4, 64, tokenizer=DEFAULT, remote=options)
        async with loaded(spec, folder) as it:
            assert it.runner.capabilities.token_ids
            pair = {"tokens": ["y", "e"], "token_logprobs": [-0.5, -0.25]}
            chunks = (text("y", token_ids=[88, 68], logprobs=pair), finish("stop", token_ids=[82, eos]))
            server.behavior = stream(*chunks)
            work_id = it.submit([5, 6], resumed=(88,), log_probs=True)
            [outcome] = await it.heard.ended(work_id)
            assert (it.heard.tokens[work_id], outcome.finish) == ([68, 82], FinishReason.STOP)
            assert it.heard.log_probs[work_id][0] == -0.25
            assert server.requests[-1][2]["prompt"] == [5, 6]


@pytest.mark.parametrize(
    ("behavior", "said"),
    [
        (status(404, {"error": {"message": "no such model"}}), "no such model; it lists m"),
        (status(401, {"error": {"message": "who are you? sk-abc"}}), "does not accept requests without a key"),
        (status(500, None), "status 500"),
        (stream(text("a")), "did not finish"),
        (stream(then="cut"), "middle of the answer"),
    ],
)  # fmt: skip
async def test_what_cannot_be_loaded_says_why(folder: Path, behavior: Any, said: str) -> None:
    async with RudeServer.serve() as server:
        server.behavior = behavior
        options = Remote(base_url=server.base_url, model="other", api="chat")
        spec = ModelSpec("no", "remote:", 1024, 64, 16, 4, 64, tokenizer=DEFAULT, remote=options)
        with pytest.raises(LoadFailed) as refused:
            await RemoteEngine(folder, SystemClock()).load(spec, Recorder())
        assert said in str(refused.value)
        assert "sk-" not in str(refused.value)
