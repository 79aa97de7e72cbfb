"""The monolith's settings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

from libs import settings
from libs.settings import PREFIX, Process, SettingsInvalid
from services.admission import config as admission
from services.batcher import config as batcher
from services.kvcache import config as kvcache
from services.router import config as router


@dataclass(frozen=True, slots=True)
class Settings:
    """Those of each service. HEADRACE_ROUTER_LISTEN is the router's HEADRACE_LISTEN, and so with every setting of every
    service; what is not set for one is as it is set for all."""

    admission: admission.Settings
    router: router.Settings
    batcher: batcher.Settings
    kvcache: kvcache.Settings


def parse(environ: Mapping[str, str]) -> Settings:
    """Reads the settings of all four.

    Raises SettingsInvalid with every fault at once, each behind the service that lacks it.
    """
    parsed: dict[str, Any] = {}
    faults: list[str] = []
    for service, kind in get_type_hints(Settings).items():
        try:
            parsed[service] = settings.parse(kind, environment_of(service, environ))
        except SettingsInvalid as invalid:
            faults += [f"{service}: {line}" for line in str(invalid).splitlines()]
    faults += _clashes({service: one.process for service, one in parsed.items()})
    if faults:
        raise SettingsInvalid("\n".join(faults))
    return Settings(**parsed)


def _clashes(processes: Mapping[str, Process]) -> Iterator[str]:
    """What is set for all and can only be one's."""
    owners: dict[int, str] = {}
    for service, process in processes.items():
        listens = process.listen.rpartition(":")[2]
        ports = {"LISTEN": int(listens) if listens.isdecimal() else 0, "METRICS_PORT": process.metrics_port}
        for name, port in ports.items():
            if port and owners.setdefault(port, service) != service:
                yield f"{service}: port {port} is {owners[port]}'s already; set {PREFIX}{service.upper()}_{name}"


def environment_of(service: str, environ: Mapping[str, str]) -> Mapping[str, str]:
    """The environment as a service would have it if it were alone."""
    own = f"{PREFIX}{service.upper()}_"
    mine = {PREFIX + name.removeprefix(own): text for name, text in environ.items() if name.startswith(own) and text}
    return {**environ, **mine}
