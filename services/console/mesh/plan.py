"""Which processes a mesh has, at which ports, with which settings. Pure.

Ports, at the default base of 8400 (`--port P` shifts them all):

  8400        the clients' door: Envoy, or the first admission without it
  8401–8409   admission          8451–8469   executors
  8411–8419   routers            8471, 8472  etcd: clients, peers
  8421–8429   batchers           8481        Envoy's admin page
  8431–8439   kvcache            8482        the supervisor's OTLP sink, for Envoy's spans
  8441–8449   placement          +100        the metrics of each service

A monolith has the ports of the four services in it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from libs.catalogue.engine_rules import ENGINES

Service = Literal["etcd", "kvcache", "placement", "executor", "batcher", "router", "admission", "monolith", "envoy"]

HOST = "127.0.0.1"
BASE_PORT = 8400
METRICS_OFFSET = 100
STAGE_OFFSETS = {
    "admission": (1, 9),
    "router": (11, 9),
    "batcher": (21, 9),
    "kvcache": (31, 9),
    "placement": (41, 9),
    "executor": (51, 19),
}
"""Of each service: the first port behind the base, and how many processes have one."""
ETCD_OFFSET, ENVOY_ADMIN_OFFSET, SINK_OFFSET = 71, 81, 82
START_ORDER: tuple[Service, ...] = (
    "etcd",
    "kvcache",
    "placement",
    "executor",
    "batcher",
    "router",
    "admission",
    "monolith",
    "envoy",
)
STOP_ORDER = ("envoy", "monolith", "admission", "router", "batcher", "executor", "kvcache", "placement", "etcd")
"""From the clients inwards: nothing loses what it leans on before it has ended itself."""
RESTART_ORDER = ("etcd", "kvcache", "placement", "executor", "batcher", "router", "admission", "monolith")
"""Of a rolling restart. Without Envoy, which is the door: streams through it end with it."""
IN_MONOLITH: tuple[Service, ...] = ("admission", "router", "batcher", "kvcache")
"""Services of a monolith, which is a process that holds them all."""
DOORS = ("admission", "monolith")
"""Where Envoy sends requests."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a person can choose."""

    state_dir: Path
    """Absolute: logs, traces, etcd's data and the state file go here."""
    policy_dir: Path
    """Folder of tenants, tiers, routes and models."""
    cache_dir: Path
    """Prepared models."""
    engine: str = "openvino"
    """Of the executors; one of ENGINES, or several with commas: the executors have them in turn."""
    admissions: int = 1
    routers: int = 1
    batchers: int = 1
    executors: int = 1
    kvcaches: int = 1
    monoliths: int = 0
    """Processes that hold one each of these four; with any, there are none of the four apart."""
    placements: int = 1
    envoy: bool = True
    """Whether Envoy stands in front; without it the first admission is the door."""
    port: int = BASE_PORT
    """The clients' door; every other port follows from it."""
    etcd_port: int | None = None
    """etcd's port for clients, where it is not to follow; its peers' is the next one."""
    otlp_endpoint: str = ""
    """The collector of spans; empty: they go to the state folder."""
    trace_ratio: float = 1.0
    """Share of requests that are traced when the caller did not decide."""
    drain_s: float = 10.0
    """Seconds that running requests get when a service stops."""
    notice_s: float = 0.5
    """Seconds for which admission still takes requests before that, so that Envoy notices."""

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines of the executors, in turn."""
        return tuple(name.strip() for name in self.engine.split(","))


class OptionsInvalid(ValueError):
    """The options do not make a mesh; the text has a line per fault."""


@dataclass(frozen=True, slots=True)
class Component:
    """One process of the mesh."""

    name: str
    """Unique: "etcd", "router-1"…; for services it is the instance's name."""
    service: Service
    port: int
    """What its users connect to; its gRPC health is asked here."""
    ports: dict[int, str]
    """Every port it listens on, and what for."""
    settings: dict[str, str] = field(default_factory=dict)
    """Environment variables of a service."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All processes, in the order in which they start."""

    options: Options
    components: tuple[Component, ...]
    target: str
    """host:port of the clients' door."""
    etcd: str
    """host:port of etcd."""
    sink_port: int | None
    """Where the supervisor takes Envoy's spans; None without Envoy, and with a collector."""

    def of(self, service: Service) -> list[Component]:
        """The processes of one service."""
        return [component for component in self.components if component.service == service]

    def ports(self) -> dict[int, str]:
        """Every port of the mesh, and who wants it for what."""
        wanted = {
            port: f"{component.name} ({use})" for component in self.components for port, use in component.ports.items()
        }
        if self.sink_port is not None:
            wanted[self.sink_port] = "supervisor (spans from Envoy)"
        return wanted


def draw(options: Options) -> Plan:
    """The plan for these options. Raises OptionsInvalid."""
    etcd_port = options.etcd_port or options.port + ETCD_OFFSET
    etcd = f"{HOST}:{etcd_port}"
    parts = [Component("etcd", "etcd", etcd_port, {etcd_port: "clients", etcd_port + 1: "peers"})]
    counts: dict[Service, int] = {"placement": options.placements, "executor": options.executors}
    counts |= {"monolith": options.monoliths} if options.monoliths else _apart(options)
    faults = [*_faults(options, counts)]
    if faults:
        raise OptionsInvalid("\n".join(faults))
    for service in START_ORDER:
        if service in counts:
            make = _monolith if service == "monolith" else _process
            parts += [make(options, service, number, etcd) for number in range(1, counts[service] + 1)]
    if options.envoy:
        admin = options.port + ENVOY_ADMIN_OFFSET
        parts.append(Component("envoy", "envoy", options.port, {options.port: "clients", admin: "admin"}))
    plan = Plan(
        options=options,
        components=tuple(parts),
        target=f"{HOST}:{options.port}",
        etcd=etcd,
        sink_port=options.port + SINK_OFFSET if options.envoy and not options.otlp_endpoint else None,
    )
    _check_distinct(plan)
    return plan


