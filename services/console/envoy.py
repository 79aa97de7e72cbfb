"""Envoy's configuration, rendered from deploy/envoy/envoy.yaml.j2, which says why it is as it is; and what a running
Envoy says of the processes behind it."""

import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jinja2

ADMIN_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A host and a port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Endpoint":
        """Reads host:port. Raises ValueError."""
        host, colon, port = text.rpartition(":")
        if not colon or not host or not port.isdigit():
            raise ValueError(f"{text!r} is not host:port")
        return cls(host.strip("[]"), int(port))


@dataclass(frozen=True, slots=True)
class Door:
    """The template's variables; it describes them."""

    listen: Endpoint
    admin: Endpoint
    admissions: Sequence[Endpoint]
    collector: Endpoint
    collector_tls: bool = False
    discovery: Literal["STATIC", "STRICT_DNS"] = "STATIC"
    trace_percent: float = 100.0
    tls_dir: str = ""
    mesh_tls_dir: str = ""


def render(template: Path, door: Door) -> str:
    """The configuration as YAML. Raises OSError, and jinja2.TemplateError when the template is at fault."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701  (YAML, and every value is a number or an address)
    )
    fields = {name: getattr(door, name) for name in Door.__slots__}
    return environment.from_string(template.read_text(encoding="utf-8")).render(fields)


def ports_in_use(admin: Endpoint, cluster: str = "admission") -> frozenset[int]:
    """The ports of the cluster's hosts to which Envoy sends requests now. Raises OSError when it does not answer."""
    url = f"http://{admin.host}:{admin.port}/clusters?format=json"
    with urllib.request.urlopen(url, timeout=ADMIN_TIMEOUT_S) as response:
        told = json.load(response)
    return frozenset(
        host["address"]["socket_address"]["port_value"]
        for status in told["cluster_statuses"]
        if status["name"] == cluster
        for host in status.get("host_statuses", ())
        # Flags are there only where they are true; what else is there is the endpoint's own word, "HEALTHY".
        if not any(value is True for value in host.get("health_status", {}).values())
    )
