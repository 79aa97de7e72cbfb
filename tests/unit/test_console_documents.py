"""YAML as messages, and files of models: what is read, where a fault is, and that none hides another."""

import io
from pathlib import Path

import pytest

from headrace.registry.v1 import registry_pb2
from services.console import documents, model_files
from services.console.documents import NotYaml
from services.console.mesh.parts import ROOT
from services.console.model_files import FilesInvalid

GOOD = """\
name: a
source: "simulated:"
memoryBytes: 1e3
context_tokens: 64
blocks: 4
blockTokens: 32
slots: 2
step_tokens: 64
engines: [simulated, openvino]
capabilities: [chat, log_probs]
required_labels: {zone: a, gpu: "2"}
labels: {since: 2024-01-31, people: [x, y]}
drainTimeout: 2.5s
pinned:
"""


def read(text: str) -> list[documents.Document]:
    return documents.read(text, registry_pb2.Model)


def told(text: str) -> list[str]:
    return [f"{fault.line}: {fault}" for document in read(text) for fault in document.faults]


def test_both_names_of_a_field_are_read() -> None:
    (document,) = read(GOOD)
    model = document.message
    assert isinstance(model, registry_pb2.Model)
    assert document.faults == []
    assert (model.memory_bytes, model.block_tokens, model.drain_timeout.ToMilliseconds()) == (1000, 32, 2500)
    assert list(model.engines) == ["simulated", "openvino"]
    assert dict(model.required_labels) == {"zone": "a", "gpu": "2"}
    assert model.labels["since"] == "2024-01-31"
    assert not model.pinned
    assert document.line_of("memory_bytes") == 3
    assert document.line_of("required_labels.gpu") == 11
    assert document.line_of("scaling.min") == 1


def test_documents_are_counted_and_empty_ones_left_out() -> None:
    found = read("---\n---\nname: a\n---\n# nothing\n---\nname: b\n")
    assert [(document.number, document.line) for document in found] == [(2, 3), (4, 7)]
    assert read("") == []


def test_every_fault_is_told_with_its_line() -> None:
    assert told(
        "sorce: x\nstepTokens: 5\nstep_tokens: 6\nslots: many\nblocks: -1\nengines: openvino\ncapabilities: [1, chat]\n"
        "requiredLabels: {gpu: true}\nscaling: {mxa: 1, idle: 5}\nremote:\n  api: CHAT\npinned: 'yes'\nprice: 3\n"
        "labels: none\n"
    ) == [
        "1: sorce: Model has no such field; did you mean 'source'?",
        "3: step_tokens: given twice",
        "4: slots: 'many' is not a whole number, 0 or more",
        "5: blocks: -1 is not a whole number, 0 or more",
        "6: engines: not a list: ['openvino']",
        '7: capabilities[0]: 1 is not text: put it into "quotes"',
        '8: required_labels.gpu: true is not text: put it into "quotes"',
        "9: scaling.mxa: Scaling has no such field; did you mean 'max'?",
        "9: scaling.idle: 5 is not a duration: 300s, 0.5s",
        "11: remote.api: 'CHAT' is not one of REMOTE_API_CHAT, REMOTE_API_COMPLETIONS, REMOTE_API_COMPLETIONS_TOKENS;"
        " did you mean 'REMOTE_API_CHAT'?",
        "12: pinned: 'yes' is not true or false",
        "13: price: not a mapping of fields",
        "14: labels: 'none' is not a mapping",
    ]
    assert told("- a\n- b\n") == ["1: not a mapping of fields"]


@pytest.mark.parametrize(
    ("text", "line"), [("a: [\nb: }", 2), ("[" * 5000, 0), ("labels: !!python/name:os.system", 1), ("&a [*a, *b]", 1)]
)
def test_what_is_no_yaml_is_refused(text: str, line: int) -> None:
    with pytest.raises(NotYaml) as caught:
        read(text)
    assert caught.value.line == line


def test_a_message_that_holds_itself_is_refused() -> None:
    with pytest.raises(NotYaml, match="recursive"):
        read("labels: &a {inner: *a}")


