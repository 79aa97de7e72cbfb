"""What the go/no-go list is judged by: the live configuration, what processes say, and the last drills. No effects.

What could not be found out is None, and `faults` says why: such a line is neither go nor no-go.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace.lane.v1 import lane_pb2
from headrace.operations.v1 import operations_pb2
from headrace.policy.v1 import policy_pb2
from headrace.registry.v1 import registry_pb2
from services.console.drill.values import Result

TIERS = {1: "interactive", 2: "async"}


@dataclass(frozen=True, slots=True)
class Rules:
    """The policy that is in force."""

    tenants: Sequence[policy_pb2.Tenant] = ()
    tiers: Mapping[str, policy_pb2.TierPolicy] = field(default_factory=dict)
    """By name."""
    routes: Sequence[policy_pb2.Route] = ()
    breakers: Sequence[policy_pb2.Breaker] = ()

    @classmethod
    def of(cls, objects: Sequence[operations_pb2.PolicyObject]) -> "Rules":
        """From what ListPolicies answers."""
        return cls(
            tenants=[each.tenant for each in objects if each.HasField("tenant")],
            tiers={TIERS[each.tier.tier]: each.tier for each in objects if each.tier.tier in TIERS},
            routes=[each.route for each in objects if each.HasField("route")],
            breakers=[each.breaker for each in objects if each.HasField("breaker")],
        )


@dataclass(frozen=True, slots=True)
class Page:
    """What the metrics page of one service in one process says."""

    service: str

    names: frozenset[str]
    """Of its metrics, whether or not they have samples; those of counters without their "_total"."""
    in_touch: bool
    """Whether it says that it is in touch with etcd."""


@dataclass(frozen=True, slots=True)
class Facts:
    """All of it, as of `now` (Unix seconds)."""

    now: float
    rules: Rules | None = None
    models: Sequence[registry_pb2.Model] | None = None
    statuses: Sequence[operations_pb2.ModelStatus] | None = None
    services: Sequence[registry_pb2.ServiceInstance] | None = None
    executors: Sequence[registry_pb2.Executor] | None = None
    switches: Sequence[policy_pb2.Switch] | None = None
    usages: Sequence[operations_pb2.TenantUsage] | None = None
    ladders: Sequence[operations_pb2.LadderState] | None = None
    breakers: Sequence[lane_pb2.BreakerState] | None = None
    """That routers have, as far as they have seen works lately."""
    audited: bool | None = None
    """Whether the audit log answers."""
    pages: Mapping[str, Page] | None = None
    """By component, or component and port where it has several; None where there is no state folder that names them."""
    drills: Mapping[str, Result] = field(default_factory=dict)
    """The last of each tier."""
    faults: Mapping[str, str] = field(default_factory=dict)
    """Of what could not be found out, by the name of its field here."""
