"""Finds out what the go/no-go list is judged by: asks OperationsService, the processes' metrics, the state folder."""

import asyncio
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client.parser import text_string_to_metric_families as parse

from headrace.operations.v1 import operations_pb2 as pb
from libs.client.errors import HeadraceError
from libs.telemetry import names
from services.console.drill import values as drills
from services.console.mesh.plan import HOST
from services.console.mesh.snapshot import MeshSnapshot
from services.console.operations import Operations
from services.console.readiness.facts import TIERS, Facts, Page, Rules

PAGE_S = 3.0
"""For which a metrics page is waited for."""
GATES = ("NOT_ALLOWED", "CREDENTIALS_INVALID", "STAGE_UNAVAILABLE")
"""Errors that are no answer to any question: they go to the caller."""


async def gather(target: str, key: str, snapshot: MeshSnapshot | None, folder: Path) -> Facts:
    """Asks for everything at once. Raises HeadraceError when the mesh does not let the caller ask.

    Args:
        snapshot: Of a mesh on this machine, whose components' metrics can be read; None for another one.
        folder: Where drills leave their results.
    """
    faults: dict[str, str] = {}
    async with Operations(target, key) as operations:
        found = await asyncio.gather(*(_asked(ask(operations), name, faults) for name, ask in _QUESTIONS.items()))
    answers = dict(zip(_QUESTIONS, found, strict=True))
    catalogue = answers.pop("catalogue")
    pages = None
    if snapshot is not None:
        ports = {
            part.name if port == part.metrics_port else f"{part.name}:{port}": port
            for part in snapshot.components
            for port in part.metrics_ports
        }
        pages = await _pages(ports, faults)
    else:
        faults["pages"] = "the metrics of a mesh elsewhere are not read: run this where its state folder is"
    return Facts(
        now=time.time(),
        models=catalogue[0] if catalogue is not None else None,
        statuses=catalogue[1] if catalogue is not None else None,
        pages=pages,
        drills=_drills(folder, faults),
        faults=faults,
        **answers,
    )


async def _rules(operations: Operations) -> Rules:
    return Rules.of(await operations.every("ListPolicies", pb.ListPoliciesRequest(), "objects"))


async def _ladders(operations: Operations) -> list[Any]:
    return list((await operations.ask("ListDegradations", pb.ListDegradationsRequest())).ladders)


async def _breakers(operations: Operations) -> list[Any]:
    return list((await operations.ask("ListBreakers", pb.ListBreakersRequest())).breakers)


async def _audited(operations: Operations) -> bool:
    await operations.ask("ListAudit", pb.ListAuditRequest(page_size=1))
    return True


_QUESTIONS: Mapping[str, Callable[[Operations], Awaitable[Any]]] = {
    "rules": _rules,
    "catalogue": lambda operations: operations.models(),
    "services": lambda operations: operations.every("ListServices", pb.ListServicesRequest(), "services"),
    "executors": lambda operations: operations.every("ListExecutors", pb.ListExecutorsRequest(), "executors"),
    "switches": lambda operations: operations.every("ListSwitches", pb.ListSwitchesRequest(), "switches"),
    "usages": lambda operations: operations.every("ListUsage", pb.ListUsageRequest(), "usages"),
    "ladders": _ladders,
    "breakers": _breakers,
    "audited": _audited,
}


async def _asked(question: Awaitable[Any], name: str, faults: dict[str, str]) -> Any:
    try:
        return await question
    except HeadraceError as error:
        if error.reason in GATES:
            raise
        faults[name] = error.message
        return None


async def _pages(ports: Mapping[str, int], faults: dict[str, str]) -> dict[str, Page]:
    found = await asyncio.gather(*(asyncio.to_thread(_page, port) for port in ports.values()))
    pages = {}
    for name, page in zip(ports, found, strict=True):
        if isinstance(page, str):
            faults[f"metrics of {name}"] = page
        else:
            pages[name] = page
    return pages


def _page(port: int) -> Page | str:
    """What the page says, or why there is none."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=PAGE_S) as response:
            families = list(parse(response.read().decode()))
    except (OSError, ValueError) as error:
        return str(error)
    connected, build = names.PROCESS_ETCD.name, names.PROCESS_BUILD.name
    services = [sample.labels["service"] for family in families if family.name == build for sample in family.samples]
    return Page(
        services[0] if services else "",
        frozenset(family.name.removesuffix("_total") for family in families),
        any(sample.value == 1 for family in families if family.name == connected for sample in family.samples),
    )


def _drills(folder: Path, faults: dict[str, str]) -> dict[str, drills.Result]:
    found = {}
    for tier in TIERS.values():
        path = folder / f"{tier}.json"
        try:
            found[tier] = drills.decode(path.read_bytes())
        except FileNotFoundError:
            continue
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            faults[f"drill of {tier}"] = f"{path}: {error}"
    return found