def checked(folder: Path, *names: str, catalogue: dict[str, registry_pb2.Model] | None = None) -> list[str]:
    files = model_files.load([str(folder / name) for name in names])
    with pytest.raises(FilesInvalid) as caught:
        files.check(catalogue or {}, prune=False)
    return [str(fault).removeprefix(f"{folder}/") for fault in caught.value.faults]


def test_files_are_held_to_the_rules_of_the_catalogue_all_at_once(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text(
        GOOD.replace("slots: 2", "slots: 0").replace("blocks: 4", "blocks: many").replace(", openvino", "")
    )
    adapter = "name: x\nbase: a\nsource: /x\nmemory_bytes: 7\n"
    (tmp_path / "two.yaml").write_text(f"{adapter}---\n{adapter}engines: [vllm]\n---\nname: y\nbase: z\n")
    assert checked(tmp_path, "one.yaml", "two.yaml", "three.yaml") == [
        "one.yaml:5: blocks: 'many' is not a whole number, 0 or more",
        "one.yaml:7: slots: must be more than 0",
        "two.yaml:4: document 1: memory_bytes: 7, but a copy of 'a' has room for 0 bytes (its adapter_memory_bytes)",
        f"two.yaml:6: document 2: name: 'x' is in {tmp_path}/two.yaml:1 too",
        "two.yaml:10: document 2: engines: an adapter has that of its base, 'a': remove it here",
        "two.yaml:12: document 3: source: required: a path, package:NAME, or simulated:, triton: or remote:",
        "two.yaml:12: document 3: memory_bytes: must be more than 0",
        "two.yaml:13: document 3: base: there is no model 'z'",
        "three.yaml: No such file or directory",
    ]


def test_a_base_may_be_in_the_mesh_already(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("name: x\nbase: a\nsource: /x\nmemory_bytes: 7\n")
    files = model_files.load([str(tmp_path / "x.yaml")])
    files.check({"a": registry_pb2.Model(name="a", adapter_memory_bytes=7)}, prune=False)
    with pytest.raises(FilesInvalid, match="there is no model 'a'"):
        files.check({"a": registry_pb2.Model(name="a", adapter_memory_bytes=7)}, prune=True)


def test_a_folder_and_standard_input_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.yaml", "a.json", ".hidden.yaml", "notes.md"):
        (tmp_path / name).write_text(GOOD if name == "b.yaml" else '{"name": "j"}')
    stdin = io.TextIOWrapper(io.BytesIO(b"name: s\n"))
    monkeypatch.setattr("sys.stdin", stdin)
    files = model_files.load([str(tmp_path), "-"])
    assert [model.name for model in files.models] == ["j", "a", "s"]
    assert [str(fault) for fault in files.faults] == []
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe")
    told = checked(tmp_path, "empty", "empty.yaml", "binary.yaml")
    assert told[0] == "empty: no .yaml, .yml, .json in this folder"
    assert told[1] == "empty.yaml: empty: it holds no model"
    assert told[2].startswith("binary.yaml: ")


def test_the_mesh_s_own_violations_get_their_place(tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(f"{GOOD}---\n{GOOD.replace('name: a', 'name: b')}")
    files = model_files.load([str(tmp_path / "two.yaml")])
    where = files.locate("models[1].required_labels.zone", "no").removeprefix(f"{tmp_path}/")
    assert where == "two.yaml:26: document 2: required_labels.zone: no"
    assert files.locate("prune", "no") == "prune: no"
    assert files.locate("models[7].name", "no") == "models[7].name: no"


def test_the_example_is_valid() -> None:
    files = model_files.load([str(ROOT / "deploy" / "catalogue")])
    files.check({}, prune=True)
    models = files.models
    assert {bool(model.base) for model in models} == {True, False}
    assert any(model.HasField("scaling") for model in models)
    assert any(model.HasField("remote") for model in models)
    assert any(model.HasField("triton") for model in models)


def test_the_policy_s_models_are_valid_alone_too() -> None:
    files = model_files.load([str(ROOT / "deploy" / "policy" / "models")])
    files.check({}, prune=True)
    assert [model.name for model in files.models] == ["simulated", "smollm2"]
