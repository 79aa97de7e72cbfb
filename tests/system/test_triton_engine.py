"""The triton engine against a real tritonserver, whose models have the tensors of tensorrtllm_backend.

What reaches a model is told by the model itself: it counts its works on the metrics page, and writes down the
tensors of each.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from libs.catalogue import ModelSpec
from libs.catalogue.options import Flavor, Triton
from libs.clock import SystemClock
from libs.errors import Cancelled, DeadlinePassed, InternalError, NotSupported, RequestInvalid, StageUnavailable
from libs.lane.work import FinishReason, Grammar, Sampling, Tier, Work
from libs.tokens.blocks import chain, salt
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Exactness, LoadFailed, SelfCheckFailed
from services.executor.triton.engine import TritonEngine
from services.executor.triton.request import task_id
from services.executor.triton.runner import Patience, TritonRunner
from services.executor.triton.server import TritonServer as Calls
from tests.system.etcd import make_certificates
from tests.system.recorder import Recorder
from tests.system.triton.repository import Language, ModelRepository
from tests.system.tritonserver import TritonServer

PATIENCE = Patience(watch_s=0.2, answer_s=2.0, silence=2, away_s=30.0)
FLAVORS: tuple[Flavor, ...] = ("tensorrt_llm", "ensemble", "bls")


@dataclass
class Loaded:
    """A loaded model, its listener, and numbers for works."""

    runner: TritonRunner
    heard: Recorder
    tokenizer: Tokenizer
    next_id: int = 0

    def submit(self, prompt: str | list[int], work: dict[str, Any] | None = None, **sampling: Any) -> int:
        self.next_id += 1
        tokens = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        fields = {
            "request_id": f"r{self.next_id}", "tenant": "t", "tier": Tier.INTERACTIVE, "model": "m", "prompt": tokens,
            "sampling": Sampling(**{"max_tokens": 8, "temperature": 0.0, **sampling}), "deadline": time.time() + 60,
            **(work or {}),
        }  # fmt: skip
        submitted = Work(**fields)
        self.heard.resumed[self.next_id] = len(submitted.resumed)
        self.runner.submit(self.next_id, submitted)
        return self.next_id

    async def ask(self, prompt: str | list[int], work: dict[str, Any] | None = None, **sampling: Any) -> list[int]:
        work_id = self.submit(prompt, work, **sampling)
        [outcome] = await self.heard.ended(work_id)
        if outcome.error is not None:
            raise outcome.error
        return self.heard.tokens.get(work_id, [])

    async def begun(self, *work_ids: int, tokens: int = 3) -> None:
        await self.heard.until(lambda: all(len(self.heard.tokens.get(each, [])) >= tokens for each in work_ids))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonServer]:
    repository = ModelRepository(tmp_path_factory.mktemp("triton") / "repository")
    repository.add_language("tensorrt_llm")
    repository.add_language("second", Language(blocks=256, block_tokens=64, metrics=False))
    repository.add_text(accumulate_tokens=True)
    running = TritonServer(repository)
    await running.start()
    yield running
    running.kill()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(server: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TritonEngine]:
    engine = TritonEngine(tmp_path_factory.mktemp("cache"), SystemClock(), PATIENCE)
    await engine.start()
    yield engine
    await engine.close()


def spec(server: TritonServer, flavor: Flavor, **changes: Any) -> ModelSpec:
    options = Triton(server.endpoint, flavor=flavor, metrics_endpoint=server.metrics_endpoint)
    return replace(
        ModelSpec(
            name="m", source="triton:", context_tokens=512, blocks=512, block_tokens=32, slots=16, step_tokens=0,
            tokenizer=str(server.repository.tokenizer), triton=options,
        ),
        **changes,
    )  # fmt: skip


async def load(engine: TritonEngine, model: ModelSpec) -> Loaded:
    heard = Recorder()
    return Loaded(await engine.load(model, heard), heard, Tokenizer.load(model.tokenizer))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def models(engine: TritonEngine, server: TritonServer) -> dict[Flavor, Loaded]:
    """One copy of each flavor, shared by the tests that leave it as they found it."""
    return {flavor: await load(engine, spec(server, flavor)) for flavor in FLAVORS}


async def eventually(condition: Callable[[], Any], within_s: float = 5.0) -> None:
    async with asyncio.timeout(within_s):
        while not (value := await condition()):
            await asyncio.sleep(0.02)
    assert value


pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_streams_token_by_token(models: dict[Flavor, Loaded], flavor: Flavor) -> None:
    loaded = models[flavor]
    work_id = loaded.submit("the old mill", max_tokens=12)
    [outcome] = await loaded.heard.ended(work_id)
    assert (outcome.finish, outcome.output_tokens) == (FinishReason.LENGTH, 12)
    assert sum(work_id in together for together in loaded.heard.together) >= 10
    assert set(loaded.heard.tokens[work_id]) <= set(loaded.tokenizer.encode(" mill wheel water gate river stone grain"
        " flour miller channel sluice pond weir shaft sack meadow"))  # fmt: skip


async def test_all_flavors_answer_alike(models: dict[Flavor, Loaded]) -> None:
    answers = [await models[flavor].ask("the same question", max_tokens=20) for flavor in FLAVORS]
    assert answers[0] == answers[1] == answers[2]


@pytest.mark.parametrize("flavor", ["tensorrt_llm", "ensemble"])
async def test_sixteen_staggered_works_share_a_batch(models: dict[Flavor, Loaded], flavor: Flavor) -> None:
    loaded, heard = models[flavor], models[flavor].heard
    before = len(heard.stats)
    works: list[int] = []
    for n in range(16):
        works.append(loaded.submit(f"word {n}", max_tokens=2000))
        await loaded.begun(works[-1], tokens=1)
    for work_id in works:
        await loaded.begun(work_id, tokens=20)
        loaded.runner.cancel(work_id)
    outcomes = await heard.ended(*works)
    assert all(isinstance(outcome.error, Cancelled) for outcome in outcomes)
    assert max(stats.running for stats in heard.stats[before:]) == 16
    assert len({tuple(heard.tokens[work_id][:20]) for work_id in works}) == 16


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_ends_where_the_model_ends(models: dict[Flavor, Loaded], flavor: Flavor) -> None:
    loaded = models[flavor]
    work_id = loaded.submit("the tale ends", max_tokens=200)
    [outcome] = await loaded.heard.ended(work_id)
    assert outcome.finish is FinishReason.STOP
    assert 0 < outcome.output_tokens < 200
    assert not loaded.tokenizer.eos_ids & set(loaded.heard.tokens[work_id])


async def test_goes_on_behind_the_end_where_it_is_ignored(models: dict[Flavor, Loaded]) -> None:
    tokens = await models["tensorrt_llm"].ask("the tale ends", max_tokens=100, ignore_end=True)
    assert len(tokens) == 100
    assert not models["ensemble"].runner.capabilities.ignore_end


async def test_a_character_in_several_tokens(models: dict[Flavor, Loaded]) -> None:
    """A snowman is three tokens. An ensemble decodes each by itself, and only U+FFFD is left of it."""
    texts = {}
    for flavor in FLAVORS:
        loaded = models[flavor]
        texts[flavor] = loaded.tokenizer.decode(
            await loaded.ask("a snow", max_tokens=6 if flavor != "ensemble" else 20)
        )
    assert texts["tensorrt_llm"].startswith("\u2603 ")
    assert texts["bls"].startswith("\u2603 ")
    assert texts["ensemble"].startswith("\ufffd\ufffd\ufffd ")


@pytest.mark.parametrize(
    ("flavor", "told"), [("tensorrt_llm", "stopped"), ("ensemble", "stopped"), ("bls", "")], ids=FLAVORS
)
async def test_cancel_reaches_the_model(
    models: dict[Flavor, Loaded], server: TritonServer, flavor: Flavor, told: str
) -> None:
    """By the model's own count. A BLS asks it under an id of its own: there the model makes the answer whole."""
    loaded, before = models[flavor], await server.counts()
    work_id = loaded.submit("a long story", max_tokens=200)
    await loaded.begun(work_id)
    loaded.runner.cancel(work_id)
    loaded.runner.cancel(work_id)
    [outcome] = await loaded.heard.ended(work_id)
    assert isinstance(outcome.error, Cancelled)
    assert outcome.output_tokens == len(loaded.heard.tokens[work_id])

    async def gone() -> bool:
        now = await server.counts()
        return now["started"] == before["started"] + 1 and now[told or "finished"] == before[told or "finished"] + 1

    await eventually(gone)
    assert (await server.counts())["cancelled"] == before["cancelled"]


