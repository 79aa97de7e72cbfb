"""The rules of the catalogue: what an entry must obey, by itself and among others; what differs; what is versioned."""

from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from headrace.registry.v1 import registry_pb2
from libs.catalogue import rules, version_of
from libs.catalogue.changes import changes, violations
from libs.catalogue.diff import differences
from libs.catalogue.rules import Referrers

NOBODY = Referrers({}, {})
BASE: dict[str, Any] = {
    "name": "a", "source": "package:a", "memory_bytes": 10, "context_tokens": 64, "blocks": 4, "block_tokens": 32,
    "slots": 2, "step_tokens": 64,
}  # fmt: skip
ADAPTER: dict[str, Any] = {"name": "x", "base": "a", "source": "/adapters/x", "memory_bytes": 5}
REMOTE: dict[str, Any] = {
    "name": "r", "source": "remote:", "tokenizer": "package:a", "engines": ["remote"], "context_tokens": 64,
    "blocks": 2, "block_tokens": 32, "slots": 1,
    "remote": {"base_url": "https://host/v1", "model": "m", "api": "REMOTE_API_CHAT"},
}  # fmt: skip
TRITON: dict[str, Any] = {
    **REMOTE, "name": "t", "source": "triton:", "engines": ["triton"], "remote": None,
    "triton": {"endpoint": "host:8001", "model": "m", "flavor": "TRITON_FLAVOR_BLS"},
}  # fmt: skip


def model(fields: dict[str, Any], **changed: Any) -> registry_pb2.Model:
    return json_format.ParseDict({**fields, **changed}, registry_pb2.Model())


def faults(entry: registry_pb2.Model) -> list[str]:
    return [str(fault) for fault in rules.entry(entry)]


@pytest.mark.parametrize("fields", [BASE, ADAPTER, REMOTE, TRITON], ids=["base", "adapter", "remote", "triton"])
def test_a_plain_entry_has_no_fault(fields: dict[str, Any]) -> None:
    assert faults(model(fields)) == []