def _apart(options: Options) -> dict[Service, int]:
    """How many there are of what a monolith has one each of."""
    return {service: getattr(options, f"{service}s") for service in IN_MONOLITH}


def _process(options: Options, service: Service, number: int, etcd: str) -> Component:
    name, port = f"{service}-{number}", _port(options, service, number)
    settings = _settings(options, name, etcd) | _address(port)
    if service in ("executor", "admission", "router"):
        settings["HEADRACE_CACHE_DIR"] = str(options.cache_dir)
    if service == "admission":
        settings["HEADRACE_NOTICE_S"] = _notice(options)
    if service == "executor":
        settings["HEADRACE_ENGINE"] = options.engines[(number - 1) % len(options.engines)]
    ports = {port: "gRPC", port + METRICS_OFFSET: "metrics"}
    return Component(name, service, port, ports, settings)


def _monolith(options: Options, service: Service, number: int, etcd: str) -> Component:
    name = f"{service}-{number}"
    settings = _settings(options, name, etcd)
    settings |= {"HEADRACE_CACHE_DIR": str(options.cache_dir), "HEADRACE_NOTICE_S": _notice(options)}
    ports: dict[int, str] = {}
    for part in IN_MONOLITH:
        port = _port(options, part, number)
        own = "" if part in DOORS else f"{part}'s "
        ports |= {port: f"{own}gRPC", port + METRICS_OFFSET: f"{own}metrics"}
        settings |= {key.replace("HEADRACE_", f"HEADRACE_{part.upper()}_"): at for key, at in _address(port).items()}
    return Component(name, service, _port(options, "admission", number), ports, settings)


def _port(options: Options, service: str, number: int) -> int:
    if service in DOORS and number == 1 and not options.envoy:
        return options.port
    return options.port + STAGE_OFFSETS[service][0] + number - 1


def _settings(options: Options, name: str, etcd: str) -> dict[str, str]:
    return {"HEADRACE_INSTANCE": name, "HEADRACE_STATE_DIR": str(options.state_dir), "HEADRACE_ETCD": etcd}


def _address(port: int) -> dict[str, str]:
    return {"HEADRACE_LISTEN": f"{HOST}:{port}", "HEADRACE_METRICS_PORT": str(port + METRICS_OFFSET)}


def _notice(options: Options) -> str:
    """Without Envoy nobody stands in front who could notice."""
    return f"{options.notice_s if options.envoy else 0:g}"


def _faults(options: Options, counts: Mapping[Service, int]) -> Iterator[str]:
    if unknown := [name for name in options.engines if name not in ENGINES]:
        yield f"--engine {','.join(unknown)}: there are {', '.join(ENGINES)}"
    if len(options.engines) > options.executors:
        yield f"--engine {options.engine}: {len(options.engines)} engines need as many --executors"
    for service, count in _apart(options).items():
        if options.monoliths and count != 1:
            yield f"--{service}s {count}: --monoliths {options.monoliths} have one each"
    for service, count in counts.items():
        most = STAGE_OFFSETS["admission" if service == "monolith" else service][1]
        if not 1 <= count <= most:
            yield f"--{service}s {count}: from 1 to {most}"
    highest = options.port + max(offset + count for offset, count in STAGE_OFFSETS.values()) + METRICS_OFFSET
    if options.port < 1024 or highest > 65535:
        yield f"--port {options.port}: from 1024 to {options.port + 65535 - highest}"


def _check_distinct(plan: Plan) -> None:
    """An `--etcd-port` of one's own may hit a port that something else has."""
    seen: dict[int, str] = {}
    clashes: list[str] = []
    for component in plan.components:
        for port in component.ports:
            if port in seen:
                clashes.append(f"port {port} would be both {seen[port]}'s and {component.name}'s")
            seen[port] = component.name
    if plan.sink_port in seen:
        clashes.append(f"port {plan.sink_port} would be both {seen[plan.sink_port]}'s and the supervisor's")
    if clashes:
        raise OptionsInvalid("\n".join(clashes))


def in_stop_order(components: Sequence[Component]) -> list[list[Component]]:
    """Groups that stop one after the other; those of one group stop together."""
    groups = [[part for part in components if part.service == service] for service in STOP_ORDER]
    return [group for group in groups if group]


def in_restart_order(names: Sequence[str], services: Mapping[str, str]) -> list[str]:
    """The components that `names` (components or services; none: all that a rolling restart is for) mean, in the order
    in which they are restarted.

    Args:
        services: The service of each component.

    Raises KeyError for a name that is neither.
    """
    wanted: set[str] = set()
    for name in names or RESTART_ORDER:
        found = {part for part, service in services.items() if name in (part, service)}
        if names and not found:
            raise KeyError(name)
        wanted |= found
    order = [*RESTART_ORDER, "envoy"]
    return sorted(wanted, key=lambda part: (order.index(services[part]), part))
