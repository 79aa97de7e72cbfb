"""What every engine has to do: the page services/executor/engine.py as a suite of checks.

A `Subject` is an engine with a model that it can load. `CHECKS` are run against each of them by
test_engine_conformance.py (and by tests/vllm for the engine that does not fit into the default run). What an
engine lacks it says in its capabilities; then the check is that it says so truthfully: the work is refused, or
the call raises.

The table of capabilities in docs/engines.md is made from the same subjects (engine_table.py).
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from libs.catalogue import ModelSpec
from libs.errors import Cancelled, DeadlinePassed, NotSupported, Overloaded, RequestInvalid, StageUnavailable
from libs.lane.work import FinishReason, Grammar, Outcome, Sampling, Tier, Work
from libs.tokens.blocks import chain, salt
from libs.tokens.tokenizer import Tokenizer
from services.executor.engine import Capabilities, Engine, Exactness, LoadFailed, Runner
from services.executor.fit import refusal
from tests.system import engine_table
from tests.system.recorder import Recorder

Kill = Callable[[Runner], Awaitable[None]]


@dataclass(frozen=True)
class Subject:
    """An engine to be checked, and what is known of the model that it loads."""

    name: str
    engine: Engine
    spec: ModelSpec
    tokenizer: Tokenizer
    kill: Kill
    """Kills what computes for a runner: its child, or its server."""
    revive: Callable[[], Awaitable[None]] | None = None
    """Brings that back, where the engine does not do so itself."""
    bad: Sequence[tuple[ModelSpec, str]] = ()
    """Models that cannot be loaded, and a word of the reason."""
    adapters: Sequence[ModelSpec] = ()
    """Two or more, whose answers differ."""
    bad_adapter: ModelSpec | None = None
    exact: bool = True
    """The same greedy request has the same answer, whatever else runs and wherever it was resumed."""
    chats: bool = False
    """Works carry the chat beside the prompt."""
    checks_ids: bool = True
    """Token ids outside of the vocabulary are noticed."""
    finds_own_prefix: bool = True
    """A prompt that was just computed is found in the cache, and told so."""


@dataclass
class Loaded:
    """A loaded model, its listener, and numbers for works."""

    subject: Subject
    runner: Runner
    heard: Recorder
    next_id: int = 0
    alone: dict[tuple[str, str, int], list[int]] = field(default_factory=dict)

    @property
    def can(self) -> Capabilities:
        return self.runner.capabilities

    def work(self, question: str, *, tokens: int = 16, **changes: Any) -> Work:
        """A greedy work. `resumed` and all other fields of Work may be given; sampling's by their names."""
        subject = self.subject
        names = Sampling.__struct_fields__
        sampling = {name: changes.pop(name) for name in list(changes) if name in names}
        ids = subject.tokenizer.render_chat([("user", question)])
        prompt = changes.pop("prompt", ids)
        block_tokens = self.runner.capacity.block_tokens
        adapter = changes.get("adapter", "")
        hashes = chain(prompt, block_tokens, salt(subject.spec.name, changes.get("salt", adapter)))
        values: dict[str, Any] = {
            "request_id": f"{subject.name}-{self.next_id + 1}", "tenant": "t", "tier": Tier.INTERACTIVE,
            "model": subject.spec.name, "pool": subject.spec.pool, "prompt": prompt, "salt": adapter,
            "sampling": Sampling(**{"max_tokens": tokens, "temperature": 0.0, **sampling}),
            "deadline": time.time() + 120, "block_hashes": hashes, "block_tokens": block_tokens,
            "chat": (("user", question),) if subject.chats else (),
        }  # fmt: skip
        return Work(**{**values, **changes})

    def submit(self, work: Work) -> int:
        self.next_id += 1
        self.heard.resumed[self.next_id] = len(work.resumed)
        self.runner.submit(self.next_id, work)
        return self.next_id

    async def ask(self, work: Work) -> list[int]:
        """The answer of a work that has to end well."""
        work_id = self.submit(work)
        [outcome] = await self.heard.ended(work_id)
        if outcome.error is not None:
            raise outcome.error
        return self.heard.tokens.get(work_id, [])

    async def answer_of(self, question: str, tokens: int = 16, adapter: str = "") -> list[int]:
        """The greedy answer to a question that was asked alone; asked once."""
        key = (question, adapter, tokens)
        if key not in self.alone:
            await self.idle()
            self.alone[key] = list(await self.ask(self.work(question, tokens=tokens, adapter=adapter)))
        return self.alone[key]

    async def idle(self) -> None:
        """Nothing runs and nothing waits."""
        await self.heard.until(lambda: not self.heard.stats or self.heard.stats[-1].running == 0)