@pytest.mark.parametrize(
    ("fields", "changed", "told"),
    [
        (BASE, {"name": ""}, "name: required"),
        (BASE, {"name": "A@1"}, "name: 'A@1' is not a name"),
        (BASE, {"name": "a" * 64}, "is not a name"),
        (BASE, {"source": ""}, "source: required"),
        (BASE, {"slots": 0}, "slots: must be more than 0"),
        (BASE, {"memory_bytes": 0}, "memory_bytes: must be more than 0"),
        (BASE, {"blocks": 1}, "blocks: 1 of 32 tokens do not hold one context of 64 tokens: at least 2"),
        (BASE, {"engines": ["openvin"]}, "engines[0]: 'openvin' is not one of"),
        (BASE, {"engines": ["openvin"]}, "did you mean 'openvino'?"),
        (BASE, {"engines": ["vllm", "vllm"]}, "engines[1]: 'vllm' is named twice"),
        (BASE, {"capabilities": ["chat", "grammars"]}, "capabilities[1]: 'grammars' is not one of chat, grammar"),
        (BASE, {"revision": "two words"}, "revision: "),
        (BASE, {"replicas": 20_000}, "replicas: 20000: at most 10000"),
        (BASE, {"shares_prefix": True}, "shares_prefix: only an adapter"),
        (BASE, {"scaling": {"min": 3, "max": 2}}, "scaling.min: 3 is more than scaling.max, 2"),
        (BASE, {"scaling": {"min": 3}}, "scaling.max: required: at least 1"),
        (BASE, {"scaling": {"max": 1, "idle": "0s"}}, "scaling.idle: 0s: more than 0s, at most 604800s"),
        (BASE, {"drain_timeout": "0s"}, "drain_timeout: 0s: more than 0s"),
        (BASE, {"drain_timeout": "3601s"}, "drain_timeout: 3601s: more than 0s, at most 3600s"),
        (BASE, {"required_labels": {"-gpu": "h200"}}, "required_labels: the label '-gpu' is not of the form"),
        (BASE, {"required_labels": {"gpu": "two words"}}, "required_labels.gpu: 'two words' is not of the form"),
        (BASE, {"spread_label": "a b"}, "spread_label: 'a b' is not of the form"),
        (BASE, {"price": {"input": 1, "currency": "usd"}}, "price.currency: 'usd' is not three capital letters"),
        (BASE, {"price": {"output": -1, "currency": "EUR"}}, "price.output: -1: per million tokens, at least 0"),
        (BASE, {"engines": ["vllm"], "trtllm": {}}, "trtllm: only trtllm executors look at it"),
        (BASE, {"trtllm": {"kv_fraction": 2}}, "trtllm.kv_fraction: 2: a share"),
        (BASE, {"trtllm": {"backend": "jax"}}, "trtllm.backend: 'jax' is not one of pytorch, tensorrt"),
        (BASE, {"vllm": {"dtype": "int3"}}, "vllm.dtype: 'int3' is not one of auto"),
        (BASE, {"simulation": {"load_us": -1}}, "simulation.load_us: -1: at least 0"),
        (BASE, {"simulation": {"weights_us": -1}}, "simulation.weights_us: -1: at least 0"),
        (BASE, {"simulation": {"decode_context_us": "NaN"}}, "simulation.decode_context_us: nan: at least 0"),
        (BASE, {"simulation": {"host_block_us": 5}}, "simulation.host_block_us: there is no host tier without"),
        (BASE, {"simulation": {"host_blocks": 10_000_001}}, "simulation.host_blocks: 10000001: at most 10000000"),
        (ADAPTER, {"source": ""}, "source: required"),
        (ADAPTER, {"memory_bytes": 0}, "memory_bytes: must be more than 0"),
        (ADAPTER, {"slots": 2}, "slots: an adapter has that of its base, 'a': remove it here"),
        (ADAPTER, {"scaling": {"max": 1}}, "scaling: an adapter has that of its base"),
        (ADAPTER, {"base": "x"}, "base: an adapter is not its own base"),
        (REMOTE, {"remote": None}, "remote.base_url: required"),
        (REMOTE, {"remote": {}}, "remote.model: required"),
        (REMOTE, {"remote": {}}, "remote.api: required: one of REMOTE_API_CHAT, "),
        (REMOTE, {"engines": []}, "engines: with the source 'remote:' only remote executors can run it: [remote]"),
        (REMOTE, {"engines": ["openvino"]}, "engines: with the source 'remote:' only remote executors"),
        (REMOTE, {"tokenizer": ""}, "tokenizer: required: remote: has none"),
        (TRITON, {"triton": None}, "triton.endpoint: required"),
        (TRITON, {"triton": {"endpoint": "host"}}, "triton.endpoint: 'host' is not host:port"),
        (TRITON, {"triton": {}}, "triton.flavor: required: one of TRITON_FLAVOR_ENSEMBLE, "),
    ],
)  # fmt: skip
def test_one_fault(fields: dict[str, Any], changed: dict[str, Any], told: str) -> None:
    found = faults(model(fields, **changed))
    assert any(told in fault for fault in found), found


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"base_url": "ftp://host/v1"}, "remote.base_url: 'ftp://host/v1' is not of the form https://host/v1"),
        ({"base_url": "https://host:x/v1"}, "is not of the form"),
        ({"base_url": "https://me:secret@host/v1"}, "remote.base_url: a password must not lie in etcd"),
        ({"base_url": "https://host/v1?x=1"}, "without anything behind '?'"),
        ({"base_url": "https://host/v1/chat/completions"}, "only what comes before"),
        ({"headers": {"Authorization": "Bearer x"}}, "remote.headers.Authorization: a key must not lie in etcd"),
        ({"headers": {"a b": "x"}}, "remote.headers.a b: is not a header of HTTP"),
        ({"read_timeout": "0s"}, "remote.read_timeout: 0s: more than 0s"),
        ({"breaker": {"open": "-1s"}}, "remote.breaker.open: -1s: more than 0s"),
    ],
)
def test_a_fault_of_an_endpoint(changed: dict[str, Any], told: str) -> None:
    found = faults(model(REMOTE, remote={**REMOTE["remote"], **changed}))
    assert any(told in fault for fault in found), found


def told_across(*entries: registry_pb2.Model, routes: tuple[str, ...] = ()) -> list[str]:
    found = rules.across({entry.name: entry for entry in entries}, routes)
    return [f"{name}: {fault}" for name, fault in found]


def test_an_adapter_needs_a_base_with_room() -> None:
    base, adapter = model(BASE, adapter_memory_bytes=5), model(ADAPTER)
    assert told_across(base, adapter) == []
    assert told_across(base, model(ADAPTER, base="aa")) == ["x: base: there is no model 'aa'; did you mean 'a'?"]
    assert told_across(base, adapter, model(ADAPTER, name="y", base="x"))[0].startswith(
        "y: base: 'x' is itself an adapter"
    )
    assert told_across(model(BASE), adapter) == [
        "x: memory_bytes: 5, but a copy of 'a' has room for 0 bytes (its adapter_memory_bytes)"
    ]
    assert told_across(base, routes=("a",)) == ["a: name: 'a' is the alias of a route already"]


def test_violations_have_the_paths_of_the_request() -> None:
    wanted = [model(BASE, adapter_memory_bytes=9), model(ADAPTER, slots=1), model(BASE, scaling={"min": 2, "max": 1})]
    found = violations({}, wanted, NOBODY, prune=False, force=False)
    assert [violation.subject for violation in found] == [
        "models[1].slots", "models[2].name", "models[2].scaling.min", "models[1].memory_bytes",
    ]  # fmt: skip