async def test_deadline_reaches_the_model(models: dict[Flavor, Loaded], server: TritonServer) -> None:
    loaded, before = models["tensorrt_llm"], await server.counts()
    work_id = loaded.submit("a longer story", {"deadline": time.time() + 1.0}, max_tokens=400)
    [outcome] = await loaded.heard.ended(work_id)
    assert isinstance(outcome.error, DeadlinePassed)
    assert outcome.output_tokens > 0

    async def gone() -> bool:
        return (await server.counts())["stopped"] == before["stopped"] + 1

    await eventually(gone)


async def test_a_closed_runner_cancels_its_stream(engine: TritonEngine, server: TritonServer) -> None:
    before = await server.counts("second")
    options = replace(spec(server, "tensorrt_llm").triton, model="second", keep_loaded=True)
    loaded = await load(engine, spec(server, "tensorrt_llm", triton=options, block_tokens=64, blocks=256))
    works = [loaded.submit(f"story {n}", max_tokens=400) for n in range(4)]
    await loaded.begun(*works)
    await loaded.runner.close()
    assert not any(work_id in loaded.heard.outcomes for work_id in works)

    async def gone() -> bool:
        now = await server.counts("second")
        return now["stopped"] + now["cancelled"] >= before.get("stopped", 0) + before.get("cancelled", 0) + 4

    await eventually(gone)


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_resumed_tokens_are_prompt(models: dict[Flavor, Loaded], flavor: Flavor) -> None:
    loaded = models[flavor]
    whole = await loaded.ask("tell me more", max_tokens=20)
    rest = await loaded.ask("tell me more", {"resumed": whole[:7]}, max_tokens=20)
    assert whole[:7] + rest == whole


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_with_a_grammar_a_resumed_answer_is_made_again(models: dict[Flavor, Loaded], flavor: Flavor) -> None:
    """A grammar begins where the answer does."""
    loaded, grammar = models[flavor], {"grammar": Grammar("regex", "[a-z ]+")}
    whole = await loaded.ask("tell me in shape", grammar, max_tokens=20)
    rest = await loaded.ask("tell me in shape", {**grammar, "resumed": whole[:7]}, max_tokens=20)
    assert whole[:7] + rest == whole
    with pytest.raises(NotSupported, match="came out different"):
        await loaded.ask("tell me in shape", {**grammar, "resumed": whole[7:9]}, max_tokens=20)


