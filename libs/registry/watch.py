"""Changes of a key or a prefix, as they happen, from one member of etcd."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from etcdserverpb import rpc_pb2 as pb
from libs.registry.client import EtcdClient
from libs.registry.connection import HAS_LEADER
from libs.registry.errors import Compacted, RegistryError, RegistryUnavailable, translated
from libs.registry.transaction import end_of

SILENCE_S = 2.0
"""Seconds of silence after which the member is asked for a sign of life, and then has to give one. An answer to anybody
is one: a process that renews a lease every second or two need not have every watch of its own ask, too."""

_Call: TypeAlias = "grpc.aio.StreamStreamCall[pb.WatchRequest, pb.WatchResponse]"


@dataclass(frozen=True, slots=True)
class Change:
    """A key that was written or, with `value` None, deleted."""

    key: str
    value: bytes | None
    mod_revision: int


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes that came together, oldest first; none when it is only a sign of life."""

    changes: tuple[Change, ...]


async def watch(
    client: EtcdClient, key: str, start_revision: int, *, prefix: bool = False
) -> AsyncGenerator[Batch, None]:
    """Yields every change from `start_revision` on; an empty batch first, once the watch stands.

    An empty batch comes every SILENCE_S in which nothing changes, too. Never ends by itself. Raises
    RegistryUnavailable when the member goes away, freezes, loses its leader or ends the watch, and Compacted when
    `start_revision` is gone. After either, read again and watch anew.
    Close the iterator (contextlib.aclosing) to end the watch.
    """
    member, clock = client.member, asyncio.get_running_loop().time
    call: _Call = member.watch.Watch(metadata=HAS_LEADER)
    create = pb.WatchCreateRequest(
        key=key.encode(), range_end=end_of(key) if prefix else b"", start_revision=start_revision
    )
    reading: asyncio.Task[pb.WatchResponse] | None = None
    try:
        await _write(call, pb.WatchRequest(create_request=create))
        created = asked = False
        while True:
            if reading is None:
                reading = asyncio.create_task(_read(call))
            done, _ = await asyncio.wait({reading}, timeout=SILENCE_S)
            if not done:
                if created and clock() - member.heard < SILENCE_S:
                    asked = False
                    yield Batch(())
                    continue
                if asked or not created:
                    raise RegistryUnavailable(f"{member.endpoint} is silent")
                # Its own answer is of no use to us: before etcd 3.5.8 it could overtake events.
                asked = True
                await _write(call, pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                continue
            response, reading, asked = reading.result(), None, False
            member.heard = clock()
            if response.compact_revision:
                raise Compacted(f"revision {start_revision} of {key} is gone")
            if response.canceled:
                raise RegistryUnavailable(f"{member.endpoint} ended the watch: {response.cancel_reason}")
            created = created or response.created
            yield Batch(tuple(_change(event) for event in response.events))
    except RegistryError:
        client.leave(member)
        raise
    finally:
        call.cancel()
        if reading is not None:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)


async def _write(call: _Call, request: pb.WatchRequest) -> None:
    try:
        async with asyncio.timeout(SILENCE_S):
            with translated():
                await call.write(request)
    except TimeoutError as error:
        raise RegistryUnavailable("the member takes nothing in") from error


async def _read(call: _Call) -> pb.WatchResponse:
    with translated():
        response = await call.read()
    if not isinstance(response, pb.WatchResponse):
        raise RegistryUnavailable("the member closed the stream")
    return response


def _change(event: pb.Event) -> Change:
    deleted = event.type == pb.Event.DELETE
    key = event.kv.key.decode(errors="replace")
    return Change(key, None if deleted else event.kv.value, event.kv.mod_revision)
