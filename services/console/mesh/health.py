"""Whether a component can do its job, asked the way anybody can: over the gRPC health protocol.

etcd answers it as the services do, and Envoy passes it on: healthy there means that a client gets through.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from grpc import StatusCode, aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from libs.rpc.channels import CLIENT_OPTIONS

TIMEOUT_S = 1.0
AWAY = "nobody answers"
NOT_SERVING = "not serving yet"
# A start is noticed when it happens: channels of the mesh would look again only once a second.
_OPTIONS = list({**dict(CLIENT_OPTIONS), "grpc.max_reconnect_backoff_ms": 200}.items())
_SERVING = health_pb2.HealthCheckResponse.SERVING


async def check(channel: aio.Channel, timeout_s: float = TIMEOUT_S) -> str:
    """Asks once; an empty string when it serves, else why it is not healthy, for a person."""
    try:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service=""), timeout=timeout_s
        )
    except aio.AioRpcError as error:
        if error.code() is StatusCode.DEADLINE_EXCEEDED:
            return f"no answer within {timeout_s:g} s"
        return AWAY if error.code() is StatusCode.UNAVAILABLE else error.code().name
    return "" if answer.status == _SERVING else NOT_SERVING


@asynccontextmanager
async def channel(endpoint: str) -> AsyncIterator[aio.Channel]:
    """A channel to host:port."""
    connection = aio.insecure_channel(endpoint, options=_OPTIONS)
    try:
        yield connection
    finally:
        await connection.close()


async def check_all(endpoints: Mapping[str, str]) -> dict[str, str]:
    """Asks every endpoint (name → host:port) once, together; name → what `check` says."""

    async def ask(endpoint: str) -> str:
        async with channel(endpoint) as connection:
            return await check(connection)

    answers = await asyncio.gather(*map(ask, endpoints.values()))
    return dict(zip(endpoints, answers, strict=True))
