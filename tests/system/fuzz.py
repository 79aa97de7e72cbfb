"""Can a request break the mesh? Mutated ones to every public RPC, and what they left behind.

    python -m tests.system.fuzz [--fuzz 100000] [--seed N] [--only NUMBER]

A mesh of real processes with the simulated engine. Shots are drawn from a seed, each by its number alone, so that one
that broke something can be sent again by itself (`--only`). Rules and catalogue are put back as they were after every
BATCH shots: the fuzzer may delete whatever it finds, itself included.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode, aio

from headrace.inference.v1 import inference_pb2 as pb
from headrace.operations.v1 import operations_pb2 as ops
from libs.errors import DOMAIN
from libs.registry import EtcdClient, keys
from tests.system.client import Client
from tests.system.fuzz_checks import Footprint, bugs, idle, leaks
from tests.system.fuzz_seeds import generates, rules, write_policy
from tests.system.fuzz_shots import METHODS, Shot, shot
from tests.system.mesh import Mesh

BATCH = 1_000
"""Shots between two times that the rules are put back."""
WARM = 5
"""One shot in so many comes before memory is looked at for the first time."""
FLIGHT = 24
"""Shots at a time."""
CHANNELS = 4
HANGS_S = 20.0
"""A shot without an end for as long hangs: its deadline is shorter."""
REASONS = frozenset(value.name for value in pb.ErrorReason.DESCRIPTOR.values)
OWN = ("UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "CANCELLED", "DEADLINE_EXCEEDED")
"""Codes that gRPC itself gives: to methods that are none, to messages that are too large, and at the client."""
NEVER = ("Approve",)
"""Methods that answer nothing but errors here: no model of this mesh calls a tool."""
FORBIDDEN = ("INTERNAL", "UNKNOWN", "DATA_LOSS")
CLIENTS_OWN = "Internal error from Core"
"""What gRPC's client says, with INTERNAL, when the stream that it writes to has ended: the answer is lost to it."""
INNER = ("Traceback", "<class '", " object at 0x", "site-packages", '.py"')
"""Would tell of the inside."""
OPTIONS = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]


@dataclass(slots=True)
class Tally:
    """What came of the shots."""

    shots: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    by_method: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """Each with its shot."""

    answered: set[str] = field(default_factory=set)
    """Methods that have had something to say."""

    def count(self, one: Shot, code: str) -> None:
        """An end of a shot."""
        self.shots += 1
        self.codes[code] += 1
        self.by_method.setdefault(one.method.rpartition("/")[2], Counter())[code] += 1

    def fault(self, one: Shot, what: str) -> None:
        """Something that must not be."""
        self.faults.append(f"{what}\n    {one}")


class Fuzzer:
    """Shoots at one door."""

    def __init__(self, channels: Sequence[aio.Channel], operator: str) -> None:
        self.tally = Tally()
        self._channels = channels
        self._operator = operator

    async def shoot(self, seed: int, numbers: Sequence[int]) -> None:
        """All of these, FLIGHT at a time."""
        left = iter(numbers)

        async def worker() -> None:
            for number in left:
                await self.one(shot(seed, number, self._operator))

        async with asyncio.TaskGroup() as group:
            for _ in range(FLIGHT):
                group.create_task(worker())

    async def one(self, one: Shot) -> None:
        """One shot, to its end."""
        try:
            async with asyncio.timeout(HANGS_S):
                await self._fire(one)
        except TimeoutError:
            self.tally.fault(one, f"no end after {HANGS_S:g} s")

    async def _fire(self, one: Shot) -> None:
        channel = self._channels[one.number % len(self._channels)]
        kind = f"{'stream' if one.streams_up else 'unary'}_{'stream' if one.streams_down else 'unary'}"
        make = getattr(channel, kind)(one.method)
        options: dict[str, Any] = {"metadata": one.metadata, "timeout": one.timeout_s}
        call = make(_feed(one), **options) if one.streams_up else make(one.messages[0], **options)
        if one.cancel_after_s is not None:
            await asyncio.sleep(one.cancel_after_s)
            call.cancel()
        try:
            if one.streams_down:
                while (answer := await call.read()) is not aio.EOF:
                    self._answered(one, answer)
            else:
                self._answered(one, await call)
        except aio.AioRpcError:
            pass  # looked at below
        except asyncio.CancelledError:
            if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                raise
        finally:
            call.cancel()
        await self._ended(one, call)

    def _answered(self, one: Shot, answer: bytes) -> None:
        """Errors that travel inside answers."""
        name = one.method.rpartition("/")[2]
        self.tally.answered.add(name)
        if name == "Session":
            for end in pb.SessionResponse.FromString(answer).ends:
                if end.HasField("failure"):
                    self._failed(one, end.failure.code, end.failure.message, end.failure.details)
        elif name == "Explain":
            for decision in ops.ExplainResponse.FromString(answer).decisions:
                if "INTERNAL" in decision.choice:
                    self.tally.fault(one, f"Explain: {decision.choice}: {decision.reason}")

    async def _ended(self, one: Shot, call: Any) -> None:
        code, text = await call.code(), await call.details() or ""
        if text == CLIENTS_OWN:
            self.tally.count(one, "the client's own")
            return
        self.tally.count(one, code.name)
        if code.name == "OK":
            return
        status = status_pb2.Status()
        for key, value in await call.trailing_metadata() or ():
            if key == "grpc-status-details-bin":
                status.ParseFromString(value)
        if not status.details and code.name in OWN:
            return
        self._failed(one, code.value[0], text, status.details)

    def _failed(self, one: Shot, number: int, text: str, details: Sequence[Any]) -> None:
        code = _CODES.get(number, str(number))
        info = error_details_pb2.ErrorInfo()
        found = any(detail.Unpack(info) for detail in details)
        self.tally.reasons[info.reason] += 1
        if code in FORBIDDEN or info.reason == "ERROR_REASON_INTERNAL":
            self.tally.fault(one, f"{code}: {text[:300]}")
        elif not found or info.domain != DOMAIN or info.reason not in REASONS:
            self.tally.fault(one, f"{code} with reason {info.reason!r} of domain {info.domain!r}: {text[:300]}")
        elif any(inner in text for inner in INNER):
            self.tally.fault(one, f"{code} tells of the inside: {text[:300]}")


