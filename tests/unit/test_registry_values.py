"""Values are protojson that people and other versions of the mesh can read."""

import json

import pytest

from headrace.registry.v1 import registry_pb2
from libs.registry import ValueUnreadable, decode, encode


def test_round_trip_keeps_everything() -> None:
    model = registry_pb2.Model(name="m", memory_bytes=2**40, capabilities=["chat"])
    model.labels["owner"] = "search"
    assert decode(encode(model), registry_pb2.Model) == model


def test_people_can_read_it() -> None:
    entry = registry_pb2.ExecutorModel(model="m", state=registry_pb2.MODEL_STATE_READY, block_tokens=32)
    value = encode(entry)
    assert json.loads(value) == {"model": "m", "state": "MODEL_STATE_READY", "block_tokens": 32}
    assert b"\n" not in value


def test_what_a_newer_version_wrote_is_read_as_far_as_it_is_known() -> None:
    value = b'{"model": "m", "state": "MODEL_STATE_DREAMING", "flux": {"x": 1}, "slots": 4}'
    assert decode(value, registry_pb2.ExecutorModel) == registry_pb2.ExecutorModel(model="m", slots=4)


@pytest.mark.parametrize("value", [b"", b"{", b"\xff\xfe", b"[]", b'{"slots": "many"}', b"[" * 100_000])
def test_nonsense_is_refused(value: bytes) -> None:
    with pytest.raises(ValueUnreadable):
        decode(value, registry_pb2.ExecutorModel)
