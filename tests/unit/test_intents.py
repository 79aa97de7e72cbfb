"""Intents: from examples to a file, from a text to its intent, and what happens when that cannot be told."""

import asyncio
import io
import json
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from structlog.testing import capture_logs

from services.console.commands import intents as commands
from services.console.problem import Problem
from services.router.intents import stored
from services.router.intents.background import BACKGROUND
from services.router.intents.classifier import Classifier, fit, stratified
from services.router.intents.embedder import DIMENSIONS, MODEL, Embedder
from services.router.intents.examples import Examples, ExamplesInvalid, read
from services.router.intents.intents import MOST_CACHED, MOST_WAITING, Intents, Result
from services.router.intents.stored import Stored, StoredInvalid
from services.router.intents.training import Trained, train
from services.router.policy import RouteRules, Rule
from services.router.route import Catalogue

PROGRAMS = """
Write a Python function that removes duplicate lines from a file.
Why does this loop never end? while i < 10: print(i)
Give me a regular expression that matches a German postal code.
How do I reverse a linked list in Rust without unsafe?
Add type hints to the function below.
My unit test fails with KeyError: 'user'. What is wrong?
Convert this callback-style JavaScript to async and await.
Write a bash script that deletes log files older than two weeks.
Explain what this decorator does to the function it wraps.
Implement a least-recently-used cache with a time to live in Go.
The compiler says 'cannot borrow as mutable'. How can I fix it?
Write unit tests for the parser in this module.
Make this function faster; it is called a million times.
Show me how to read a CSV file line by line in Java.
I get a segmentation fault when I free this pointer twice, please help.
Write a Dockerfile for a Flask application.
Turn this nested if statement into a match statement.
What is the difference between a mutex and a semaphore in C++?
Review this pull request and point out bugs.
Generate a React component for a login form.
""".strip().splitlines()
LANGUAGES = """
Translate this sentence into French: the shop is closed on Mondays.
How do you say 'thank you very much' in Japanese?
Please put this letter into German.
What does 'saudade' mean in English?
Translate the following paragraph from Spanish to English.
Render this slogan in Italian, keep it short.
I need this user interface text in Dutch.
Give me the Polish version of this invitation.
Into Portuguese: your parcel will arrive tomorrow.
What is the Swedish word for strawberry?
Translate these error messages to Korean.
Can you turn this Chinese product description into English?
Say 'where is the station?' in Turkish.
Convert the text below from British English to Brazilian Portuguese.
Translate my CV into French, formal tone.
How would a native speaker say this in Russian?
English to Arabic: welcome to our hotel.
Please translate the subtitles below to Finnish.
What is the correct German translation of 'terms of service'?
Put the chorus of this song into English.
""".strip().splitlines()
CODE, TRANSLATE = "Why does my Python script raise a TypeError?", "Translate this letter into Spanish."
WITH_RULES = Catalogue(routes={"r": RouteRules("r", "a", (Rule("code", "b", intents=frozenset({"code"})),))})


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture(scope="module")
def examples() -> Examples:
    return Examples({"code": PROGRAMS, "translate": LANGUAGES}, BACKGROUND[:20])


@pytest.fixture(scope="module")
def trained(embedder: Embedder, examples: Examples) -> Trained:
    return train(examples, embedder.vector)


@pytest.fixture
def file(tmp_path: Path, trained: Trained) -> Path:
    path = tmp_path / "state/intents.npz"
    stored.write(path, Stored(trained.classifier, "of the test"))
    return path


@pytest.fixture
def counted() -> list[Result]:
    return []


@pytest.fixture
async def make(counted: list[Result]) -> AsyncIterator[Callable[..., Intents]]:
    made: list[Intents] = []

    def one(path: Path, most_s: float = 60.0) -> Intents:
        made.append(Intents(path, counted.append, most_s))
        return made[-1]

    yield one
    for each in made:
        await each.close()


# --- examples -----------------------------------------------------------------------------------------------


def folder(path: Path, **files: list[str]) -> Path:
    for name, lines in files.items():
        (path / f"{name}.txt").write_text("\n".join(lines))
    return path


