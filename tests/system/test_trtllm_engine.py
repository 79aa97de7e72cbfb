"""The trtllm engine against a test double of TensorRT-LLM 1.2 and 1.3 (tests/trtllm_double)."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from libs.catalogue.options import TrtLlm
from libs.clock import SystemClock
from libs.errors import Cancelled, DeadlinePassed, NotSupported, RequestInvalid, StageUnavailable
from libs.lane.work import FinishReason, Grammar, Sampling, Tier, Work
from libs.tokens.blocks import chain, link, salt
from services.executor.child.process import ChildProcess
from services.executor.engine import EngineUnavailable, LoadFailed, SelfCheckFailed
from services.executor.trtllm import engine as engine_module
from services.executor.trtllm.engine import TrtLlmEngine
from services.executor.trtllm.runner import TrtLlmRunner
from tests.system import trtllm
from tests.system.recorder import Recorder

POISON = 31_337
"""In a prompt: the end of the double."""

versions = pytest.mark.parametrize("version", trtllm.VERSIONS)


@dataclass
class Loaded:
    """A loaded model, its listener, and numbers for works."""

    folder: Path
    runner: TrtLlmRunner
    heard: Recorder
    next_id: int = 0

    def submit(self, prompt: Sequence[int], work: dict[str, Any] | None = None, **sampling: Any) -> int:
        self.next_id += 1
        settings = {"max_tokens": 8, "temperature": 0.0, "ignore_end": True, **sampling}
        fields: dict[str, Any] = {
            "request_id": f"r{self.next_id}", "tenant": "t", "tier": Tier.INTERACTIVE, "model": "base",
            "prompt": list(prompt), "sampling": Sampling(**settings), "deadline": time.time() + 60, **(work or {}),
        }  # fmt: skip
        made = Work(**{"salt": fields.get("adapter", ""), **fields})
        self.heard.resumed[self.next_id] = len(made.resumed)
        self.runner.submit(self.next_id, made)
        return self.next_id

    async def ask(self, prompt: Sequence[int], work: dict[str, Any] | None = None, **sampling: Any) -> list[int]:
        work_id = self.submit(prompt, work, **sampling)
        [outcome] = await self.heard.ended(work_id)
        if outcome.error is not None:
            raise outcome.error
        return self.heard.tokens.get(work_id, [])

    async def cached(self, prompt: Sequence[int], **work: Any) -> int:
        [outcome] = await self.heard.ended(self.submit(prompt, work, max_tokens=1))
        return outcome.cached_tokens

    @property
    def index(self) -> set[int]:
        """What the block events add up to."""
        stored: set[int] = set()
        for event in self.heard.events:
            if event.kind == "cleared":
                stored.clear()
            elif event.kind == "stored":
                stored |= set(event.hashes)
            else:
                assert stored.issuperset(event.hashes), "removed without having been stored"
                stored -= set(event.hashes)
        return stored

    def calls(self, call: str) -> list[dict[str, Any]]:
        return trtllm.calls(self.folder, call)

    async def until(self, holds: Any) -> None:
        async with asyncio.timeout(10):
            while not holds():
                await asyncio.sleep(0.02)


@asynccontextmanager
async def loaded(
    folder: Path, version: str = "1.3", model: dict[str, Any] | None = None, **knobs: Any
) -> AsyncIterator[Loaded]:
    engine = trtllm.engine(folder, version, **knobs)
    heard = Recorder()
    runner = await engine.load(trtllm.model(folder, **(model or {})), heard)
    try:
        yield Loaded(folder, runner, heard)
    finally:
        await engine.close()
    assert not psutil.pid_exists(runner.pid)


def tokens(seed: int, count: int) -> list[int]:
    return [1000 + (seed * 7919 + n * 31) % 20_000 for n in range(count)]


@versions
async def test_answers_stream_and_the_engine_is_asked_for_what_is_meant(version: str, tmp_path: Path) -> None:
    async with loaded(tmp_path, version, {"revision": "main", "tokenizer": "words"}, step_ms=3) as it:
        work = {"traceparent": "00-11111111111111111111111111111111-2222222222222222-01", "tier": Tier.ASYNC}
        work_id = it.submit(tokens(1, 40), work, max_tokens=20, temperature=0.7, top_k=5, top_p=0.9, seed=3)
        [outcome] = await it.heard.ended(work_id)
        assert (outcome.finish, outcome.output_tokens) == (FinishReason.LENGTH, 20)
        assert sum(work_id in together for together in it.heard.together) > 5, "it came in one piece"
        [llm] = it.calls("LLM")
        assert (llm["tokenizer"], llm["revision"]) == ("words", "main")
        assert (llm["max_batch_size"], llm["max_num_tokens"], llm["max_seq_len"]) == (16, 256, 512)
        assert llm["enable_chunked_prefill"] is True
        asked = it.calls("generate_async")[-1]
        assert asked["inputs"] == tokens(1, 40)
        assert asked["params"] == {"max_tokens": 20, "temperature": 0.7, "top_k": 5, "top_p": 0.9, "seed": None}
        assert asked["streaming"] is True
        assert asked["cache_salt"] is None
        if version == "1.3":
            assert (asked["priority"], asked["trace_headers"]) == (0.25, {"traceparent": work["traceparent"]})
        assert it.runner.capabilities.priority == (version == "1.3")
        assert (it.runner.capacity.blocks, it.runner.capacity.block_tokens) == (128, trtllm.BLOCK)
    assert trtllm.calls(tmp_path, "shutdown")


async def test_an_answer_ends_before_the_end_token(tmp_path: Path) -> None:
    async with loaded(tmp_path) as it:
        for seed in range(40):
            work_id = it.submit(tokens(seed, 20), max_tokens=200, ignore_end=False)
            [outcome] = await it.heard.ended(work_id)
            assert 2 not in it.heard.tokens[work_id]
            if outcome.finish is FinishReason.STOP:
                whole = await it.ask(tokens(seed, 20), max_tokens=outcome.output_tokens + 1)
                assert whole[:-1] == it.heard.tokens[work_id]
                return
        pytest.fail("no answer ended by itself")


async def test_sixteen_run_in_one_batch_each_with_its_own_answer(tmp_path: Path) -> None:
    async with loaded(tmp_path, step_ms=5) as it:
        alone = [await it.ask(tokens(n, 30 + n)) for n in range(16)]
        works = []
        for n in range(16):
            works.append(it.submit(tokens(n, 30 + n), max_tokens=40))
            await asyncio.sleep(0.004)
        await it.heard.ended(*works)
        assert max(stats.running for stats in it.heard.stats) == 16
        assert max(len(set(together)) for together in it.heard.together) >= 12
        assert [it.heard.tokens[work_id][:8] for work_id in works] == alone


async def test_a_cancel_and_a_deadline_abort_the_request(tmp_path: Path) -> None:
    async with loaded(tmp_path, step_ms=5) as it:
        cancelled = it.submit(tokens(1, 20), max_tokens=400)
        late = it.submit(tokens(2, 20), {"deadline": time.time() + 0.3}, max_tokens=400)
        await it.heard.until(lambda: len(it.heard.tokens.get(cancelled, [])) > 3)
        it.runner.cancel(cancelled)
        outcomes = await it.heard.ended(cancelled, late)
        assert [type(outcome.error) for outcome in outcomes] == [Cancelled, DeadlinePassed]
        await it.until(lambda: len(it.calls("abort")) == 2)
        await it.until(lambda: it.heard.stats[-1].running == it.heard.stats[-1].blocks_used == 0)


async def test_log_probs_are_those_of_the_chosen_tokens(tmp_path: Path) -> None:
    async with loaded(tmp_path) as it:
        work_id = it.submit(tokens(1, 20), {"log_probs": True})
        await it.heard.ended(work_id)
        chosen = it.heard.tokens[work_id]
        assert it.heard.log_probs[work_id] == [-0.25 * (token % 5) for token in chosen]


SCHEMA = '{"type": "object",   "properties": {"å": {"type": "string"}}}'


async def test_grammars_reach_the_engine_unchanged_and_bad_ones_harm_nobody(tmp_path: Path) -> None:
    async with loaded(tmp_path, guides=f'{{"{"a|b"}": [500, 501, 502, 503, 504]}}') as it:
        other = it.submit(tokens(3, 20), max_tokens=100)
        for form, text, field in (
            ("json_schema", SCHEMA, "json"), ("regex", "a|b", "regex"), ("ebnf", 'root ::= "x"', "grammar"),
        ):  # fmt: skip
            await it.ask(tokens(1, 20), {"grammar": Grammar(form, text)})  # type: ignore[arg-type]
            guided = it.calls("generate_async")[-1]["guided"]
            assert f"{field}={text!r}" in guided
            assert guided.count("=None") + guided.count("=False") == 4
        bad = [Grammar("regex", "((("), Grammar("json_schema", "{"), Grammar("ebnf", " ")]
        works = [it.submit(tokens(1, 20), {"grammar": grammar}) for grammar in bad]
        outcomes = await it.heard.ended(*works)
        for outcome, word in zip(outcomes, ("Unbalanced parenthesis", "is not JSON", "is empty"), strict=True):
            assert isinstance(outcome.error, RequestInvalid)
            [violation] = outcome.error.violations
            assert word in violation.description
            assert ".cc" not in violation.description
        assert (await it.heard.ended(other))[0].output_tokens == 100


async def test_an_answer_resumes(tmp_path: Path) -> None:
    regex = {"grammar": Grammar("regex", "a|b")}
    async with loaded(tmp_path, guides='{"a|b": [500, 501, 502, 503, 504]}') as it:
        whole = await it.ask(tokens(1, 20), max_tokens=12)
        assert await it.ask(tokens(1, 20), {"resumed": tuple(whole[:5])}, max_tokens=12) == whole[5:]
        assert it.calls("generate_async")[-1]["inputs"] == tokens(1, 20) + whole[:5]
        assert it.calls("generate_async")[-1]["params"]["max_tokens"] == 7
        guided = {**regex, "resumed": (500, 501)}
        assert await it.ask(tokens(1, 20), guided, ignore_end=False) == [502, 503, 504]
        assert it.calls("generate_async")[-1]["inputs"] == tokens(1, 20), "the grammar begins at its beginning"
        for resumed in ((500, 7), (500, 501, 502, 503, 504, 505)):
            with pytest.raises(NotSupported, match="came out different"):
                await it.ask(tokens(1, 20), {**regex, "resumed": resumed}, ignore_end=False)
        full = it.submit(tokens(1, 500), {"resumed": tuple(tokens(2, 12))}, max_tokens=40)
        [outcome] = await it.heard.ended(full)
        assert (outcome.finish, outcome.output_tokens) == (FinishReason.LENGTH, 12)


async def test_adapters_mix_in_one_batch_and_share_no_keys(tmp_path: Path) -> None:
    adapters = [trtllm.adapter(tmp_path, f"a{n}") for n in range(3)]
    names = ["", *(adapter.adapter for adapter in adapters)]
    async with loaded(tmp_path, step_ms=2) as it:
        early = it.submit(tokens(1, 20), {"adapter": names[1]})
        [outcome] = await it.heard.ended(early)
        assert isinstance(outcome.error, StageUnavailable)
        for adapter in adapters:
            await it.runner.load_adapter(adapter)
            await it.runner.load_adapter(adapter)
        assert len([call for call in it.calls("generate_async") if call["lora"]]) == 3, "each was warmed once"
        alone = {name: await it.ask(tokens(1, 40), {"adapter": name}) for name in names}
        assert len({tuple(answer) for answer in alone.values()}) == 4
        works = {it.submit(tokens(1, 40), {"adapter": name}): name for name in names * 4}
        outcomes = await it.heard.ended(*works)
        assert max(stats.running for stats in it.heard.stats) == 16
        assert {outcome.cached_tokens for outcome in outcomes} == {32}
        assert all(it.heard.tokens[work_id] == alone[name] for work_id, name in works.items())
        lora = {tuple(call["lora"][:2]) for call in it.calls("generate_async") if call["lora"]}
        assert lora == {(name, n + 1) for n, name in enumerate(names[1:])}
        fresh = tokens(9, 48)
        assert [await it.cached(fresh, adapter=name) for name in names] == [0, 0, 0, 0]
        assert [await it.cached(fresh, adapter=name) for name in names] == [32, 32, 32, 32]
        assert [await it.cached(fresh, salt="tenant") for _ in range(2)] == [0, 32]
        await it.runner.unload_adapter(names[1])
        await it.runner.unload_adapter(names[1])
        with pytest.raises(StageUnavailable):
            await it.ask(fresh, {"adapter": names[1]})
        await it.runner.load_adapter(adapters[0])
        assert await it.ask(tokens(1, 40), {"adapter": names[1]}) == alone[names[1]]


async def test_an_adapter_that_does_not_load_says_why(tmp_path: Path) -> None:
    async with loaded(tmp_path) as it:
        with pytest.raises(LoadFailed, match="LoRA rank 64 exceeds max_lora_rank 16"):
            await it.runner.load_adapter(trtllm.adapter(tmp_path, "large", rank=64))
        missing = replace(trtllm.adapter(tmp_path, "gone"), source=str(tmp_path / "nowhere"))
        with pytest.raises(LoadFailed, match="does not exist"):
            await it.runner.load_adapter(missing)
        await it.runner.load_adapter(trtllm.adapter(tmp_path, "gone"))
        await it.runner.self_check()


def salts(it: Loaded, words: Sequence[str]) -> dict[int | None, str]:
    """The double's numbers of salts."""
    sys.path.append(str(trtllm.DOUBLE))
    try:
        from tensorrt_llm.runtime.hashing import get_cache_salt_id  # type: ignore[import-not-found]
    finally:
        sys.path.remove(str(trtllm.DOUBLE))
    return {None: "", **{get_cache_salt_id(word): word for word in words}}