@asynccontextmanager
async def loaded(subject: Subject, **changes: Any) -> AsyncIterator[Loaded]:
    """The subject's model, loaded for one check."""
    heard = Recorder()
    runner = await subject.engine.load(replace(subject.spec, **changes), heard)
    try:
        yield Loaded(subject, runner, heard)
    finally:
        await runner.close()


# --- Checks of a model that is loaded once for all of them. ----------------------------------------------


async def says_what_it_can(it: Loaded) -> None:
    """Capacity and capabilities are there and agree, with each other and with docs/engines.md."""
    capacity, can = it.runner.capacity, it.can
    assert capacity.slots >= 1
    assert capacity.blocks >= 1
    assert capacity.block_tokens >= 1
    assert capacity.exactness is can.exactness
    assert (capacity.adapter_slots > 0) == (can.adapters != "none")
    assert capacity.adapter_slots == 1 or can.adapters != "swap"
    assert engine_table.rows().get(it.subject.name) == engine_table.row(it.subject.name, can)


async def streams_an_answer(it: Loaded) -> None:
    """Tokens come one after the other, then one outcome that counts them."""
    work_id = it.submit(it.work("Count from one to a hundred.", tokens=24))
    await it.heard.until(lambda: it.heard.tokens.get(work_id))
    assert work_id not in it.heard.outcomes, "the whole answer came at once"
    [outcome] = await it.heard.ended(work_id)
    assert outcome.finish is FinishReason.LENGTH
    assert len(it.heard.tokens[work_id]) == 24
    assert sum(work_id in together for together in it.heard.together) >= 4


async def ends_by_itself(it: Loaded) -> None:
    """An answer that the model ends, or that reaches its limit, says which."""
    work_id = it.submit(it.work("What is the capital of France?", tokens=64))
    [outcome] = await it.heard.ended(work_id)
    count = len(it.heard.tokens[work_id])
    assert outcome.finish is (FinishReason.LENGTH if count == 64 else FinishReason.STOP)
    assert count <= 64


async def answers_alike(it: Loaded) -> None:
    """Greedy, the same question has the same answer; with a seed a sampled one has, too."""
    first = await it.answer_of("Name three colors.")
    assert await it.ask(it.work("Name three colors.")) == first
    if it.can.seeds and it.subject.exact:
        one, other = [
            await it.ask(it.work("Name three animals.", temperature=0.8, seed=11, ignore_end=it.can.ignore_end))
            for _ in range(2)
        ]
        assert one == other


async def works_run_together(it: Loaded) -> None:
    """Works that come one after the other run at the same time, and end each for itself."""
    count = min(8, it.runner.capacity.slots)
    questions = [f"Tell me about the number {n}." for n in range(count)]
    answers = [await it.answer_of(question, 20) for question in questions] if it.subject.exact else None
    before, ids = len(it.heard.together), []
    for question in questions:
        ids.append(it.submit(it.work(question, tokens=20)))
        await it.heard.until(lambda: it.heard.tokens.get(ids[-1]) or ids[-1] in it.heard.outcomes)
    outcomes = await it.heard.ended(*ids)
    assert all(outcome.error is None for outcome in outcomes)
    running = {i for together in it.heard.together[before:] for i in together}
    assert running >= set(ids)
    if answers is not None:
        assert [it.heard.tokens[work_id] for work_id in ids] == answers


async def those_that_find_no_slot_wait(it: Loaded) -> None:
    """No more works run than there are slots; the others wait, and all end."""
    slots, before = it.runner.capacity.slots, len(it.heard.stats)
    ids = [it.submit(it.work(f"Name {n} things.", tokens=4)) for n in range(slots + 3)]
    outcomes = await it.heard.ended(*ids)
    assert all(outcome.error is None for outcome in outcomes)
    stats = it.heard.stats[before:]
    assert max(s.running for s in stats) <= slots
    assert max(s.waiting for s in stats) >= 1


async def a_cancel_stops_a_work(it: Loaded) -> None:
    """A running work ends with Cancelled and says nothing after it; unknown ids are ignored."""
    work_id = it.submit(it.work("Count to a thousand.", tokens=400, ignore_end=it.can.ignore_end))
    await it.heard.until(lambda: len(it.heard.tokens.get(work_id, ())) >= 3)
    it.runner.cancel(work_id)
    it.runner.cancel(work_id)
    it.runner.cancel(999_999)
    await it.heard.until(lambda: work_id in it.heard.outcomes, 10)
    assert isinstance(it.heard.outcomes[work_id].error, Cancelled)
    await it.idle()
    await it.ask(it.work("Is it over?", tokens=2))
    assert not it.heard.faults


