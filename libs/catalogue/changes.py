"""What applying entries to a catalogue would change, and what stands against it. No effects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from headrace.registry.v1 import registry_pb2
from libs.catalogue import rules, version_of
from libs.catalogue.diff import Difference, differences
from libs.catalogue.rules import Fault, Referrers
from libs.errors import Violation

MOST_MODELS = 1000
"""Entries that may be applied at once."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one model."""

    model: str
    kind: Literal["unchanged", "added", "changed", "removed"]
    after: registry_pb2.Model | None
    """None for one that is removed."""
    base: str = ""
    version_before: str = ""
    """Empty for one that is added."""
    version: str = ""
    """Empty for one that is removed."""
    differences: Sequence[Difference] = ()

    @property
    def rolls_out(self) -> bool:
        """Whether a change makes a new version, so that what is loaded is loaded anew."""
        return self.kind == "changed" and self.version != self.version_before


def changes(
    stored: Mapping[str, registry_pb2.Model], wanted: Sequence[registry_pb2.Model], *, prune: bool
) -> list[Change]:
    """One per wanted entry, in order; with `prune`, then one for each that is not wanted, by name."""
    found = [_change(stored.get(model.name), model) for model in wanted]
    if prune:
        names = {model.name for model in wanted}
        found += [removal(stored[name]) for name in sorted(stored.keys() - names)]
    return found


def removal(model: registry_pb2.Model) -> Change:
    """The change that takes a model out."""
    return Change(model.name, "removed", None, model.base, version_of(model))


def violations(
    stored: Mapping[str, registry_pb2.Model],
    wanted: Sequence[registry_pb2.Model],
    referrers: Referrers,
    *,
    prune: bool,
    force: bool,
) -> list[Violation]:
    """Everything that is wrong with the wanted entries, each by itself and in the catalogue that would be.

    What was wrong with the rest of the catalogue before does not count.
    """
    if len(wanted) > MOST_MODELS:
        return [Violation("models", f"{len(wanted)} at once; at most {MOST_MODELS}")]
    found: list[Violation] = []
    positions: dict[str, int] = {}
    for index, model in enumerate(wanted):
        first = positions.setdefault(model.name, index)
        if first != index and model.name:
            found.append(Violation(f"models[{index}].name", f"{model.name!r} is models[{first}] already"))
        found += (_violation(f"models[{index}]", fault) for fault in rules.entry(model))
    after = {} if prune else dict(stored)
    after |= {model.name: model for model in wanted}
    before = {(name, str(fault)) for name, fault in rules.across(stored, referrers.routes)}
    removed = sorted(stored.keys() - after.keys())
    for name, fault in rules.across(after, referrers.routes):
        if name in positions:
            found.append(_violation(f"models[{positions[name]}]", fault))
        elif (name, str(fault)) not in before and after[name].base not in removed:
            found.append(Violation("models", f"{name!r}, which is in the catalogue, would be wrong: {fault}"))
    for name in removed:
        reasons = rules.why_kept(name, after, referrers, force=force)
        found += (Violation("prune", f"{name!r} cannot be taken out: {reason}") for reason in reasons)
    return found


def _change(before: registry_pb2.Model | None, after: registry_pb2.Model) -> Change:
    version = version_of(after)
    if before is None:
        return Change(after.name, "added", after, after.base, "", version, differences(registry_pb2.Model(), after))
    if before == after:
        return Change(after.name, "unchanged", after, after.base, version, version)
    return Change(after.name, "changed", after, after.base, version_of(before), version, differences(before, after))


def _violation(prefix: str, fault: Fault) -> Violation:
    return Violation(f"{prefix}.{fault.path}", fault.text)