async def traffic(it: Loaded, seed: int, words: Sequence[str], works: int = 60) -> None:
    """Works whose prompts share beginnings, under several salts; some are cancelled."""
    chance = random.Random(seed)
    stems = [tokens(900 + n, 48) for n in range(3)]
    running = []
    for n in range(works):
        prompt = chance.choice(stems)[: chance.choice((16, 32, 48))] + tokens(n, chance.randrange(1, 40))
        word = chance.choice(words)
        adapter = word if word.startswith("a") else ""
        running.append(it.submit(prompt, {"salt": word, "adapter": adapter}, max_tokens=chance.randrange(1, 40)))
        if chance.random() < 0.3:
            await asyncio.sleep(0.005)
        if chance.random() < 0.1:
            it.runner.cancel(chance.choice(running))
    await it.heard.ended(*running)


@versions
@pytest.mark.parametrize("host_cache_bytes", [0, 12 << 20])
async def test_the_index_is_the_engines_cache(version: str, host_cache_bytes: int, tmp_path: Path) -> None:
    options = TrtLlm(max_adapters=4, max_adapter_rank=16, host_cache_bytes=host_cache_bytes)
    adapters = [trtllm.adapter(tmp_path, f"a{n}") for n in range(2)]
    words = ["", "tenant", *(adapter.adapter for adapter in adapters)]
    async with loaded(tmp_path, version, {"blocks": 48, "slots": 6, "trtllm": options}) as it:
        for adapter in adapters:
            await it.runner.load_adapter(adapter)
        for seed in (1, 2, 3):
            await traffic(it, seed, words)
            await it.until(lambda: it.index == trtllm.truth(tmp_path, "base", salts(it, words)))
        assert len(it.index) > 20
        assert sum(event.kind == "removed" for event in it.heard.events) > 20, "nothing was evicted"
        assert "cleared" not in {event.kind for event in it.heard.events}