async def test_log_probs(models: dict[Flavor, Loaded]) -> None:
    loaded = models["tensorrt_llm"]
    with_log_probs = loaded.submit("how sure", {"log_probs": True})
    without = loaded.submit("how sure")
    await loaded.heard.ended(with_log_probs, without)
    log_probs = loaded.heard.log_probs[with_log_probs]
    assert len(log_probs) == 8
    assert len({round(each, 3) for each in log_probs}) > 1
    assert all(-1 <= each <= 0 for each in log_probs)
    assert not [each for each in loaded.heard.log_probs[without] if each == each]
    assert [models[flavor].runner.capabilities.log_probs for flavor in FLAVORS] == [True, False, False]


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_parameters_reach_the_model_unchanged(
    models: dict[Flavor, Loaded], server: TritonServer, flavor: Flavor
) -> None:
    loaded, guide = models[flavor], '{"type": "object", "title": "\u00fc\\n"}'
    await loaded.ask(
        f"parameters by {flavor}", {"grammar": Grammar("json_schema", guide)}, max_tokens=5, temperature=0.75,
        top_k=40, top_p=0.5, seed=2**63 + 1, repetition_penalty=1.25, presence_penalty=0.5, frequency_penalty=-0.25,
    )  # fmt: skip
    asked = server.repository.asked("guided_decoding_guide")[-1]
    end = next(iter(loaded.tokenizer.eos_ids))
    prompt = loaded.tokenizer.encode(f"parameters by {flavor}")
    expected = {
        "input_ids": prompt, "input_lengths": [len(prompt)], "request_output_len": [5], "streaming": [True],
        "temperature": [0.75], "runtime_top_k": [40], "runtime_top_p": [0.5], "seed": [2**63 + 1],
        "repetition_penalty": [1.25], "presence_penalty": [0.5], "frequency_penalty": [-0.25], "end_id": [end],
        "pad_id": [end], "guided_decoding_guide_type": ["json_schema"], "guided_decoding_guide": [guide],
        "exclude_input_in_output": [True], "return_perf_metrics": [True],
    }  # fmt: skip
    if flavor != "tensorrt_llm":
        expected["return_num_output_tokens"] = [True]
    assert asked == expected
    for form, guide_type in (("regex", "regex"), ("ebnf", "ebnf_grammar")):
        await loaded.ask("a form", {"grammar": Grammar(form, "x")}, max_tokens=1)  # type: ignore[arg-type]
        assert server.repository.asked("guided_decoding_guide")[-1]["guided_decoding_guide_type"] == [guide_type]


