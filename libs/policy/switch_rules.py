"""What a kill switch must obey. No effects."""

from collections.abc import Iterator, Mapping

from headrace.policy.v1 import policy_pb2
from libs.catalogue.rules import Fault, nearest
from libs.policy import bounds
from libs.policy.features import SWITCHED

KINDS: Mapping[int, str] = {
    policy_pb2.SWITCH_KIND_MODEL: "model",
    policy_pb2.SWITCH_KIND_TENANT: "tenant",
    policy_pb2.SWITCH_KIND_TOOL: "tool",
    policy_pb2.SWITCH_KIND_FEATURE: "feature",
}
"""By their names in keys of etcd."""
MOST_REASON = 500
"""It is told with each refusal, in a trailer."""


def entry(switch: policy_pb2.Switch) -> Iterator[Fault]:
    """What is wrong with a switch that is to be put on. What it names need not exist: it may come before a model."""
    yield from which(switch.kind, switch.name)
    if switch.kind == policy_pb2.SWITCH_KIND_FEATURE and switch.name and switch.name not in SWITCHED:
        known = f"{', '.join(SWITCHED)}{nearest(switch.name[:80], SWITCHED)}"
        yield Fault("name", f"{bounds.shown(switch.name)} is not one of {known}")
    if not switch.reason.strip():
        yield Fault("reason", "is required: it is told to whoever is refused")
    else:
        yield from bounds.text(switch.reason, "reason", most=MOST_REASON)


def which(kind: int, name: str) -> Iterator[Fault]:
    """What keeps this from being the kind and the name of a switch at all."""
    if kind not in KINDS:
        known = ", ".join(policy_pb2.SwitchKind.Name(each) for each in KINDS)  # type: ignore[arg-type]
        yield Fault("kind", f"is required: one of {known}")
    yield from bounds.name(name)