async def test_events_that_were_lost_leave_the_index_truthful(tmp_path: Path) -> None:
    words = ["", "tenant"]
    async with loaded(tmp_path, model={"blocks": 64, "slots": 6}, event_buffer=12) as it:
        known = salts(it, words)
        await traffic(it, 5, words)
        await it.until(lambda: it.index <= trtllm.truth(tmp_path, "base", known))
        cleared = sum(event.kind == "cleared" for event in it.heard.events)
        assert cleared, "nothing was lost"
        stem = tokens(901, 48)
        for _ in range(3):
            for word in words:
                await it.ask([*stem, 5], {"salt": word}, max_tokens=1)
        await it.until(lambda: it.index <= trtllm.truth(tmp_path, "base", known))
        wanted = {name for word in words for name in chain(stem, trtllm.BLOCK, salt("base", word))}
        assert wanted <= it.index, "blocks that works found again are known again"


async def test_names_that_nobody_knows_are_told_where_they_are_plain(tmp_path: Path) -> None:
    words = ["", "tenant"]
    async with loaded(tmp_path, hash="other") as it:
        await it.ask(tokens(1, 40))
        await it.ask(tokens(2, 40), {"salt": "tenant"})
        await it.until(lambda: len(it.index) >= 5)
        await asyncio.gather(*(it.ask(tokens(3, 40), {"salt": word}) for word in words))
        await it.until(lambda: it.heard.stats[-1].running == 0)
        assert it.index <= trtllm.truth(tmp_path, "base", salts(it, words))


