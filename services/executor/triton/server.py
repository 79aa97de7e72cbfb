"""A Triton server's unary calls, and its metrics page."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
from grpc import aio
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from services.executor.triton.contract import ModelFacts
from services.executor.triton.metrics import KvBlocks, kv_blocks

ANSWER_S = 5.0
LOAD_S = 900.0
"""Building an engine's buffers on a GPU takes minutes."""
METRICS_BYTES = 4 * 1024 * 1024
"""More of a metrics page is not read."""

# No keepalive pings: Triton's default server answers those of an idle stream with GOAWAY (too many pings). The
# runner asks it whether it is there instead. Adapters' weights are larger than the mesh's own messages.
_OPTIONS = [
    ("grpc.max_receive_message_length", 64 * 1024 * 1024),
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
]


class TritonError(Exception):
    """The server refused a call; the text is its own."""


class TritonAway(TritonError):
    """The server cannot be reached, or does not answer."""


class TritonServer:
    """One server, over one channel.

    Args:
        endpoint: host:port of its gRPC service.
        metrics_endpoint: host:port of its metrics page; "" when it has none.
        tls_ca_file: The CA of its certificate; "" for plaintext.
        answer_s: A server that does not answer a question about itself within this does not answer.

    Raises OSError when the CA's file cannot be read.
    """

    def __init__(
        self, endpoint: str, metrics_endpoint: str = "", tls_ca_file: str = "", answer_s: float = ANSWER_S
    ) -> None:
        self.endpoint = endpoint
        self._answer_s = answer_s
        self._metrics_endpoint = metrics_endpoint
        if tls_ca_file:
            credentials = grpc.ssl_channel_credentials(root_certificates=Path(tls_ca_file).read_bytes())
            self._channel = aio.secure_channel(endpoint, credentials, options=_OPTIONS)
        else:
            self._channel = aio.insecure_channel(endpoint, options=_OPTIONS)
        self.stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def ready(self, model: str = "") -> bool:
        """Whether the server, or a model on it, takes requests. Raises TritonError."""
        if model:
            return bool((await self._call("ModelReady", service_pb2.ModelReadyRequest(name=model))).ready)
        # Not ServerReady: that is false as soon as any model, also somebody else's, failed to load.
        return bool((await self._call("ServerLive", service_pb2.ServerLiveRequest())).live)

    async def load(self, model: str) -> None:
        """Loads a model, and with an ensemble its steps. Raises TritonError."""
        await self._call("RepositoryModelLoad", service_pb2.RepositoryModelLoadRequest(model_name=model), LOAD_S)

    async def unload(self, model: str) -> None:
        """Unloads a model; returns before its memory is free. Raises TritonError."""
        await self._call("RepositoryModelUnload", service_pb2.RepositoryModelUnloadRequest(model_name=model))

    async def facts(self, model: str) -> ModelFacts:
        """What the server says of a loaded model. Raises TritonError."""
        config = (await self._call("ModelConfig", service_pb2.ModelConfigRequest(name=model))).config
        return ModelFacts(
            name=config.name,
            inputs={tensor.name: _type(tensor.data_type) for tensor in config.input},
            outputs={tensor.name: _type(tensor.data_type) for tensor in config.output},
            decoupled=config.model_transaction_policy.decoupled,
            max_batch_size=config.max_batch_size,
            steps=tuple(step.model_name for step in config.ensemble_scheduling.step),
            parameters={key: value.string_value for key, value in config.parameters.items()},
        )

    async def blocks(self, model: str) -> KvBlocks | None:
        """The model's blocks by the metrics page; None where it does not tell, or does not answer."""
        if not self._metrics_endpoint:
            return None
        try:
            async with asyncio.timeout(self._answer_s):
                return kv_blocks(await self._page(), model)
        except (OSError, TimeoutError, EOFError):
            return None

    async def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        await self._channel.close()

    async def _call(self, method: str, request: object, timeout_s: float = 0.0) -> Any:
        try:
            return await getattr(self.stub, method)(request, timeout=timeout_s or self._answer_s)
        except aio.AioRpcError as error:
            said = error.details() or error.code().name
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise TritonAway(f"{self.endpoint}: {said}") from error
            raise TritonError(said) from error

    async def _page(self) -> str:
        """HTTP/1.0, so that the body is what comes until the end."""
        host, _, port = self._metrics_endpoint.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(f"GET /metrics HTTP/1.0\r\nHost: {self._metrics_endpoint}\r\n\r\n".encode())
            await writer.drain()
            page = bytearray()
            while len(page) < METRICS_BYTES and (part := await reader.read(65536)):
                page += part
        finally:
            writer.close()
        return page.partition(b"\r\n\r\n")[2].decode("utf-8", "replace")


def _type(data_type: int) -> str:
    """The name that requests use: a STRING of the configuration is BYTES there."""
    name = str(model_config_pb2.DataType.Name(data_type)).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