def test_what_was_wrong_before_stands_in_nobodys_way_but_new_harm_does() -> None:
    orphan = model(ADAPTER, name="orphan", base="gone")
    stored = {"a": model(BASE, adapter_memory_bytes=5), "x": model(ADAPTER), "orphan": orphan}
    assert violations(stored, [model(BASE, name="b")], NOBODY, prune=False, force=False) == []
    shrunk = violations(stored, [model(BASE)], NOBODY, prune=False, force=False)
    assert [violation.subject for violation in shrunk] == ["models"]
    assert "'x', which is in the catalogue, would be wrong: memory_bytes" in shrunk[0].description


def test_what_is_referred_to_is_not_pruned_unless_forced() -> None:
    stored = {"a": model(BASE, adapter_memory_bytes=5), "x": model(ADAPTER), "b": model(BASE, name="b")}
    referrers = Referrers({"default": ("a",), "other": ("b",)}, {"billing": ("a",)})
    told = [v.description for v in violations(stored, [stored["b"]], referrers, prune=True, force=False)]
    assert len(told) == 2
    assert "the route 'default' leads to it" in told[0]
    assert "the tenant 'billing' names it" in told[1]
    assert violations(stored, [stored["b"]], referrers, prune=True, force=True) == []
    base_alone = violations(stored, [stored["x"], stored["b"]], NOBODY, prune=True, force=True)
    assert any("it is the base of 'x'" in violation.description for violation in base_alone)


def test_what_is_pinned_or_scheduled_is_not_pruned_unless_forced() -> None:
    stored = {"a": model(BASE), "b": model(BASE, name="b")}
    referrers = Referrers({}, {}, {"desk": "a", "miller": "a", "other": "b"}, frozenset({"a", "default"}))
    told = [v.description for v in violations(stored, [stored["b"]], referrers, prune=True, force=False)]
    assert len(told) == 2
    assert "the prefix 'desk', 'miller' is pinned for it" in told[0]
    assert "rules of scheduling are made for it" in told[1]
    assert violations(stored, [stored["b"]], referrers, prune=True, force=True) == []


def test_changes_say_what_rolls_out() -> None:
    stored = {"a": model(BASE), "b": model(BASE, name="b"), "c": model(BASE, name="c")}
    wanted = [model(BASE, slots=3), model(BASE, name="b", replicas=2, labels={"owner": "me"}), model(BASE, name="d")]
    first, second, third, fourth = changes(stored, wanted, prune=True)
    assert (first.kind, first.rolls_out, first.version) == ("changed", True, version_of(wanted[0]))
    assert [(d.path, d.before, d.after) for d in first.differences] == [("slots", "2", "3")]
    assert (second.kind, second.rolls_out) == ("changed", False)
    assert [(d.path, d.before, d.after) for d in second.differences] == [
        ("replicas", "", "2"),
        ("labels.owner", "", "me"),
    ]
    assert (third.model, third.kind, fourth.model, fourth.kind) == ("d", "added", "c", "removed")
    assert [change.kind for change in changes(stored, [model(BASE)], prune=False)] == ["unchanged"]


def test_differences_read_like_yaml() -> None:
    old = model(REMOTE, pinned=True, engines=["remote"], remote={**REMOTE["remote"], "read_timeout": "2.5s"})
    new = model(REMOTE, price={"input": 0.1, "currency": "USD"}, remote={**REMOTE["remote"], "headers": {"x": "a b"}})
    assert {d.path: (d.before, d.after) for d in differences(old, new)} == {
        "pinned": ("true", ""),
        "price.input": ("", "0.1"),
        "price.currency": ("", "USD"),
        "remote.read_timeout": ("2.500s", ""),
        "remote.headers.x": ("", '"a b"'),
    }


ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "b"]),
        "slots": st.integers(0, 3),
        "replicas": st.integers(0, 3),
        "engines": st.lists(st.sampled_from(["vllm", "openvino"]), max_size=2),
        "labels": st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["v", "", 1.5, True])),
        "scaling": st.fixed_dictionaries({}, optional={"min": st.integers(0, 1), "idle": st.just("5s")}),
        "required_labels": st.dictionaries(st.sampled_from(["k", "l"]), st.sampled_from(["v", ""])),
        "price": st.fixed_dictionaries({}, optional={"input": st.sampled_from([0.0, 1.5])}),
    },
)


@given(ENTRIES, ENTRIES)
def test_there_are_differences_exactly_between_different_entries(one: dict[str, Any], other: dict[str, Any]) -> None:
    before, after = model(one), model(other)
    assert bool(differences(before, after)) == (before != after)