def some(word: str, count: int = 10) -> list[str]:
    return [f"{word} {number}" for number in range(count)]


def test_a_file_for_each_intent(tmp_path: Path) -> None:
    read_back = read(folder(tmp_path, b=["# remark", "", *some("b"), "b 0"], a=some("a")))
    assert dict(read_back.of) == {"a": tuple(some("a")), "b": tuple(some("b"))}
    assert read_back.none == BACKGROUND
    assert read(folder(tmp_path, none=some("n"))).none == tuple(some("n"))
    assert read(tmp_path).sha256 != read_back.sha256


def test_all_faults_of_examples_at_once(tmp_path: Path) -> None:
    with pytest.raises(ExamplesInvalid) as invalid:
        read(folder(tmp_path, a=some("a"), b=[*some("b"), "a 3"], few=["x"], **{"No good": some("c")}))
    assert invalid.value.faults == [
        "No good.txt: the name of an intent is 1 to 63 characters of a-z 0-9 _ . -",
        "b.txt: 'a 3' is an example of a as well",
        "few.txt: 1 examples, at least 10 are needed, better 40",
    ]


def test_a_folder_without_examples(tmp_path: Path) -> None:
    with pytest.raises(ExamplesInvalid, match="no intent"):
        read(tmp_path)
    with pytest.raises(ExamplesInvalid, match="cannot be read"):
        read(tmp_path / "missing")


# --- learning -----------------------------------------------------------------------------------------------


def test_a_vector_has_length_one_whatever_the_text(embedder: Embedder) -> None:
    for text in ("", "x", "word " * 10_000, "日本語 🙂 \0"):
        assert np.linalg.norm(embedder.vector(text)) == pytest.approx(1.0, abs=1e-5)


def test_of_a_long_text_head_and_tail_count(embedder: Embedder) -> None:
    middle = "lorem ipsum " * 100
    long, other = (
        embedder.vector(f"Translate this: {filler} Into Spanish, please.") for filler in (middle, middle * 2)
    )
    assert float(long @ other) == pytest.approx(1.0, abs=1e-5)


def test_folds_are_spread_over_every_class() -> None:
    labels = np.array([0] * 10 + [1] * 15)
    folds = stratified(labels, 5)
    assert [np.bincount(folds[labels == label]).tolist() for label in (0, 1)] == [[2] * 5, [3] * 5]


def test_a_class_of_few_examples_is_not_drowned() -> None:
    chance = np.random.default_rng(1)
    centers = np.eye(4, dtype=np.float32)[[0, 1]]
    vectors = np.repeat(centers, [200, 10], axis=0) + chance.normal(0, 0.2, (210, 4)).astype(np.float32)
    learned = fit(("often", "seldom"), vectors, np.repeat([0, 1], [200, 10]))
    assert [learned.of(center)[0] for center in centers] == ["often", "seldom"]


def test_what_was_learned_tells_texts_apart(trained: Trained, embedder: Embedder) -> None:
    told = {
        text: trained.classifier.of(embedder.vector(text))
        for text in (CODE, TRANSLATE, "How tall is the Eiffel Tower?")
    }
    assert [intent for intent, _ in told.values()] == ["code", "translate", ""]
    assert all(0 < probability <= 1 for _, probability in told.values())


def test_quality_is_that_of_examples_that_were_held_back(trained: Trained) -> None:
    quality = trained.quality
    assert dict(quality.held_back) == {"code": 4, "translate": 4, "": 4}
    assert quality.accuracy >= 0.75
    assert quality.apart >= quality.accuracy
    wrong = sum(quality.held_back.values()) - sum(quality.right.values())
    assert len(quality.confusions) == wrong


def test_learning_twice_is_the_same(trained: Trained, embedder: Embedder, examples: Examples) -> None:
    again = train(examples, embedder.vector)
    assert again.classifier.threshold == trained.classifier.threshold
    assert np.array_equal(again.classifier.weights, trained.classifier.weights)


