"""What the options of each engine must obey in an entry of the catalogue. No effects."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from google.protobuf.duration_pb2 import Duration

from headrace.registry.v1 import registry_pb2

ENGINES = ("openvino", "simulated", "triton", "remote", "trtllm", "vllm")
"""Those that an executor can have."""
SOURCE_ENGINES = {"simulated:": "simulated", "triton:": "triton", "remote:": "remote"}
"""Sources that name no weights, with the one engine that knows what they mean."""
MOST_WAIT_S = 3600.0
MOST_HOST_BLOCKS = 10_000_000
"""The simulated engine really keeps their names: about 100 bytes each."""

_SIMULATED = (
    "step_base_us", "prefill_token_us", "sequence_us", "load_us", "weights_us", "prefill_context_us",
    "decode_context_us", "host_block_us",
)  # fmt: skip
_OPTIONS = ("simulation", "openvino", "trtllm", "triton", "vllm", "remote")
_ENDPOINT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):(\d{1,5})")
_HEADER = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_SECRET_HEADERS = frozenset({"authorization", "proxy-authorization", "api-key", "x-api-key", "cookie"})
_DTYPES = ("", "auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong."""

    path: str
    """The field: "scaling.min", "engines[1]"."""
    text: str
    """What is wrong with it, and what would be right."""

    def __str__(self) -> str:
        return f"{self.path}: {self.text}"


def elsewhere(model: registry_pb2.Model) -> bool:
    """Whether what runs it is another server, whose memory and steps are not ours."""
    return model.source.startswith(("triton:", "remote:"))


def options(model: registry_pb2.Model) -> Iterator[Fault]:
    """What is wrong with the options of the engines of a base model."""
    for name in _OPTIONS:
        engine = "simulated" if name == "simulation" else name
        if model.engines and model.HasField(name) and engine not in model.engines:  # type: ignore[arg-type]
            yield Fault(name, f"only {engine} executors look at it, and `engines` does not name that engine")
    if elsewhere(model) and not model.tokenizer:
        yield Fault("tokenizer", f"required: {model.source} has none; package:NAME, or a path to one")
    if model.source.startswith("remote:") or model.HasField("remote"):
        yield from _remote(model.remote)
    if model.source.startswith("triton:") or model.HasField("triton"):
        yield from _triton(model.triton)
    if model.HasField("trtllm"):
        yield from _trtllm(model.trtllm)
    if model.HasField("vllm"):
        yield from _vllm(model.vllm)
    if model.HasField("simulation"):
        for name in _SIMULATED:
            if not 0 <= getattr(model.simulation, name) < 1e12:
                yield Fault(f"simulation.{name}", f"{getattr(model.simulation, name):g}: at least 0")
        if model.simulation.host_blocks > MOST_HOST_BLOCKS:
            yield Fault("simulation.host_blocks", f"{model.simulation.host_blocks}: at most {MOST_HOST_BLOCKS}")
        elif model.simulation.host_block_us and not model.simulation.host_blocks:
            yield Fault("simulation.host_block_us", "there is no host tier without host_blocks: set both or neither")


def _remote(remote: registry_pb2.RemoteOptions) -> Iterator[Fault]:
    if not remote.base_url:
        yield Fault("remote.base_url", "required: https://host/v1, what comes before /chat/completions")
    else:
        yield from _url(remote.base_url)
    if not remote.model:
        yield Fault("remote.model", "required: the model's name there")
    if remote.api == registry_pb2.REMOTE_API_UNSPECIFIED:
        yield Fault("remote.api", f"required: one of {', '.join(registry_pb2.RemoteApi.keys()[1:])}")
    for name in sorted(remote.headers):
        if name.lower() in _SECRET_HEADERS:
            yield Fault(f"remote.headers.{name}", "a key must not lie in etcd: put it in a file, see api_key_file")
        elif not _HEADER.fullmatch(name) or not remote.headers[name].isprintable():
            yield Fault(f"remote.headers.{name}", "is not a header of HTTP")
    for name in ("connect_timeout", "read_timeout"):
        yield from _wait(f"remote.{name}", getattr(remote, name), remote.HasField(name))  # type: ignore[arg-type]
    for name in ("window", "open"):
        there = remote.breaker.HasField(name)  # type: ignore[arg-type]
        yield from _wait(f"remote.breaker.{name}", getattr(remote.breaker, name), there)


def _url(url: str) -> Iterator[Fault]:
    try:
        parts = urlsplit(url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        whole = False
    if not whole:
        yield Fault("remote.base_url", f"{url!r} is not of the form https://host/v1")
    elif parts.username or parts.password:
        yield Fault("remote.base_url", "a password must not lie in etcd: put the key in a file, see api_key_file")
    elif parts.query or parts.fragment:
        yield Fault("remote.base_url", f"{url!r}: without anything behind '?' or '#'")
    elif parts.path.rstrip("/").endswith("/completions"):
        yield Fault("remote.base_url", "only what comes before /chat/completions and /completions")


def _triton(triton: registry_pb2.TritonOptions) -> Iterator[Fault]:
    if not triton.endpoint:
        yield Fault("triton.endpoint", "required: host:port of its gRPC server")
    if not triton.model:
        yield Fault("triton.model", "required: the model's name there")
    if triton.flavor == registry_pb2.TRITON_FLAVOR_UNSPECIFIED:
        yield Fault("triton.flavor", f"required: one of {', '.join(registry_pb2.TritonFlavor.keys()[1:])}")
    for name in ("endpoint", "metrics_endpoint"):
        value = getattr(triton, name)
        found = _ENDPOINT.fullmatch(value)
        if value and (found is None or not 0 < int(found[2]) < 65536):
            yield Fault(f"triton.{name}", f"{value!r} is not host:port")


def _trtllm(trtllm: registry_pb2.TrtLlmOptions) -> Iterator[Fault]:
    if not 0 <= trtllm.kv_fraction <= 1:
        yield Fault("trtllm.kv_fraction", f"{trtllm.kv_fraction:g}: a share, more than 0, at most 1")
    if trtllm.backend not in ("", "pytorch", "tensorrt"):
        yield Fault("trtllm.backend", f"{trtllm.backend!r} is not one of pytorch, tensorrt")
    if trtllm.guided_backend not in ("", "xgrammar", "llguidance"):
        yield Fault("trtllm.guided_backend", f"{trtllm.guided_backend!r} is not one of xgrammar, llguidance")


def _vllm(vllm: registry_pb2.VllmOptions) -> Iterator[Fault]:
    if vllm.dtype not in _DTYPES:
        yield Fault("vllm.dtype", f"{vllm.dtype!r} is not one of {', '.join(_DTYPES[1:])}")
    if not 0 <= vllm.memory_fraction <= 1:
        yield Fault("vllm.memory_fraction", f"{vllm.memory_fraction:g}: a share, more than 0, at most 1")


def _wait(path: str, duration: Duration, there: bool) -> Iterator[Fault]:
    seconds = duration.seconds + duration.nanos / 1e9
    if there and not 0 < seconds <= MOST_WAIT_S:
        yield Fault(path, f"{seconds:g}s: more than 0s, at most {MOST_WAIT_S:g}s")