async def test_a_killed_child_breaks_the_runner(tmp_path: Path) -> None:
    async with loaded(tmp_path, step_ms=5) as it:
        it.submit(tokens(1, 20), max_tokens=400)
        await it.heard.until(lambda: it.heard.tokens)
        os.kill(it.runner.pid, signal.SIGKILL)
        await it.heard.until(lambda: it.heard.broken)
        assert it.heard.broken == ["its process ended with status -9"]
        assert not it.heard.outcomes
        with pytest.raises(SelfCheckFailed):
            await it.runner.self_check()
        with pytest.raises(LoadFailed):
            await it.runner.load_adapter(trtllm.adapter(tmp_path, "late"))


@pytest.mark.parametrize(
    ("fault", "version", "reason"),
    [
        ("", "1.2", "an illegal memory access"),
        ("", "1.3", "an illegal memory access"),
        ("unhealthy", "1.3", "not healthy"),
        ("stats", "1.3", "statistics cannot be read: the RPC client is closed"),
    ],
)
async def test_the_end_of_the_engine_is_the_end_of_the_runner(
    fault: str, version: str, reason: str, tmp_path: Path
) -> None:
    async with loaded(tmp_path, version, step_ms=3, fault=fault) as it:
        it.submit(tokens(1, 20), max_tokens=60)
        it.submit([POISON, 5], max_tokens=60)
        await it.heard.until(lambda: it.heard.broken)
        assert reason in it.heard.broken[0]
        for outcome in it.heard.outcomes.values():
            assert outcome.finish is not None or isinstance(outcome.error, StageUnavailable)


