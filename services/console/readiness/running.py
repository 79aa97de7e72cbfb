"""Lines of the go/no-go list about what runs: processes, copies, metrics, kill switches. No effects."""

from headrace.policy.v1 import policy_pb2
from libs.telemetry import names
from services.console.drill.values import Check
from services.console.readiness.facts import Facts
from services.console.readiness.line import GO, NO_GO, UNKNOWN, listed, unknown

STAGES = ("admission", "router", "batcher")
"""Of these, one process alone is a single point of failure; executors are counted by model."""
REQUIRED = {
    "": (names.PROCESS_ETCD, names.PROCESS_BUILD),
    "admission": (
        names.ADMISSION_REQUESTS, names.ADMISSION_REFUSALS, names.ADMISSION_TOKENS, names.ADMISSION_RUNNING,
        names.GEN_AI_SERVER_REQUEST_DURATION, names.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
    ),
    "router": (names.ROUTER_WORKS, names.ROUTER_RESUMES, names.ROUTER_LANES),
    "batcher": (names.BATCHER_WORKS, names.BATCHER_WAITING, names.BATCHER_WAIT, names.BATCHER_EXPIRED),
    "kvcache": (names.KVCACHE_LOOKUPS, names.KVCACHE_RESERVED),
    "executor": (names.EXECUTOR_WORKS, names.EXECUTOR_USED_BLOCKS, names.EXECUTOR_PREEMPTIONS),
    "placement": (names.PLACEMENT_LEADING, names.PLACEMENT_UNPLACED),
}  # fmt: skip
"""Metrics without which nobody can tell what is wrong, by service; "" is every service."""


def switches(facts: Facts) -> Check:
    """Kill switches work, and none was forgotten."""
    what = "kill switches work, and none is on"
    if facts.switches is None:
        return unknown(what, facts, "switches")
    if facts.switches:
        on = [f"{_kind(each.kind)} {each.name} ({each.reason})" for each in facts.switches]
        return Check(what, NO_GO, f"on: {listed(on)}", "take off what is not needed: `headrace switch off`")
    if facts.pages is None:
        return Check(
            what, UNKNOWN, "none is on; whether processes would hear of one is not known", facts.faults["pages"]
        )
    deaf = [name for name, page in facts.pages.items() if not page.in_touch]
    if deaf:
        return Check(what, NO_GO, f"not in touch with etcd: {listed(deaf)}", "`headrace status`; see to etcd")
    return Check(what, GO, f"none is on, and {len(facts.pages)} processes are in touch with etcd, where they come from")


def metrics(facts: Facts) -> Check:
    """What is needed to tell what is wrong is there."""
    what = "the metrics that are needed are there"
    if facts.pages is None:
        return unknown(what, facts, "pages")
    silent = [fault for fault in facts.faults if fault.startswith("metrics of ")]
    if silent:
        return Check(what, NO_GO, f"no {listed(silent)}", "`headrace status`, then the log of the component")
    missing = [
        f"{name}: {metric.name}"
        for name, page in sorted(facts.pages.items())
        for metric in (*REQUIRED[""], *REQUIRED.get(page.service, ()))
        if metric.name.removesuffix("_total") not in page.names
    ]
    if missing:
        return Check(what, NO_GO, listed(missing), "these processes are of another version than this command")
    return Check(what, GO, f"{len(facts.pages)} processes have all of {sum(map(len, REQUIRED.values()))} metrics")


def redundancy(facts: Facts) -> Check:
    """No single process's end is noticed."""
    what = "no stage is one process alone"
    if facts.services is None:
        return unknown(what, facts, "services")
    counts = {stage: sum(each.service == stage for each in facts.services) for stage in STAGES}
    alone = [stage for stage, count in counts.items() if count < 2]
    if alone:
        advice = f"start more: `headrace up --{alone[0]}s 2`"
        return Check(what, NO_GO, f"fewer than two of {listed(alone)}", advice)
    return Check(what, GO, ", ".join(f"{count} × {stage}" for stage, count in counts.items()))


def copies(facts: Facts) -> Check:
    """A model outlives an executor."""
    what = "models have more than one copy, as many as are wanted"
    if facts.statuses is None:
        return unknown(what, facts, "catalogue")
    bases = [status for status in facts.statuses if not status.base]
    if not bases:
        return Check(what, NO_GO, "the catalogue is empty", "`headrace apply -f FILE`")
    short = [f"{each.model} ({each.ready} of {each.wanted})" for each in bases if each.ready < each.wanted]
    if short:
        return Check(what, NO_GO, f"copies are missing: {listed(short)}", "`headrace placements` says why")
    alone = [each.model for each in bases if each.ready == 1]
    if alone:
        return Check(what, NO_GO, f"one copy alone: {listed(alone)}", "raise `replicas`, and have executors for them")
    return Check(what, GO, ", ".join(f"{each.model}: {each.ready}" for each in bases))


def _kind(kind: "policy_pb2.SwitchKind.ValueType") -> str:
    return policy_pb2.SwitchKind.Name(kind).removeprefix("SWITCH_KIND_").lower()
