"""Settings: frozen dataclasses, parsed once, in `main.py`. Nobody else reads the environment.

Each service's `config.py` is a dataclass whose fields are read from `HEADRACE_<FIELD>`; a dataclass inside
it contributes its fields under the same prefix. A variable that is empty counts as not set. All faults are
reported at once.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

PREFIX = "HEADRACE_"
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}

T = TypeVar("T")


class SettingsInvalid(Exception):
    """One or more settings are missing or wrong; the text has a line for each."""


@dataclasses.dataclass(frozen=True, slots=True)
class Etcd:
    """Where etcd is."""

    etcd: tuple[str, ...]
    """HEADRACE_ETCD: host:port of each member, comma-separated."""
    etcd_tls_dir: Path | None = None
    """HEADRACE_ETCD_TLS_DIR: folder with ca.crt, client.crt and client.key; unset means plaintext."""


@dataclasses.dataclass(frozen=True, slots=True)
class Process:
    """What every process of the mesh has."""

    instance: str
    """HEADRACE_INSTANCE: its name among the processes of its service; the same after a restart."""
    listen: str
    """HEADRACE_LISTEN: host:port of its gRPC server; port 0 takes a free one."""
    advertise: str = ""
    """HEADRACE_ADVERTISE: host:port that others reach it at, where that differs from the one it listens on."""
    metrics_port: int = 0
    """HEADRACE_METRICS_PORT: port of the Prometheus endpoint; 0 means none."""
    state_dir: Path = Path(".headrace")
    """HEADRACE_STATE_DIR: traces go to state_dir/traces when no collector is named."""
    otlp_endpoint: str = ""
    """HEADRACE_OTLP_ENDPOINT, or OTEL_EXPORTER_OTLP_ENDPOINT: the OTLP gRPC collector."""
    trace_ratio: float = 1.0
    """HEADRACE_TRACE_RATIO: share of requests that are traced when the caller did not decide."""
    tls_dir: Path | None = None
    """HEADRACE_TLS_DIR: folder with ca.crt, tls.crt and tls.key; set, every connection of the mesh is mTLS."""
    drain_s: float = 10.0
    """HEADRACE_DRAIN_S: seconds that running requests get on SIGTERM."""
    log_level: str = "info"
    """HEADRACE_LOG_LEVEL: debug, info, warning or error."""


def parse(settings: type[T], environ: Mapping[str, str]) -> T:
    """Builds a settings dataclass from the environment.

    Raises SettingsInvalid with every fault at once.
    """
    faults: list[str] = []
    parsed = _parse(settings, environ, faults)
    if faults:
        raise SettingsInvalid("\n".join(faults))
    assert parsed is not None
    return parsed


def _parse(settings: type[T], environ: Mapping[str, str], faults: list[str]) -> T | None:
    hints = typing.get_type_hints(settings)
    values: dict[str, Any] = {}
    before = len(faults)
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        kind = hints[field.name]
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            values[field.name] = _parse(cast(type[Any], kind), environ, faults)
            continue
        variable = PREFIX + field.name.upper()
        text = environ.get(variable, "").strip()
        if not text and field.name == "otlp_endpoint":  # the name that every OpenTelemetry user knows
            text = environ.get("OTEL_EXPORTER_OTLP_ENDPOINT", "").strip()
        if not text:
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                faults.append(f"{variable} is not set")
            continue
        try:
            values[field.name] = _convert(kind, text)
        except ValueError:
            faults.append(f"{variable}={text!r} is not {_describe(kind)}")
    return settings(**values) if len(faults) == before else None


def _convert(kind: Any, text: str) -> Any:
    if isinstance(kind, types.UnionType):  # "X | None"
        kind = next(option for option in typing.get_args(kind) if option is not types.NoneType)
    if typing.get_origin(kind) is tuple:
        parts = tuple(part.strip() for part in text.split(",") if part.strip())
        if not parts:
            raise ValueError(text)
        return parts
    if kind is bool:
        if text.lower() not in _BOOLEANS:
            raise ValueError(text)
        return _BOOLEANS[text.lower()]
    value = kind(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(text)
    return value


def _describe(kind: Any) -> str:
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a list with commas")
