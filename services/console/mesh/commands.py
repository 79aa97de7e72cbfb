"""The command line of each component."""

import os
import sys

from services.console import envoy
from services.console.envoy import Door, Endpoint
from services.console.mesh import parts
from services.console.mesh.folder import StateFolder
from services.console.mesh.plan import DOORS, ENVOY_ADMIN_OFFSET, HOST, Component, Plan
from services.console.mesh.process import Command

_NOT_INHERITED = ("HEADRACE_ADVERTISE", "HEADRACE_TLS_DIR", "HEADRACE_ETCD_TLS_DIR")
"""Settings of a mesh on several machines: they would not fit this one, which keeps to the loopback address."""


def command(component: Component, plan: Plan, folder: StateFolder) -> Command:
    """How to start a component. Raises PartMissing, OSError, ValueError for a bad collector address."""
    environment: dict[str, str] = {}
    match component.service:
        case "etcd":
            arguments = _etcd(component, folder)
        case "envoy":
            folder.envoy_file.write_text(_envoy_config(component, plan), encoding="utf-8")
            arguments = [str(parts.envoy()), "-c", str(folder.envoy_file), "--disable-hot-restart"]
            arguments += ["--concurrency", "1", "--log-level", "warning"]
        case _:
            # From the state folder, and without it on the path: what lies there is data.
            arguments = [sys.executable, "-P", "-m", f"services.{component.service}.main"]
            environment = {
                **{name: "" for name in _NOT_INHERITED if name in os.environ},
                "PYTHONPATH": os.pathsep.join([str(parts.ROOT), str(parts.ROOT / "protos")]),
                # With eight heaps per core, glibc's own, large requests leave three times as much behind.
                "MALLOC_ARENA_MAX": os.environ.get("MALLOC_ARENA_MAX", "2"),
                **component.settings,
            }
    return Command(arguments, environment, folder.log(component.name), folder.path)


def _etcd(component: Component, folder: StateFolder) -> list[str]:
    client, peer = (f"http://{HOST}:{port}" for port in (component.port, component.port + 1))
    return [
        str(parts.etcd()),
        f"--name={component.name}",
        f"--data-dir={folder.etcd_dir}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={component.name}={peer}",
        "--log-level=warn",
        "--auto-compaction-mode=revision",  # a laptop's mesh writes little, but for weeks
        "--auto-compaction-retention=1000",
        "--snapshot-count=1000",  # and 5,000 entries of its log stay in memory, not 100,000
        "--quota-backend-bytes=268435456",
    ]


def _envoy_config(component: Component, plan: Plan) -> str:
    where, tls = _spans_to(plan)
    door = Door(
        listen=Endpoint(HOST, component.port),
        admin=Endpoint(HOST, component.port + ENVOY_ADMIN_OFFSET),
        admissions=[Endpoint(HOST, part.port) for part in plan.components if part.service in DOORS],
        collector=where,
        collector_tls=tls,
        trace_percent=100 * plan.options.trace_ratio,
    )
    return envoy.render(parts.ENVOY_TEMPLATE, door)


def _spans_to(plan: Plan) -> tuple[Endpoint, bool]:
    if plan.sink_port is not None:
        return Endpoint(HOST, plan.sink_port), False
    from libs.telemetry.otlp_writer import parse_endpoint  # the SDK's exporter: half a second of imports

    address, tls = parse_endpoint(plan.options.otlp_endpoint)
    return Endpoint.parse(address), tls