async def test_greedy_and_plain_sampling_are_said_so_that_they_mean_it(
    models: dict[Flavor, Loaded], server: TritonServer
) -> None:
    loaded = models["tensorrt_llm"]
    await loaded.ask("greedy", max_tokens=1)
    greedy = server.repository.asked()[-1]
    await loaded.ask("warm", max_tokens=1, temperature=1.5)
    warm = server.repository.asked()[-1]
    await loaded.ask("default", max_tokens=1, temperature=None)
    default = server.repository.asked()[-1]
    assert (greedy["runtime_top_k"], "temperature" in greedy) == ([1], False)
    assert (warm["temperature"], warm["runtime_top_p"], "runtime_top_k" in warm) == ([1.5], [1.0], False)
    assert not default.keys() & {"temperature", "runtime_top_k", "runtime_top_p"}


async def test_cached_tokens_are_those_the_server_tells(models: dict[Flavor, Loaded]) -> None:
    loaded = models["tensorrt_llm"]
    prompt = [*range(100)]
    work = {"block_hashes": chain(prompt, 32, salt("m", "")), "block_tokens": 32}
    first, second = [(await loaded.heard.ended(loaded.submit(prompt, work)))[0].cached_tokens for _ in range(2)]
    assert (first, second) == (0, 96)
    assert any(event.kind == "stored" for event in loaded.heard.events)


async def test_lora_tensors_reach_the_model(models: dict[Flavor, Loaded], server: TritonServer, tmp_path: Path) -> None:
    """Weights at first use, then the id alone; and again when the server has dropped them (it holds two)."""
    loaded = models["tensorrt_llm"]
    adapters = [adapter(server, tmp_path, f"a{n}", n) for n in range(3)]
    plain = await loaded.ask("who are you", max_tokens=10)
    for each in adapters:
        await loaded.runner.load_adapter(each)
        await loaded.runner.load_adapter(each)
    sent = server.repository.asked("lora_weights")
    assert [asked["lora_task_id"] for asked in sent] == [[task_id(each.adapter)] for each in adapters]
    assert sent[1]["lora_config"] == [0, 0, 1, 1, 0, 1]
    assert sent[1]["lora_weights"] == [1.0] * 8
    works = {each.adapter: {"adapter": each.adapter} for each in adapters}
    answers = [await loaded.ask("who are you", works[each.adapter], max_tokens=10) for each in adapters[1:]]
    assert len(server.repository.asked("lora_weights")) == 3
    answers.append(await loaded.ask("who are you", works[adapters[0].adapter], max_tokens=10))
    assert len(server.repository.asked("lora_weights")) == 4, "the server had dropped the first"
    assert len({tuple(answer) for answer in [*answers, plain]}) == 4
    await loaded.runner.unload_adapter(adapters[0].adapter)
    with pytest.raises(StageUnavailable, match="is not loaded"):
        await loaded.ask("who are you", works[adapters[0].adapter])


async def test_bad_adapters_are_refused_with_every_fault(
    models: dict[Flavor, Loaded], server: TritonServer, tmp_path: Path
) -> None:
    good = adapter(server, tmp_path, "bad", 1)
    np.save(tmp_path / "bad" / "model.lora_weights.npy", np.ones(3, np.int8))
    np.save(tmp_path / "bad" / "model.lora_config.npy", np.ones((2, 2), np.int32))
    with pytest.raises(LoadFailed, match=r"lora_weights.npy has shape \(3,\) of int8.*lora_config.npy has shape"):
        await models["tensorrt_llm"].runner.load_adapter(good)
    with pytest.raises(LoadFailed, match=r"model.lora_weights.npy, model.lora_config.npy missing"):
        await models["tensorrt_llm"].runner.load_adapter(replace(good, source=str(tmp_path)))