# --- the file -----------------------------------------------------------------------------------------------


def test_a_file_holds_what_was_learned(file: Path, trained: Trained) -> None:
    back = stored.read(file)
    assert (back.examples_sha256, back.classifier.intents) == ("of the test", ("code", "translate"))
    assert back.classifier.threshold == trained.classifier.threshold
    assert np.array_equal(back.classifier.weights, trained.classifier.weights)


def test_files_that_are_none_are_refused(tmp_path: Path, file: Path) -> None:
    whole = file.read_bytes()
    for content in (b"", b"text", whole[:200], whole[:-30]):
        file.write_bytes(content)
        with pytest.raises(StoredInvalid, match="headrace intents train"):
            stored.read(file)
    file.write_bytes(whole + bytes(stored.MOST_BYTES))
    with pytest.raises(StoredInvalid, match="at most"):
        stored.read(file)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"model": "another"}, "was trained on vectors of 'another'"),
        ({"format": 2}, "was trained on vectors"),
        ({"intents": ["a", "b", "c"]}, "do not fit its 3 intents"),
        ({"weights": np.full((DIMENSIONS + 1, 3), np.nan, np.float32)}, "do not fit"),
    ],
)
def test_a_classifier_of_something_else_is_refused(tmp_path: Path, change: dict[str, object], reason: str) -> None:
    fields: dict[str, object] = {
        "format": 1, "model": MODEL, "examples_sha256": "", "intents": ["a", "b"], "threshold": 0.5,
        "weights": np.zeros((DIMENSIONS + 1, 3), np.float32),
    }  # fmt: skip
    arrays = {name: np.asarray(value) for name, value in (fields | change).items()}
    np.savez(tmp_path / "it.npz", allow_pickle=False, **arrays)
    with pytest.raises(StoredInvalid, match=reason):
        stored.read(tmp_path / "it.npz")


# --- on the event loop --------------------------------------------------------------------------------------


async def test_an_intent_is_told_once_and_then_known(
    file: Path, make: Callable[..., Intents], counted: list[Result]
) -> None:
    intents = make(file)
    assert [await intents.of(CODE), await intents.of(TRANSLATE)] == ["code", "translate"]
    at_once: list[str] = []
    intents.ask(CODE, at_once.append)
    assert at_once == ["code"]
    assert await intents.of("How tall is the Eiffel Tower?") == ""
    assert counted == ["told", "told", "cached", "none"]


async def test_without_a_file_intents_are_unknown_and_that_is_said_once(
    tmp_path: Path, make: Callable[..., Intents], counted: list[Result]
) -> None:
    intents = make(tmp_path / "intents.npz")
    with capture_logs() as logs:
        assert [await intents.of("a"), await intents.of("b")] == ["", ""]
    assert counted == ["untrained", "untrained"]
    assert sum("headrace intents train" in entry["event"] for entry in logs) == 1


async def test_a_file_that_comes_or_changes_is_followed(
    tmp_path: Path, file: Path, trained: Trained, make: Callable[..., Intents], counted: list[Result]
) -> None:
    content = file.read_bytes()
    file.unlink()
    intents = make(file)
    intents.want(WITH_RULES)
    assert await intents.of(CODE) == ""
    file.write_bytes(content)
    intents.look()
    assert await intents.of(CODE) == "code"
    renamed = Classifier(("programs", "languages"), trained.classifier.weights, trained.classifier.threshold)
    stored.write(file, Stored(renamed, ""))
    intents.look()
    await intents.of("anything else")  # the thread has seen the file before it sees this text
    assert await intents.of(CODE) == "programs", "what was known is known no more"
    with capture_logs() as logs:
        file.write_bytes(b"broken")
        intents.look()
        assert await intents.of("something new, to be told") == await intents.of("something new, to be told")
    assert [entry["in_force"] for entry in logs if entry["log_level"] == "error"] == [True]
    assert await intents.of(CODE) == "programs", "the one before stays in force"