async def a_cancel_stops_one_that_waits(it: Loaded) -> None:
    """A work that has not begun is cancelled as well, and those behind it run."""
    slots = it.runner.capacity.slots
    busy = [it.submit(it.work(f"Count up from {n}.", tokens=60)) for n in range(slots)]
    waiting = it.submit(it.work("I wait.", tokens=4))
    it.runner.cancel(waiting)
    await it.heard.until(lambda: waiting in it.heard.outcomes, 20)
    assert isinstance(it.heard.outcomes[waiting].error, Cancelled)
    assert waiting not in it.heard.tokens
    for work_id in busy:
        it.runner.cancel(work_id)
    await it.heard.ended(*busy)


async def a_deadline_ends_a_work(it: Loaded) -> None:
    """One whose deadline is past is not run; one whose deadline comes while it runs is stopped."""
    late = it.submit(it.work("Too late.", deadline=time.time() - 1))
    [outcome] = await it.heard.ended(late)
    assert isinstance(outcome.error, DeadlinePassed)
    soon = it.work("Count on.", tokens=800, deadline=time.time() + 0.5, ignore_end=it.can.ignore_end)
    work_id = it.submit(soon)
    started = time.monotonic()
    [outcome] = await it.heard.ended(work_id)
    assert outcome.finish is not None or isinstance(outcome.error, DeadlinePassed)
    assert time.monotonic() - started < 10


async def resumed_tokens_are_not_made_again(it: Loaded) -> None:
    """An answer goes on behind what has passed; one that is complete already ends."""
    question = "Tell me a story about a mill."
    whole = await it.answer_of(question, 20)
    resumed = tuple(whole[:7])
    work_id = it.submit(it.work(question, tokens=20, resumed=resumed))
    [outcome] = await it.heard.ended(work_id)
    assert outcome.error is None
    assert outcome.output_tokens == len(resumed) + len(it.heard.tokens[work_id])
    if it.subject.exact:
        assert it.heard.tokens[work_id] == whole[7:]
    full = it.submit(it.work(question, tokens=7, resumed=resumed))
    [outcome] = await it.heard.ended(full)
    assert (outcome.finish, outcome.output_tokens) == (FinishReason.LENGTH, 7)
    assert full not in it.heard.tokens


async def bad_works_harm_nobody(it: Loaded) -> None:
    """Works that cannot be are refused with what is wrong, and those beside them run on."""
    good = it.submit(it.work("Count from one to fifty.", tokens=40, ignore_end=it.can.ignore_end))
    context = it.subject.spec.context_tokens
    bad = {
        "empty": it.submit(it.work("", prompt=[], block_hashes=[], chat=())),
        "long": it.submit(it.work("", prompt=[1000] * (context + 1), block_hashes=[])),
    }
    if it.subject.checks_ids:
        bad["foreign"] = it.submit(it.work("", prompt=[5, 2**31 - 1, 6], block_hashes=[]))
    for outcome in await it.heard.ended(*bad.values()):
        assert isinstance(outcome.error, RequestInvalid), outcome
        assert outcome.error.violations
    [outcome] = await it.heard.ended(good)
    assert outcome.error is None
    assert len(it.heard.tokens[good]) <= 40


async def tells_log_probs_or_says_not(it: Loaded) -> None:
    """One log-probability per token, none above 0."""
    work = it.work("What is the capital of France?", log_probs=True)
    if not it.can.log_probs:
        assert isinstance(refusal(work, it.can), NotSupported)
        return
    work_id = it.submit(work)
    [outcome] = await it.heard.ended(work_id)
    assert outcome.error is None
    log_probs = it.heard.log_probs[work_id]
    assert len(log_probs) == len(it.heard.tokens[work_id])
    assert all(value <= 0.0 for value in log_probs)


SHAPES = {
    "json_schema": json.dumps({
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"],
        "additionalProperties": False,
    }),
    "regex": r"(red|green|blue)",
    "ebnf": 'root ::= "yes" | "no"',
}  # fmt: skip