@pytest.mark.parametrize(("fault", "error"), [("timeout", DeadlinePassed), ("cancelled", StageUnavailable)])
async def test_the_engine_may_give_a_work_up(fault: str, error: type[Exception], tmp_path: Path) -> None:
    async with loaded(tmp_path, fault=fault) as it:
        with pytest.raises(error):
            await it.ask([POISON, 5])
        assert await it.ask(tokens(1, 20))


async def test_hashes_that_come_with_a_work_are_those_of_its_blocks(tmp_path: Path) -> None:
    async with loaded(tmp_path) as it:
        await it.ask(tokens(1, 40), {"block_hashes": (111, 222), "block_tokens": trtllm.BLOCK})
        await it.ask(tokens(2, 40), {"block_hashes": (333,), "block_tokens": 8})
        wanted = {111, link(111, tokens(1, 32)[16:]), *chain(tokens(2, 32), trtllm.BLOCK, salt("base", ""))}
        await it.until(lambda: wanted <= it.index)
        assert not {222, 333} & it.index, "the first one names the chain, and only in the engine's blocks"


@pytest.mark.parametrize(
    ("fault", "change", "reason"),
    [
        ("", {"source": "/nowhere"}, "/nowhere is not a local folder"),
        ("", {"slots": 0}, "at least 1"),
        ("", {"trtllm": TrtLlm(kv_fraction=1.5)}, "must be a float between 0 and 1"),
        ("", {"trtllm": TrtLlm(tensor_parallel=2)}, "Only 1 GPUs are available, but 2 are required"),
        ("oom", {}, r"CUDA out of memory\. Tried to allocate 2\.00 GiB"),
        ("crash", {}, "ended with status 3 while it loaded"),
        ("import", {}, "cannot be used: libnvinfer"),
        ("garbage", {}, r"self-test failed: asked for 2 tokens, the model answered \[\d+\]"),
        ("block size", {}, "blocks have 64 tokens, not 16"),
        ("untold", {"blocks": 0}, "give `blocks` in the catalogue"),
    ],
)
async def test_what_cannot_be_loaded_says_why(fault: str, change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    engine = trtllm.engine(tmp_path, fault=fault)
    with pytest.raises(LoadFailed, match=reason):
        await engine.load(trtllm.model(tmp_path, **change), Recorder())
    await engine.close()


async def test_a_model_that_refuses_the_self_test_is_not_loaded(tmp_path: Path) -> None:
    spec = trtllm.model(tmp_path)
    (Path(spec.source) / "config.json").write_text('{"vocab_size": 5}')
    with pytest.raises(LoadFailed, match=r"self-test failed: .*Token ID out of range"):
        await trtllm.engine(tmp_path).load(spec, Recorder())


async def test_a_child_whose_parent_goes_before_the_load_ends(tmp_path: Path) -> None:
    child = await ChildProcess.start("services.executor.trtllm.child", environment=trtllm.environment(tmp_path))
    assert await child.close() == 0


async def test_a_cache_whose_size_is_not_told_has_the_catalogues(tmp_path: Path) -> None:
    async with loaded(tmp_path, fault="untold") as it:
        assert it.runner.capacity.blocks == 128


async def test_the_tensorrt_backend(tmp_path: Path) -> None:
    options = TrtLlm(backend="tensorrt", guided_backend="")
    async with loaded(tmp_path, model={"trtllm": options, "context_tokens": 0}) as it:
        can = it.runner.capabilities
        assert (can.seeds, can.penalties, can.adapters, can.grammars) == (True, True, "none", frozenset())
        first, again, other = [
            await it.ask(tokens(1, 20), temperature=1.0, max_tokens=6, seed=seed) for seed in (7, 7, 8)
        ]
        assert first == again != other
        asked = it.calls("generate_async")[-1]["params"]
        assert (asked["seed"], asked["top_p"], asked["top_k"]) == (8, 1.0, None)
        await it.ask(tokens(1, 20), {"log_probs": True}, repetition_penalty=1.1)
        for prompt, reason in (([5, 10**6], "Token ID out of range"), (tokens(1, 5000), "prompt length .5000.")):
            with pytest.raises(RequestInvalid, match=reason):
                await it.ask(prompt)
    engine = trtllm.engine(tmp_path, "1.3")
    with pytest.raises(LoadFailed, match="no backend"):
        await engine.load(trtllm.model(tmp_path, trtllm=TrtLlm(backend="abacus")), Recorder())


def test_a_child_needs_nothing_but_msgspec_beside_the_engine() -> None:
    """Its interpreter may be another environment's."""
    code = "import sys, services.executor.trtllm.child, services.executor.trtllm.probe; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": f"{trtllm.ROOT}:{trtllm.ROOT / 'protos'}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    modules = {name.partition(".")[0] for name in done.stdout.split()} - sys.stdlib_module_names
    ours, interpreters = {"libs", "services"}, {"__main__", "_distutils_hack", "_virtualenv", "sitecustomize"}
    assert modules - ours - interpreters <= {"msgspec", "typing_extensions"}, "msgspec looks for the latter"


@versions
async def test_it_says_whether_it_can_work_here(version: str, tmp_path: Path) -> None:
    await trtllm.engine(tmp_path, version).start()


@pytest.mark.parametrize(
    ("python", "environment", "reason"),
    [
        (sys.executable, {}, "No module named 'tensorrt_llm'.*HEADRACE_TRTLLM_PYTHON"),
        (sys.executable, {"fault": "import"}, "ImportError: libnvinfer"),
        (sys.executable, {"fault": "old"}, "has no such API"),
        (sys.executable, {"fault": "unsalted"}, "cannot salt its prefix cache"),
        ("/nowhere/python", {}, "is no program"),
        ("/bin/false", {}, "ended with status 1 .* msgspec"),
    ],
)
async def test_what_is_missing_is_said_with_the_way_to_get_it(
    python: str, environment: dict[str, str], reason: str, tmp_path: Path
) -> None:
    variables = trtllm.environment(tmp_path, **environment) if environment else None
    engine = TrtLlmEngine(tmp_path, SystemClock(), python, variables)
    with pytest.raises(EngineUnavailable, match=reason):
        await engine.start()
    if python == "/nowhere/python":
        with pytest.raises(LoadFailed, match="is no program any more"):
            await engine.load(trtllm.model(tmp_path), Recorder())


async def test_an_engine_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "PROBE_S", 0.3)
    monkeypatch.setattr(engine_module, "LOAD_S", 0.3)
    engine = trtllm.engine(tmp_path, fault="hang")
    with pytest.raises(EngineUnavailable, match="did not import"):
        await engine.start()
    with pytest.raises(LoadFailed, match="did not answer within"):
        await engine.load(trtllm.model(tmp_path), Recorder())
