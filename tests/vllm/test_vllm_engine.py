"""The real vLLM with the default model, beyond test_vllm_conformance.py: adapters compared with merged weights, what
the cache says of itself, grammars that are resumed."""

import json
import random
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from libs.catalogue import ModelSpec
from libs.clock import SystemClock
from libs.errors import Cancelled, RequestInvalid
from libs.lane.work import FinishReason, Grammar, Tier
from libs.models.huggingface import folder_of, huggingface_folder
from libs.models.source import resolve
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import EngineUnavailable, Exactness, LoadFailed
from services.executor.vllm.engine import VllmEngine
from tests.vllm.adapters import adapter_for, merge
from tests.vllm.loaded import CACHE, PYTHON, SPEC, Loaded, Recorder

FRANCE = "The capital of France is Paris."
SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
STORY = "Tell me a long story about a mill."

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine() -> AsyncIterator[VllmEngine]:
    engine = VllmEngine(CACHE, SystemClock(), PYTHON)
    await engine.start()
    yield engine
    await engine.close()
    assert not psutil.Process().children(recursive=True), "a process is left"


async def load(engine: VllmEngine, spec: ModelSpec) -> Loaded:
    heard = Recorder()
    runner = await engine.load(spec, heard)
    return Loaded(runner, heard, Tokenizer.load(await huggingface_folder(SPEC.source, CACHE)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(engine: VllmEngine) -> Loaded:
    """Shared by the tests that leave it as they found it."""
    return await load(engine, SPEC)


@pytest.fixture(scope="module")
def adapters(loaded: Loaded, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelSpec]:
    """Three of them, whose catalogue entries differ in name and source."""
    base = folder_of(resolve(SPEC.source), CACHE)
    folder = tmp_path_factory.mktemp("adapters")
    return {
        name: replace(SPEC, name=name, base=SPEC.name, source=str(adapter_for(base, folder / name, seed)), version="1")
        for seed, name in enumerate(("red", "green", "blue"))
    }


def salted(adapter: ModelSpec) -> dict[str, str]:
    return {"adapter": adapter.adapter, "salt": adapter.salt}


async def test_says_what_it_is(loaded: Loaded) -> None:
    capacity, can = loaded.runner.capacity, loaded.runner.capabilities
    assert (capacity.block_tokens, capacity.blocks, capacity.slots, capacity.adapter_slots) == (32, 128, 8, 4)
    assert (capacity.exactness, can.exactness) == (Exactness.EXACT, Exactness.EXACT)
    assert (can.adapters, can.salted_cache, can.priority) == ("batch", True, True)


async def test_answers_a_question(loaded: Loaded) -> None:
    work_id = loaded.submit("What is the capital of France?")
    [outcome] = await loaded.heard.ended(work_id)
    assert loaded.tokenizer.decode(loaded.heard.tokens[work_id]) == FRANCE
    assert (outcome.finish, outcome.output_tokens) == (FinishReason.STOP, len(loaded.heard.tokens[work_id]))


async def test_works_that_come_and_go_share_steps(loaded: Loaded) -> None:
    story = loaded.submit(STORY, max_tokens=48, ignore_end=True)
    await loaded.heard.until(lambda: len(loaded.heard.tokens.get(story, ())) >= 4)
    countries = ("France", "Japan", "Germany")
    questions = [loaded.submit(f"What is the capital of {country}?") for country in countries]
    await loaded.heard.ended(story, *questions)
    answers = [loaded.tokenizer.decode(loaded.heard.tokens[work_id]) for work_id in questions]
    assert answers == [FRANCE, "The capital of Japan is Tokyo.", "The capital of Germany is Berlin."]
    assert any({story, *questions} <= set(step) for step in loaded.heard.together)
    assert loaded.heard.outcomes[story].finish is FinishReason.LENGTH
    assert len(loaded.heard.tokens[story]) == 48


async def test_a_cancelled_work_frees_its_blocks(loaded: Loaded) -> None:
    work_id = loaded.submit(STORY, max_tokens=1000, ignore_end=True)
    await loaded.heard.until(lambda: len(loaded.heard.tokens.get(work_id, ())) >= 3)
    assert loaded.heard.stats[-1].blocks_used > 0
    loaded.runner.cancel(work_id)
    [outcome] = await loaded.heard.ended(work_id)
    assert isinstance(outcome.error, Cancelled)
    stats = loaded.heard.stats[-1]
    assert (stats.running, stats.waiting, stats.blocks_used) == (0, 0, 0)
    assert stats.blocks_cached > 0


async def test_interactive_works_go_first(loaded: Loaded) -> None:
    fill = [loaded.submit(STORY, {"tier": Tier.ASYNC}, max_tokens=24, ignore_end=True) for _ in range(8)]
    late = loaded.submit(STORY, {"tier": Tier.ASYNC}, max_tokens=2)
    first = loaded.submit(STORY, max_tokens=2)
    await loaded.heard.ended(*fill, late, first)
    order = list(loaded.heard.outcomes)
    assert order.index(first) <= order.index(late)
    assert max(stats.running for stats in loaded.heard.stats) <= 8


@pytest.mark.parametrize(
    ("grammar", "pattern"),
    [
        (Grammar("regex", r"(red|green) [0-9]{3}"), r"(red|green) [0-9]{3}"),
        (Grammar("ebnf", 'root ::= "yes" | "no"'), r"yes|no"),
        (Grammar("json_schema", json.dumps(SCHEMA)), r'\{\s*"n"\s*:\s*-?\d+\s*\}'),
    ],
)
async def test_follows_grammars(loaded: Loaded, grammar: Grammar, pattern: str) -> None:
    tokens = await loaded.ask("Say something.", {"grammar": grammar})
    text = loaded.tokenizer.decode(tokens)
    assert re.fullmatch(pattern, text)
    # Interrupted anywhere, it goes on inside of its grammar.
    for cut in range(1, len(tokens)):
        assert await loaded.say("Say something.", {"grammar": grammar, "resumed": tokens[:cut]}) == (
            loaded.tokenizer.decode(tokens[cut:])
        )


@pytest.mark.parametrize(
    "grammar",
    [Grammar("regex", "(unclosed"), Grammar("ebnf", "root ::= missing"), Grammar("json_schema", '{"type": "nothing"}')],
)
async def test_a_bad_grammar_harms_only_its_work(loaded: Loaded, grammar: Grammar) -> None:
    other = loaded.submit("What is the capital of France?")
    with pytest.raises(RequestInvalid):
        await loaded.ask("Say something.", {"grammar": grammar})
    await loaded.heard.ended(other)
    assert loaded.tokenizer.decode(loaded.heard.tokens[other]) == FRANCE


async def test_the_index_of_events_predicts_every_hit(loaded: Loaded) -> None:
    """Prompts that share beginnings, in a cache that is too small for them all."""
    chance = random.Random(5)
    trunks = [[chance.randrange(3, 49000) for _ in range(400)] for _ in range(6)]
    hits = misses = 0
    for _ in range(60):
        prompt = [*chance.choice(trunks)[: chance.randrange(1, 400)], *(chance.randrange(3, 49000) for _ in range(40))]
        salt = chance.choice(("", "", "tenant"))
        predicted = loaded.predicted(prompt, salt)
        work_id = loaded.submit(prompt, {"salt": salt}, max_tokens=3, ignore_end=True)
        [outcome] = await loaded.heard.ended(work_id)
        assert outcome.cached_tokens == loaded.heard.started[work_id] == predicted
        hits, misses = hits + (predicted > 0), misses + (predicted == 0)
    assert hits > 10
    assert misses > 10
    assert len(loaded.heard.index) <= 128


async def test_adapters_share_a_batch_and_nothing_else(
    engine: VllmEngine, loaded: Loaded, adapters: dict[str, ModelSpec], tmp_path: Path
) -> None:
    for adapter in adapters.values():
        await loaded.runner.load_adapter(adapter)
        await loaded.runner.load_adapter(adapter)
    prompt = loaded.tokenizer.render_chat([("user", STORY)])
    ways = [{}, *map(salted, adapters.values())]
    alone = [await loaded.ask(prompt, way, max_tokens=16, ignore_end=True) for way in ways]
    assert len(set(map(tuple, alone))) == 4, "each answers in its own way"

    batch = [loaded.submit(prompt, way, max_tokens=16, ignore_end=True) for way in ways]
    outcomes = await loaded.heard.ended(*batch)
    assert any(set(batch) <= set(step) for step in loaded.heard.together), "all of them in one step"
    assert [loaded.heard.tokens[work_id] for work_id in batch] == alone
    assert {outcome.cached_tokens for outcome in outcomes} == {32}, "each found its own"
    other = replace(adapters["red"], version="2")
    await loaded.runner.load_adapter(other)
    fresh = loaded.submit(prompt, salted(other), max_tokens=16, ignore_end=True)
    [outcome] = await loaded.heard.ended(fresh)
    assert outcome.cached_tokens == 0, "and none the other's"
    assert loaded.heard.tokens[fresh] == alone[1], "for its weights are those of red"

    base = folder_of(resolve(SPEC.source), CACHE)
    merged = merge(base, Path(adapters["red"].source), tmp_path / "merged")
    reference = await load(engine, replace(SPEC, source=str(merged), slots=1))
    assert await reference.ask(prompt, max_tokens=16, ignore_end=True) == alone[1]
    await reference.runner.close()

    for name in (*adapters.values(), other):
        await loaded.runner.unload_adapter(name.adapter)
        await loaded.runner.unload_adapter(name.adapter)
    await loaded.runner.load_adapter(adapters["green"])
    assert await loaded.ask(prompt, salted(adapters["green"]), max_tokens=16, ignore_end=True) == alone[2]


async def test_an_adapter_that_does_not_fit_is_refused(loaded: Loaded, tmp_path: Path) -> None:
    base = folder_of(resolve(SPEC.source), CACHE)
    large = replace(SPEC, name="large", base="smollm2", source=str(adapter_for(base, tmp_path / "large", 9, rank=16)))
    missing = replace(SPEC, name="missing", base="smollm2", source=str(tmp_path / "missing"))
    sharing = replace(large, name="sharing", shares_prefix=True)
    for adapter, reason in ((large, "rank"), (missing, "missing"), (sharing, "shares_prefix")):
        with pytest.raises(LoadFailed, match=reason):
            await loaded.runner.load_adapter(adapter)
    assert await loaded.say("What is the capital of France?") == FRANCE


async def test_checks_itself_beside_works(loaded: Loaded) -> None:
    works = [loaded.submit(STORY, max_tokens=60, ignore_end=True) for _ in range(8)]
    await loaded.heard.until(lambda: loaded.heard.tokens.get(works[-1]))
    await loaded.runner.self_check()
    assert not loaded.heard.outcomes.keys() & set(works), "it waited for no slot"
    await loaded.heard.ended(*works)


async def test_what_cannot_be_loaded_says_why(engine: VllmEngine, tmp_path: Path) -> None:
    with pytest.raises(LoadFailed, match="no such file"):
        await engine.load(replace(SPEC, source=str(tmp_path / "none")), Recorder())
    with pytest.raises(LoadFailed, match="blocks 0 or at least"):
        await engine.load(replace(SPEC, blocks=1), Recorder())


async def test_an_interpreter_without_vllm_says_what_to_do() -> None:
    with pytest.raises(EngineUnavailable, match=r"no vLLM.*make vllm"):
        await VllmEngine(CACHE, SystemClock()).start()
    with pytest.raises(EngineUnavailable, match=r"cannot be run.*make vllm"):
        await VllmEngine(CACHE, SystemClock(), "/nowhere/python").start()