async def follows_grammars_or_says_not(it: Loaded) -> None:
    """An answer with a grammar has its shape."""
    for form, text in SHAPES.items():
        work = it.work("Answer.", tokens=48, grammar=Grammar(form, text))  # type: ignore[arg-type]
        if form not in it.can.grammars:
            assert isinstance(refusal(work, it.can), NotSupported)
            continue
        answer = it.subject.tokenizer.decode(await it.ask(work))
        match form:
            case "json_schema":
                assert isinstance(json.loads(answer)["city"], str)
            case "regex":
                assert re.fullmatch(text, answer)
            case "ebnf":
                assert answer in ("yes", "no")


async def adapters_have_their_own_answers_or_it_says_not(it: Loaded) -> None:
    """Works of several adapters and of the base, at the same time, have each its own answer."""
    subject, runner = it.subject, it.runner
    if it.can.adapters == "none":
        assert isinstance(refusal(it.work("Hello.", adapter="a@1"), it.can), NotSupported)
        with pytest.raises(LoadFailed):
            await runner.load_adapter(replace(subject.spec, name="a", base=subject.spec.name, source="nowhere"))
        return
    for adapter in subject.adapters:
        await runner.load_adapter(adapter)
        await runner.load_adapter(adapter)
    names = ["", *(adapter.adapter for adapter in subject.adapters)]
    question = "What is the capital of France?"
    alone = {name: await it.answer_of(question, 12, name) for name in names}
    assert len({tuple(answer) for answer in alone.values()}) == len(names), "two adapters answer alike"
    ids = {it.submit(it.work(question, tokens=12, adapter=name)): name for name in names * 2}
    await it.heard.ended(*ids)
    for work_id, name in ids.items():
        assert _whose(it, it.heard.tokens[work_id], alone) == name, f"{name or 'the base'} got another's answer"
    if subject.bad_adapter is not None:
        with pytest.raises(LoadFailed, match=r"\w"):
            await runner.load_adapter(subject.bad_adapter)
    gone = subject.adapters[0].adapter
    await runner.unload_adapter(gone)
    await runner.unload_adapter(gone)
    await runner.load_adapter(subject.adapters[0])
    assert _whose(it, await it.ask(it.work(question, tokens=12, adapter=gone)), alone) == gone


LONG = " ".join(f"The {n}th wheel of the mill turns in the water of the headrace." for n in range(12))


async def finds_prefixes_only_under_their_salt(it: Loaded) -> None:
    """A prompt is found in the cache by works of its salt and by no others."""
    if not it.can.cached_tokens:
        work_id = it.submit(it.work(LONG, tokens=2))
        [outcome] = await it.heard.ended(work_id)
        assert outcome.cached_tokens == 0, "it tells what it cannot know"
        return
    found = {}
    prompt = it.subject.tokenizer.encode(f"{time.time()}: {LONG}")  # no template: its start is everybody's
    for name, own in (("first", "a"), ("again", "a"), ("other", "b"), ("base", "")):
        await it.idle()
        work_id = it.submit(it.work("", prompt=prompt, tokens=2, salt=own))
        [outcome] = await it.heard.ended(work_id)
        assert outcome.error is None
        found[name] = outcome.cached_tokens
    assert found["first"] == 0
    if it.subject.finds_own_prefix:
        assert found["again"] >= it.runner.capacity.block_tokens
    if it.can.salted_cache:
        assert (found["other"], found["base"]) == (0, 0)


async def names_blocks_as_the_mesh_does(it: Loaded) -> None:
    """Block events carry the mesh's own hashes, and what is said to be stored was computed."""
    work = it.work(f"{it.subject.name} blocks: {LONG}", tokens=2)
    before = len(it.heard.events)
    await it.ask(work)
    if it.can.exactness is Exactness.MODELLED and not it.can.cached_tokens:
        return
    await it.heard.until(lambda: any(event.kind == "stored" for event in it.heard.events[before:]), 10)
    full = len(work.prompt) // it.runner.capacity.block_tokens
    await it.heard.until(lambda: set(work.block_hashes[: full - 1]) <= _stored(it.heard), 10)


async def checks_itself(it: Loaded) -> None:
    """It answers a question of its own, also while works run."""
    work_id = it.submit(it.work("Count slowly to ninety.", tokens=60))
    await it.runner.self_check()
    [outcome] = await it.heard.ended(work_id)
    assert outcome.error is None
    await it.runner.self_check()