def adapter(server: TritonServer, folder: Path, name: str, value: int) -> ModelSpec:
    (folder / name).mkdir()
    np.save(folder / name / "model.lora_weights.npy", np.full((1, 2, 4), value, np.float16))
    np.save(folder / name / "model.lora_config.npy", np.array([[[0, 0, 1], [1, 0, 1]]], np.int32))
    return replace(spec(server, "tensorrt_llm"), name=name, base="m", source=str(folder / name), version="1")


@pytest.mark.parametrize("flavor", FLAVORS)
async def test_errors_of_the_model(models: dict[Flavor, Loaded], flavor: Flavor) -> None:
    """In the middle of an answer, too; but that tritonserver 2.51 keeps from a BLS, which then waits for ever."""
    loaded = models[flavor]
    if flavor != "bls":
        work_id = loaded.submit("this fails", max_tokens=10)
        [outcome] = await loaded.heard.ended(work_id)
        assert isinstance(outcome.error, InternalError)
        assert outcome.output_tokens == 3
    with pytest.raises(InternalError):
        await loaded.ask("it refuses")
    with pytest.raises(RequestInvalid, match="exceeds maximum input length"):
        await loaded.ask([*range(200)] * 2)
    assert len(await loaded.ask("and goes on")) == 8


async def test_bad_requests_do_not_reach_the_server(models: dict[Flavor, Loaded], server: TritonServer) -> None:
    loaded, before = models["tensorrt_llm"], len(server.repository.asked())
    with pytest.raises(RequestInvalid, match=r"has 512 tokens; at most \d+ are allowed.*outside the vocabulary"):
        await loaded.ask([99999] * 512)
    with pytest.raises(RequestInvalid, match="has no tokens"):
        await loaded.ask([])
    with pytest.raises(RequestInvalid, match="runtime_top_k"):
        await loaded.ask("x", temperature=1.0, top_k=2**40)
    assert len(server.repository.asked()) == before
    end = next(iter(loaded.tokenizer.eos_ids))
    assert await models["ensemble"].ask([*loaded.tokenizer.encode("a"), end, *loaded.tokenizer.encode(" b")])
    with pytest.raises(NotSupported, match="control token"):
        await models["ensemble"].ask(loaded.tokenizer.encode("say <|end|> and go on"))


async def test_metrics_become_capacity_and_stats(models: dict[Flavor, Loaded], server: TritonServer) -> None:
    loaded = models["tensorrt_llm"]
    capacity = loaded.runner.capacity
    assert (capacity.slots, capacity.blocks, capacity.block_tokens) == (16, 512, 32)
    assert capacity.exactness is Exactness.MODELLED
    works = [loaded.submit([*range(90 + n)], max_tokens=120) for n in range(4)]
    before = len(loaded.heard.stats)
    await loaded.heard.ended(*works)
    assert max(stats.blocks_used for stats in loaded.heard.stats[before:]) >= 12
    await loaded.heard.until(lambda: loaded.heard.stats[-1].blocks_used == 0)


async def test_two_models_at_once(engine: TritonEngine, models: dict[Flavor, Loaded], server: TritonServer) -> None:
    """And explicit loading and unloading, as the server's index shows it."""
    calls = Calls(server.endpoint)
    try:
        options = replace(spec(server, "tensorrt_llm").triton, model="second")
        assert await calls.ready("tensorrt_llm")
        second = await load(engine, spec(server, "tensorrt_llm", triton=options, blocks=100, block_tokens=64))
        assert (second.runner.capacity.blocks, second.runner.capacity.block_tokens) == (100, 64)
        both = [models["tensorrt_llm"], second]
        works = [loaded.submit("together", max_tokens=60) for loaded in both]
        for loaded, work_id in zip(both, works, strict=True):
            await loaded.begun(work_id)
        for loaded, work_id in zip(both, works, strict=True):
            await loaded.heard.ended(work_id)
        assert await calls.ready("second")
        await second.runner.close()

        async def unloaded() -> bool:
            return not await calls.ready("second")

        await eventually(unloaded)
        assert await calls.ready("tensorrt_llm")
    finally:
        await calls.close()


