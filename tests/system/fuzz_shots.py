"""What the fuzzer sends: each shot is a function of a seed and a number, whatever was sent before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from headrace.inference.v1 import inference_pb2
from headrace.operations.v1 import operations_pb2
from tests.system.fuzz_messages import mutate, spoil
from tests.system.fuzz_seeds import KEY, seeds

SERVICES = [
    *inference_pb2.DESCRIPTOR.services_by_name.values(),
    *operations_pb2.DESCRIPTOR.services_by_name.values(),
]
"""All that clients can reach; a new RPC of theirs is fuzzed by itself."""
METHODS: Sequence[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
OVERSIZED = 4 * 1024 * 1024 + 100
"""Bytes of a message that gRPC does not take."""
TIMEOUT_S = 3.0
"""Of a shot that is not about deadlines: what would be answered for longer has been tried."""
WATCH_S = 0.3
"""Of a stream without an end."""
GENERATE_SHARE = 0.3
"""Of the shots that go to Generate and Session, where most of the code is."""
METADATA: Sequence[tuple[tuple[str, str | bytes], ...]] = (
    (("traceparent", "00-" + "0" * 32 + "-" + "0" * 16 + "-00"),),
    (("traceparent", "zz-" + "g" * 32 + "-x"),),
    (("traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),) * 3,
    (("tracestate", "a=b," * 500),),
    (("grpc-status-details-bin", b"\x00\xff"),),
    (("x-bin", bytes(range(256)) * 8),),
    (("x-forwarded-client-cert", "By=a;URI=spiffe://dev"),),
    (("x-forwarded-for", "127.0.0.1"), ("headrace-local", "1")),
    (("grpc-previous-rpc-attempts", "9"),),
    (("user-agent", "x" * 2000), ("content-type", "application/grpc+json")),
    tuple((f"x-{number}", "y") for number in range(60)),
    (("x-long", "z" * 7000),),
    (("authorization", "Bearer guess"),),
)
"""Behind the caller's own."""


@dataclass(frozen=True, slots=True)
class Shot:
    """One RPC, as bytes."""

    seed: int
    number: int
    method: str
    """/package.Service/Method"""
    how: str
    """What is wrong with it, in a word or two."""
    messages: Sequence[bytes]
    streams_up: bool
    """Sent as a stream of messages, whether the method takes one or not."""
    streams_down: bool
    metadata: Sequence[tuple[str, str | bytes]]
    timeout_s: float = TIMEOUT_S
    cancel_after_s: float | None = None
    half_closes: bool = True
    pauses_s: Sequence[float] = field(default=())
    """In front of each message but the first."""

    def __str__(self) -> str:
        size = sum(map(len, self.messages))
        return f"--seed {self.seed} --only {self.number}: {self.method}, {self.how}, {size} bytes"


def shot(seed: int, number: int, operator: str) -> Shot:
    """The shot of this number.

    Args:
        operator: The key of a tenant that may call OperationsService.
    """
    chance = Random(f"{seed}/{number}")
    generating = chance.random() < GENERATE_SHARE
    method = chance.choice(METHODS[:2]) if generating else METHODS[number % len(METHODS)]
    name = f"/{method.containing_service.full_name}/{method.name}"
    up, down = bool(method.client_streaming), bool(method.server_streaming)
    watches = down and not generating and method.containing_service is not METHODS[0].containing_service
    how, timeout_s = "valid", WATCH_S if watches else TIMEOUT_S
    cancel_after_s: float | None = None
    half_closes = True
    key = KEY if generating and chance.random() < 0.5 else operator
    metadata: tuple[tuple[str, str | bytes], ...] = (("authorization", f"Bearer {key}"),)
    count = chance.choice((1, 1, 2, 5)) if up else 1
    messages = [_message(method, chance) for _ in range(count)]
    if chance.random() < 0.9:
        how = "fields"
        for message in messages:
            for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
                mutate(message, chance)
    payloads = [message.SerializeToString() for message in messages]
    throw = chance.random()
    if throw < 0.12:
        how = "bytes"
        payloads = [spoil(payload, chance) for payload in payloads]
    elif throw < 0.123:
        how = "oversized"
        payloads = [b"\x0a" + b"\x80\x80\x80\x02" + b"x" * OVERSIZED]
    elif throw < 0.17:
        how += ", metadata"
        metadata += tuple(chance.choice(METADATA))
    elif throw < 0.20:
        how += ", deadline"
        timeout_s = chance.choice((0.0, 1e-9, 0.0005, 0.003, 0.01, 1e9))
    elif throw < 0.25:
        how += ", cancelled"
        cancel_after_s = chance.choice((0.0, 0.0, 0.001, 0.004, 0.02))
        half_closes = chance.random() < 0.5
    elif throw < 0.265:
        how, up = "too many messages", True
        payloads = payloads * chance.choice((2, 3, 50))
    elif throw < 0.275:
        how, payloads, up = "no message", [], True
    elif throw < 0.28:
        how, name = "no such method", chance.choice((f"{name}x", "/a/b", "/", "x", f"{name}/", name.lower()))
    if how.endswith(", deadline") and timeout_s == 1e9 and watches:
        timeout_s = WATCH_S
    pauses = tuple(chance.choice((0.0, 0.0, 0.002)) for _ in payloads[1:]) if up else ()
    if up and cancel_after_s is None and chance.random() < 0.1:
        how += ", left open"
        half_closes, cancel_after_s = False, 0.05
    return Shot(seed, number, name, how, payloads, up, down, metadata, timeout_s, cancel_after_s, half_closes, pauses)


_SEEDS: Mapping[str, Sequence[Message]] = seeds()


def _message(method: MethodDescriptor, chance: Random) -> Message:
    valid = _SEEDS.get(method.input_type.full_name)
    if not valid:
        return message_factory.GetMessageClass(method.input_type)()
    message = type(valid[0])()
    message.CopyFrom(chance.choice(valid))
    return message