async def bounds_what_it_holds(it: Loaded) -> None:
    """Beyond its bound it refuses at once, and tells when to come again."""
    most = 64 + 16 * it.runner.capacity.slots
    ids = [it.submit(it.work("Hello.", tokens=600, ignore_end=it.can.ignore_end)) for _ in range(most + 2)]
    refused = []
    for _ in range(200):
        refused = [i for i in ids if isinstance(_error(it.heard.outcomes.get(i)), Overloaded)]
        if refused:
            break
        await asyncio.sleep(0.01)
    for work_id in ids:
        it.runner.cancel(work_id)
    outcomes = await it.heard.ended(*ids)
    assert refused, "it takes works without end"
    errors = [outcome.error for outcome in outcomes if isinstance(outcome.error, Overloaded)]
    assert all(error.retry_after_s for error in errors)


# --- Checks that load for themselves. --------------------------------------------------------------------


async def says_why_it_cannot_load(subject: Subject) -> None:
    """A model that cannot be loaded is refused with the reason, and the engine goes on."""
    for spec, word in subject.bad:
        with pytest.raises(LoadFailed, match=word):
            await subject.engine.load(spec, Recorder())


async def two_models_live_side_by_side(subject: Subject) -> None:
    """Two copies are loaded at once; closing one leaves the other alone."""
    async with loaded(subject) as one:
        async with loaded(subject, name="second", pool="second@0") as other:
            ids = one.submit(one.work("One?")), other.submit(other.work("Two?"))
            await one.heard.ended(ids[0])
            await other.heard.ended(ids[1])
        assert await one.ask(one.work("Still there?"))


async def its_death_is_told(subject: Subject) -> None:
    """When what computes is killed, every work comes back: with StageUnavailable, or with the runner's end; and
    the model can be loaded again."""
    async with loaded(subject) as it:
        ids = [it.submit(it.work(f"Count from {n}.", tokens=500, ignore_end=it.can.ignore_end)) for n in range(3)]
        await it.heard.until(lambda: any(it.heard.tokens.get(i) for i in ids))
        await subject.kill(it.runner)
        await it.heard.until(lambda: it.heard.broken or all(i in it.heard.outcomes for i in ids), 30)
        for outcome in it.heard.outcomes.values():
            assert outcome.finish is not None or isinstance(outcome.error, StageUnavailable)
    if subject.revive is not None:
        await subject.revive()
    async with loaded(subject) as it:
        assert await it.ask(it.work("Are you back?"))


async def a_closed_runner_is_silent(subject: Subject) -> None:
    """Closing tells nothing more, and gives everything back."""
    async with loaded(subject) as it:
        it.submit(it.work("Count.", tokens=200))
        await it.heard.until(lambda: it.heard.started)
    told = len(it.heard.stats)
    await asyncio.sleep(0.2)
    assert len(it.heard.stats) == told
    assert not it.heard.outcomes
    assert not it.heard.broken


CHECKS = (
    says_what_it_can, streams_an_answer, ends_by_itself, answers_alike, works_run_together,
    those_that_find_no_slot_wait, a_cancel_stops_a_work, a_cancel_stops_one_that_waits, a_deadline_ends_a_work,
    resumed_tokens_are_not_made_again, bad_works_harm_nobody, tells_log_probs_or_says_not,
    follows_grammars_or_says_not, adapters_have_their_own_answers_or_it_says_not,
    finds_prefixes_only_under_their_salt, names_blocks_as_the_mesh_does, checks_itself, bounds_what_it_holds,
)  # fmt: skip
"""Checks of a loaded model; they leave it as they found it."""

LOADING_CHECKS = (
    says_why_it_cannot_load, two_models_live_side_by_side, its_death_is_told, a_closed_runner_is_silent,
)  # fmt: skip
"""Checks that load models themselves."""


def _whose(it: Loaded, answer: list[int], alone: dict[str, list[int]]) -> str | None:
    """Whose answer this is: the same as that one's alone; or, where batches round differently, the one that it goes
    with for longest. (That the weights are the right ones is for an engine's own tests, by log-probabilities.)"""
    if it.subject.exact:
        return next((name for name, own in alone.items() if own == answer), None)

    def together(own: list[int]) -> int:
        return next((n for n, (a, b) in enumerate(zip(answer, own, strict=False)) if a != b), len(answer))

    ranked = sorted(alone, key=lambda name: together(alone[name]), reverse=True)
    best, second = (together(alone[name]) for name in ranked[:2])
    return ranked[0] if best > second else None


def _error(outcome: Outcome | None) -> Exception | None:
    return None if outcome is None else outcome.error


def _stored(heard: Recorder) -> set[int]:
    stored: set[int] = set()
    for event in heard.events:
        match event.kind:
            case "stored":
                stored.update(event.hashes)
            case "removed":
                stored.difference_update(event.hashes)
            case "cleared":
                stored.clear()
    return stored
