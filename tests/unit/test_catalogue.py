"""Entries of the catalogue: what makes a version, and what an adapter takes from its base."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from headrace.registry.v1 import registry_pb2 as pb
from libs import catalogue
from libs.catalogue import (
    ModelSpec,
    Price,
    Scaling,
    model_of,
    pin,
    resolve,
    salted,
    unpin,
    unsalted,
    version_of,
    with_base,
)
from libs.catalogue.spec import DRAIN_S, IDLE_S

Change = Callable[[pb.Model], object]

BASE = pb.Model(
    name="m", source="package:m", context_tokens=4096, blocks=100, block_tokens=16, slots=8, step_tokens=512,
    memory_bytes=1000, replicas=2, capabilities=["chat"], adapter_memory_bytes=50,
)  # fmt: skip

# Every field of the message stands in one of the two, or is what an entry is called.
LOADED: dict[str, Change] = {
    "source": lambda m: setattr(m, "source", "package:n"),
    "context_tokens": lambda m: setattr(m, "context_tokens", 2048),
    "blocks": lambda m: setattr(m, "blocks", 101),
    "block_tokens": lambda m: setattr(m, "block_tokens", 32),
    "slots": lambda m: setattr(m, "slots", 9),
    "step_tokens": lambda m: setattr(m, "step_tokens", 256),
    "simulation": lambda m: setattr(m.simulation, "seed", 9),
    "revision": lambda m: setattr(m, "revision", "2"),
    "tokenizer": lambda m: setattr(m, "tokenizer", "package:t"),
    "base": lambda m: setattr(m, "base", "other"),
    "shares_prefix": lambda m: setattr(m, "shares_prefix", True),
    "openvino": lambda m: setattr(m.openvino, "prompt_lookup_tokens", 5),
    "trtllm": lambda m: setattr(m.trtllm, "backend", "tensorrt"),
    "triton": lambda m: setattr(m.triton, "endpoint", "h:1"),
    "vllm": lambda m: setattr(m.vllm, "max_adapters", 2),
    "remote": lambda m: m.remote.headers.update({"a": "b"}),
}
AROUND: dict[str, Change] = {
    "replicas": lambda m: setattr(m, "replicas", 3),
    "memory_bytes": lambda m: setattr(m, "memory_bytes", 2000),
    "engines": lambda m: m.engines.append("simulated"),
    "capabilities": lambda m: m.capabilities.append("grammar"),
    "labels": lambda m: m.labels.update({"team": "search"}),
    "scaling": lambda m: setattr(m.scaling, "max", 3),
    "pinned": lambda m: setattr(m, "pinned", True),
    "required_labels": lambda m: m.required_labels.update({"gpu": "h100"}),
    "spread_label": lambda m: setattr(m, "spread_label", "zone"),
    "drain_timeout": lambda m: m.drain_timeout.FromSeconds(5),
    "price": lambda m: setattr(m.price, "input", 1.0),
    "adapter_memory_bytes": lambda m: setattr(m, "adapter_memory_bytes", 60),
}


def changed(names: set[str]) -> pb.Model:
    message = pb.Model()
    message.CopyFrom(BASE)
    for name in sorted(names):
        {**LOADED, **AROUND}[name](message)
    return message


def test_every_field_is_spoken_for() -> None:
    """A new field has to be put in one of the two tables, and so thought about."""
    assert {field.name for field in pb.Model.DESCRIPTOR.fields} == {"name", *LOADED, *AROUND}


@given(st.sets(st.sampled_from(sorted(LOADED))), st.sets(st.sampled_from(sorted(AROUND))))
def test_a_version_changes_exactly_when_a_loaded_copy_is_concerned(loaded: set[str], around: set[str]) -> None:
    message = changed(loaded | around)
    assert message != BASE or not (loaded or around), "each of them changes something"
    assert (version_of(message) == version_of(BASE)) == (not loaded)


@given(st.sets(st.sampled_from(sorted(LOADED)), min_size=1), st.sets(st.sampled_from(sorted(LOADED)), min_size=1))
def test_different_copies_have_different_versions(one: set[str], other: set[str]) -> None:
    assert (version_of(changed(one)) == version_of(changed(other))) == (one == other)


def test_a_version_is_short_stable_and_leaves_the_entry_alone() -> None:
    before = BASE.SerializeToString(deterministic=True)
    assert version_of(BASE) == version_of(pb.Model.FromString(before))
    assert len(version_of(BASE)) == 8
    assert int(version_of(BASE), 16) >= 0
    assert BASE.SerializeToString(deterministic=True) == before


def test_the_order_of_a_map_is_no_version() -> None:
    one, other = pb.Model(), pb.Model()
    for keys, message in (("abcdefgh", one), ("hgfedcba", other)):
        for key in keys:
            message.remote.headers[key] = key
    assert version_of(one) == version_of(other)


def test_what_is_unset_has_its_default() -> None:
    spec = ModelSpec.from_proto(BASE)
    assert (spec.drain_s, spec.scaling, spec.price) == (DRAIN_S, None, None)
    assert (spec.vllm.memory_fraction, spec.trtllm.backend, spec.remote.resume) == (0.9, "pytorch", "replay")
    assert spec.remote.breaker.failures == 10
    assert (spec.triton.flavor, spec.remote.api) == ("", "")
    assert spec.copy_bytes == 1050
    assert spec.pool == f"m@{version_of(BASE)}"
    assert (spec.adapter, spec.salt, spec.tokenizer_source) == ("", "", "package:m")


def test_what_is_set_is_read() -> None:
    message = changed({"drain_timeout", "price", "tokenizer"})
    message.scaling.CopyFrom(pb.Scaling(min=0, works_per_copy=5, idle=Duration(seconds=7)))
    message.triton.flavor = pb.TRITON_FLAVOR_BLS
    message.remote.CopyFrom(pb.RemoteOptions(base_url="http://h/v1/", api=pb.REMOTE_API_COMPLETIONS_TOKENS))
    message.remote.breaker.open.FromMilliseconds(1500)
    spec = ModelSpec.from_proto(message)
    assert spec.scaling == Scaling(0, 1, 5, 7.0), "a model that scales has one copy at the most, if no more"
    assert spec.drain_s == 5.0
    assert spec.price == Price(1.0, 0.0, 0.0, "")
    assert (spec.triton.flavor, spec.remote.api, spec.remote.base_url) == ("bls", "completions_tokens", "http://h/v1")
    assert (spec.remote.breaker.open_s, spec.remote.breaker.window_s) == (1.5, 120.0)
    assert spec.tokenizer_source == "package:t"
    message.ClearField("scaling")
    message.scaling.SetInParent()
    assert ModelSpec.from_proto(message).scaling == Scaling(0, 1, 0, IDLE_S)


ADAPTER = pb.Model(name="a", source="package:a", base="m", memory_bytes=7)


def test_an_adapter_has_what_its_base_says() -> None:
    specs = resolve({"m": BASE, "a": ADAPTER})
    base, adapter = specs["m"], specs["a"]
    assert (adapter.name, adapter.source, adapter.base, adapter.memory_bytes) == ("a", "package:a", "m", 7)
    assert adapter.pool == base.pool
    assert adapter.adapter == f"a@{version_of(ADAPTER)}" == adapter.salt
    assert (adapter.context_tokens, adapter.block_tokens, adapter.slots) == (4096, 16, 8)
    assert adapter.capabilities == ("chat",)
    assert adapter.tokenizer_source == "package:m"
    assert adapter.copy_bytes == 7, "it needs its own memory, and no room for others"
    assert base.adapter == ""


def test_an_adapter_keeps_what_is_its_own() -> None:
    adapter = pb.Model(name="a", base="m", shares_prefix=True, capabilities=["grammar"], revision="r")
    adapter.price.output = 3
    spec = resolve({"m": changed({"price"}), "a": adapter})["a"]
    assert spec.salt == ""
    assert spec.adapter
    assert (spec.capabilities, spec.revision, spec.price) == (("grammar",), "r", Price(0.0, 0.0, 3.0, ""))


def test_a_new_version_of_the_base_is_another_pool_and_the_same_adapter() -> None:
    before, after = resolve({"m": BASE, "a": ADAPTER})["a"], resolve({"m": changed({"slots"}), "a": ADAPTER})["a"]
    assert before.pool != after.pool
    assert before.adapter == after.adapter


def test_a_new_version_of_an_adapter_is_the_same_pool() -> None:
    newer = pb.Model()
    newer.CopyFrom(ADAPTER)
    newer.revision = "2"
    before, after = resolve({"m": BASE, "a": ADAPTER})["a"], resolve({"m": BASE, "a": newer})["a"]
    assert before.pool == after.pool
    assert before.adapter != after.adapter


@pytest.mark.parametrize("models", [{"a": ADAPTER}, {"a": pb.Model(name="a", base="a")}])
def test_an_adapter_without_a_base_cannot_be_asked_for(models: dict[str, pb.Model]) -> None:
    assert resolve(models) == {}
    assert ModelSpec.from_proto(models["a"]).pool == ""


def test_an_adapter_of_an_adapter_cannot_be_asked_for() -> None:
    assert set(resolve({"m": BASE, "a": ADAPTER, "b": pb.Model(name="b", base="a")})) == {"m", "a"}


def test_an_executor_and_a_router_call_an_adapter_the_same() -> None:
    """The one reads it from its placement, the other from the catalogue."""
    placed = with_base(ModelSpec.from_proto(ADAPTER), ModelSpec.from_proto(BASE))
    assert placed == resolve({"m": BASE, "a": ADAPTER})["a"]


def test_names_of_pools() -> None:
    assert model_of("m@12345678") == "m"
    assert model_of("m") == "m"
    spec = ModelSpec("m", "s", 1, 1, 1, 1, 1, version="9")
    assert spec.pool == "m@9"
    assert replace(spec, version="8", pool="").pool == "m@8"


def test_a_salt_is_that_of_the_model_and_perhaps_a_tenant() -> None:
    pairs = [("", ""), ("", "acme"), ("lora@1", ""), ("lora@1", "acme")]
    salts = [salted(*pair) for pair in pairs]
    assert salts == ["", "/acme", "lora@1", "lora@1/acme"]
    assert [unsalted(salt) for salt in salts] == pairs


def test_a_pin_is_a_pool_and_perhaps_an_adapter() -> None:
    for pool, adapter in (("m@1", ""), ("m@1", "a@2")):
        assert unpin(pin(pool, adapter)) == (pool, adapter)
    assert pin("m@1", "") == "m@1"


def test_public_names() -> None:
    assert set(catalogue.__all__) <= set(vars(catalogue))