_CODES = {code.value[0]: code.name for code in StatusCode}


async def _feed(one: Shot) -> Any:
    for index, message in enumerate(one.messages):
        if index and (pause := one.pauses_s[index - 1]):
            await asyncio.sleep(pause)
        yield message
    if not one.half_closes:
        await asyncio.sleep(HANGS_S)


class Rules:
    """What lies in etcd and can be changed from outside: read once, put back whenever it is asked for."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client
        self._kept: dict[str, bytes] = {}

    async def keep(self) -> None:
        """Remembers all as it is."""
        self._kept = await self._read()

    async def restore(self) -> int:
        """Puts all back; how many keys were changed."""
        there = await self._read()
        changed = [key for key, value in self._kept.items() if there.get(key) != value]
        added = there.keys() - self._kept.keys()
        for key in changed:
            await self._client.put(key, self._kept[key])
        for key in added:
            await self._client.delete(key)
        return len(changed) + len(added)

    async def _read(self) -> dict[str, bytes]:
        found = [await self._client.get_prefix(prefix) for prefix in (keys.POLICIES, keys.MODELS)]
        return {entry.key: entry.value for _, entries in found for entry in entries}


async def works(client: Client, within_s: float = 30.0) -> None:
    """Returns when a normal request is answered on each door. Raises the last error."""
    end = time.monotonic() + within_s
    while True:
        try:
            answer = await client.generate(generates()[0], timeout_s=5)
            [also], _ = await client.session([generates()[0]])
            if answer.finish is not None and also.finish is not None:
                return
        except aio.AioRpcError:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, f"a normal request is not answered after {within_s:g} s"
        await asyncio.sleep(0.05)


async def run(count: int, seed: int, only: int | None = None, say: Any = lambda _: None) -> Tally:
    """Sends shots 0 to `count`, or one of them. Raises AssertionError with every fault found."""
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder))
        with Mesh(engine="simulated", envoy=False, extra_policy=Path(folder)) as mesh:
            async with AsyncExitStack() as stack:
                channels = [
                    await stack.enter_async_context(aio.insecure_channel(mesh.target, options=OPTIONS))
                    for _ in range(CHANNELS)
                ]
                client = Client(channels[0], mesh.key)
                etcd = await stack.enter_async_context(EtcdClient([mesh.snapshot().etcd], None))
                request = ops.ApplyPolicyRequest(objects=rules())
                await client.operations.ApplyPolicy(request, metadata=client.metadata)
                kept = Rules(etcd)
                await kept.keep()
                await works(client)
                fuzzer = Fuzzer(channels, mesh.key)
                await _shots(fuzzer, kept, client, mesh, (count, seed, only), say)
                return fuzzer.tally


async def _shots(
    fuzzer: Fuzzer, kept: Rules, client: Client, mesh: Mesh, wanted: tuple[int, int, int | None], say: Any
) -> None:
    (count, seed, only), tally = wanted, fuzzer.tally
    before: Footprint | None = None
    numbers = [only] if only is not None else range(count)
    count = len(numbers)
    for first in range(0, len(numbers), BATCH):
        await fuzzer.shoot(seed, numbers[first : first + BATCH])
        restored = await kept.restore()
        await works(client)
        if before is None and first + BATCH >= count / WARM:  # the first ones load what is loaded once, and fill caches
            await idle(mesh)
            before = Footprint.of(mesh)
        resident = Footprint.of(mesh).processes["admission-1"].resident / 1e6
        codes = dict(tally.codes.most_common())
        say(f"{tally.shots:>7} {codes}, {restored} keys put back, {resident:.0f} MB, {len(tally.faults)} faults")
    await idle(mesh)
    assert before is not None
    faults = [*bugs(mesh), *leaks(before, Footprint.of(mesh), mesh), *tally.faults]
    if only is None and count >= 3 * BATCH:
        unheard = [m.name for m in METHODS if m.name not in {*tally.answered, *NEVER}]
        faults += [f"{name} never answered: its seeds are no good" for name in unheard]
    assert not faults, f"{len(faults)} faults:\n" + "\n".join(faults[:40])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fuzz", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--only", type=int)
    arguments = parser.parse_args()
    print(f"{arguments.fuzz} shots, seed {arguments.seed}", flush=True)
    began = time.monotonic()

    def say(line: str) -> None:
        print(line, flush=True)

    tally = asyncio.run(run(arguments.fuzz, arguments.seed, arguments.only, say))
    for method, codes in sorted(tally.by_method.items()):
        say(f"{method:18} {dict(codes.most_common())}")
    say(f"reasons: {dict(tally.reasons.most_common())}")
    say(f"{tally.shots} shots in {time.monotonic() - began:.0f} s: no fault")


if __name__ == "__main__":
    main()