async def test_memory_is_used_only_while_a_route_asks(file: Path, make: Callable[..., Intents]) -> None:
    intents = make(file)
    intents.want(Catalogue())
    intents.look()
    assert await asyncio.to_thread(lambda: intents._thread.submit(lambda: intents._model.trained).result()) is False
    intents.want(WITH_RULES)
    assert await intents.of(CODE) == "code"
    intents.want(Catalogue())
    assert await intents.of(CODE) == ""
    intents.want(WITH_RULES)
    assert await intents.of(CODE) == "code"


async def test_the_queue_is_short(file: Path, make: Callable[..., Intents], counted: list[Result]) -> None:
    intents = make(file)
    told: list[str] = []
    for number in range(MOST_WAITING + 3):
        intents.ask(f"Write a Python function, number {number}", told.append)
    assert told == [""] * 3, "those for whom there is no room go on at once"
    assert await intents.of("x") == ""
    while len(told) < MOST_WAITING + 3:
        await asyncio.sleep(0.01)
    assert counted.count("full") == 4
    assert counted.count("told") == MOST_WAITING


async def test_who_waits_too_long_goes_on_without(
    file: Path, make: Callable[..., Intents], counted: list[Result]
) -> None:
    intents = make(file, most_s=0.01)
    gate = threading.Event()
    intents._thread.submit(gate.wait)
    assert await intents.of(CODE) == ""
    assert counted == ["late"]
    gate.set()
    intents._most_s = 60.0
    assert await intents.of(CODE) == "code"
    assert counted == ["late", "told"], "nobody waited for the first one any more: it was not looked at"


async def test_the_cache_is_bounded(file: Path, make: Callable[..., Intents]) -> None:
    intents = make(file)
    await intents.of(CODE)
    intents._known.update({number.to_bytes(16): "x" for number in range(MOST_CACHED - 1)})
    assert await intents.of(CODE) == "code"  # the last used now, so another one goes
    await intents.of(TRANSLATE)
    assert len(intents._known) == MOST_CACHED
    assert (0).to_bytes(16) not in intents._known


async def test_at_the_end_nobody_is_left_waiting(
    file: Path, make: Callable[..., Intents], counted: list[Result]
) -> None:
    intents = make(file)
    gate = threading.Event()
    intents._thread.submit(gate.wait)
    asked = [asyncio.ensure_future(intents.of(f"{number}")) for number in range(3)]
    await asyncio.sleep(0)
    await intents.close()
    gate.set()
    assert await asyncio.gather(*asked) == [""] * 3
    assert counted == ["failed"] * 3


# --- the command --------------------------------------------------------------------------------------------


def said(run: Callable[[Console], None]) -> str:
    """What a command prints."""
    console = Console(file=io.StringIO(), width=160)
    run(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_command_trains_and_tries(tmp_path: Path, examples: Examples) -> None:
    file = tmp_path / "state/intents.npz"
    here = folder(tmp_path, none=list(examples.none), **{name: list(texts) for name, texts in examples.of.items()})
    told = said(lambda console: commands.train(here, file, False, console))
    assert f"✓ {file} written" in told
    assert "one decision takes" in told
    figures = json.loads(said(lambda console: commands.train(here, file, True, console)))
    assert figures["held_back"] == {"code": 4, "translate": 4, "": 4}
    assert said(lambda console: commands.attempt(CODE, file, False, console)).startswith("code ")
    tried = json.loads(said(lambda console: commands.attempt("How tall is the Eiffel Tower?", file, True, console)))
    assert tried["intent"] == ""
    assert sum(tried["all"].values()) == pytest.approx(1.0, abs=1e-3)


def test_the_command_says_what_is_wrong(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    with pytest.raises(Problem, match="cannot be learned from"):
        commands.train(tmp_path, tmp_path / "out.npz", False, console)
    with pytest.raises(Problem, match="is not there"):
        commands.attempt("x", tmp_path / "out.npz", False, console)
    (tmp_path / "out.npz").write_bytes(b"text")
    with pytest.raises(Problem, match="cannot be used"):
        commands.attempt("x", tmp_path / "out.npz", False, console)