async def test_a_shared_step_stays_while_a_copy_needs_it(tmp_path: Path) -> None:
    async with own_server(tmp_path, text=True) as (server, engine):
        ensemble = await load(engine, spec(server, "ensemble"))
        tokens = await load(engine, spec(server, "tensorrt_llm"))
        calls = Calls(server.endpoint)
        try:
            await ensemble.runner.close()
            assert len(await tokens.ask("still here")) == 8
            assert await calls.ready("tensorrt_llm")
            assert not await calls.ready("ensemble")
            await tokens.runner.close()

            async def unloaded() -> bool:
                return not await calls.ready("tensorrt_llm")

            await eventually(unloaded)
        finally:
            await calls.close()


async def test_what_does_not_fit_is_told_at_once(engine: TritonEngine, server: TritonServer) -> None:
    repository = server.repository
    repository.add_language("crooked")
    repository.alter("crooked", 'name: "output_ids"', 'name: "tokens"')
    length = 'name: "request_output_len"\n    data_type: TYPE_INT'
    repository.alter("crooked", f"{length}32", f"{length}64")
    repository.alter("crooked", "decoupled: true", "decoupled: false")
    crooked = replace(spec(server, "tensorrt_llm").triton, model="crooked")
    with pytest.raises(LoadFailed) as failed:
        await engine.load(spec(server, "tensorrt_llm", triton=crooked), Recorder())
    for fault in (
        "crooked: it is not decoupled",
        "output output_ids (INT32) is missing",
        "request_output_len is INT64, not INT32",
    ):
        assert fault in str(failed.value)
    plain = replace(crooked, model="tensorrt_llm")
    for changes, fault in (
        ({"triton": replace(crooked, model="nowhere")}, "failed to load 'nowhere'"),
        ({"triton": replace(plain, flavor="bls")}, "input text_input (BYTES) is missing"),
        ({"triton": replace(plain, flavor="bls")}, "output text_output (BYTES) is missing"),
        ({"triton": Triton()}, "triton.endpoint, triton.flavor"),
        ({"block_tokens": 16}, "blocks have 32 tokens, the catalogue says 16"),
        ({"triton": replace(plain, endpoint="127.0.0.1:1")}, "the Triton server is away"),
        ({"tokenizer": "/nowhere"}, "the tokenizer /nowhere"),
    ):
        with pytest.raises(LoadFailed) as failed:
            await engine.load(spec(server, "tensorrt_llm", **changes), Recorder())
        assert fault in str(failed.value)


async def test_self_check(models: dict[Flavor, Loaded]) -> None:
    for flavor in FLAVORS:
        await models[flavor].runner.self_check()


class own_server:  # noqa: N801
    """A server and an engine of a test's own, with one language model (and the text models)."""

    def __init__(self, folder: Path, text: bool = False, language: Language | None = None) -> None:
        repository = ModelRepository(folder / "repository")
        repository.add_language("tensorrt_llm", language or Language())
        if text:
            repository.add_text()
        self.server = TritonServer(repository)
        self.engine = TritonEngine(folder / "cache", SystemClock(), PATIENCE)

    async def __aenter__(self) -> tuple[TritonServer, TritonEngine]:
        await self.server.start()
        return self.server, self.engine

    async def __aexit__(self, *_: object) -> None:
        await self.engine.close()
        self.server.kill()


@pytest.mark.parametrize("flavor", ["tensorrt_llm", "ensemble"])
async def test_server_killed_under_eight_streams(tmp_path: Path, flavor: Flavor) -> None:
    """Resumed as a batcher would, the works end with the tokens that they have undisturbed."""
    async with own_server(tmp_path, text=True, language=Language(step_s=0.01)) as (server, engine):
        loaded = await load(engine, spec(server, flavor))
        prompts = [f"stream {n}" for n in range(8)]
        expected = [await loaded.ask(prompt, max_tokens=40) for prompt in prompts[:2]]
        works = [loaded.submit(prompt, max_tokens=40) for prompt in prompts]
        await loaded.begun(*works, tokens=5)
        server.kill()
        outcomes = await loaded.heard.ended(*works)
        assert all(isinstance(outcome.error, StageUnavailable) for outcome in outcomes)
        with pytest.raises(StageUnavailable, match="away"):
            await loaded.ask("while it is away")
        with pytest.raises(SelfCheckFailed, match="away"):
            await loaded.runner.self_check()
        passed = [loaded.heard.tokens[work_id] for work_id in works]
        assert all(5 <= len(tokens) < 40 for tokens in passed)
        await server.start()
        started = time.monotonic()
        while True:
            try:
                await loaded.runner.self_check()
                break
            except SelfCheckFailed:
                assert time.monotonic() - started < 20
                await asyncio.sleep(0.05)
        works = [
            loaded.submit(prompt, {"resumed": tokens}, max_tokens=40)
            for prompt, tokens in zip(prompts, passed, strict=True)
        ]
        outcomes = await loaded.heard.ended(*works)
        assert all(outcome.finish is FinishReason.LENGTH and outcome.output_tokens == 40 for outcome in outcomes)
        whole = [[*tokens, *loaded.heard.tokens[each]] for tokens, each in zip(passed, works, strict=True)]
        undisturbed = [*expected, *[await loaded.ask(prompt, max_tokens=40) for prompt in prompts[2:]]]
        assert whole == undisturbed
        assert not loaded.heard.broken
        assert any(event.kind == "cleared" for event in loaded.heard.events)


async def test_tls(tmp_path: Path) -> None:
    own = own_server(tmp_path)
    own.server.tls = make_certificates(tmp_path / "tls")
    async with own as (server, engine):
        secure = replace(spec(server, "tensorrt_llm").triton, tls_ca_file=str(tmp_path / "tls" / "ca.crt"))
        loaded = await load(engine, spec(server, "tensorrt_llm", triton=secure))
        assert len(await loaded.ask("behind tls")) == 8
        with pytest.raises(LoadFailed, match="away"):
            await engine.load(spec(server, "tensorrt_llm"), Recorder())
        gone = replace(secure, tls_ca_file=str(tmp_path / "gone"))
        with pytest.raises(LoadFailed, match="tls_ca_file"):
            await engine.load(spec(server, "tensorrt_llm", triton=gone), Recorder())


async def test_a_server_that_stays_away_breaks_the_runner(tmp_path: Path) -> None:
    async with own_server(tmp_path) as (server, engine):
        engine._patience = replace(PATIENCE, away_s=0.5)
        loaded = await load(engine, spec(server, "tensorrt_llm"))
        server.kill()
        await loaded.heard.until(lambda: loaded.heard.broken, 20)
        assert "stays away" in loaded.heard.broken[0]
        with pytest.raises(RuntimeError):
            loaded.submit("too late")


async def test_a_model_that_comes_back_different_breaks_the_runner(tmp_path: Path) -> None:
    async with own_server(tmp_path) as (server, engine):
        loaded = await load(engine, spec(server, "tensorrt_llm"))
        server.kill()
        server.repository.alter("tensorrt_llm", "max_batch_size: 64", "max_batch_size: 32")
        await server.start()
        await loaded.heard.until(lambda: loaded.heard.broken, 20)
        assert "another configuration" in loaded.heard.broken[0]
        assert await load(engine, spec(server, "tensorrt_llm"))


async def test_a_frozen_server_is_noticed(tmp_path: Path) -> None:
    async with own_server(tmp_path) as (server, engine):
        engine._patience = replace(PATIENCE, answer_s=0.5)
        loaded = await load(engine, spec(server, "tensorrt_llm"))
        work_id = loaded.submit("frozen", max_tokens=300)
        await loaded.begun(work_id)
        server.freeze()
        try:
            [outcome] = await loaded.heard.ended(work_id)
            assert isinstance(outcome.error, StageUnavailable)
        finally:
            server.thaw()
        await eventually(lambda: answers(loaded), 20)


async def test_a_model_unloaded_behind_its_back_is_loaded_again(tmp_path: Path) -> None:
    async with own_server(tmp_path) as (server, engine):
        loaded = await load(engine, spec(server, "tensorrt_llm"))
        calls = Calls(server.endpoint)
        try:
            await calls.unload("tensorrt_llm")
            await loaded.heard.until(lambda: any(event.kind == "cleared" for event in loaded.heard.events), 20)
        finally:
            await calls.close()
        await eventually(lambda: answers(loaded), 20)


async def answers(loaded: Loaded) -> bool:
    """Whether a model answers a work now."""
    try:
        return len(await loaded.ask("are you there")) == 8
    except (StageUnavailable, InternalError):
        return False
