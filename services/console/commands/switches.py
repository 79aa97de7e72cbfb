"""`headrace switch`."""

import json

from rich.console import Console
from rich.text import Text

from headrace.operations.v1 import operations_pb2 as pb
from headrace.policy.v1 import policy_pb2
from libs.catalogue.rules import nearest
from libs.policy import switch_rules
from services.console.commands.asking import ask, shown, table
from services.console.problem import Problem

_NUMBERS = {name: number for number, name in switch_rules.KINDS.items()}


def on(target: str, key: str, kind: str, name: str, reason: str, console: Console) -> None:
    """Puts a switch on. Raises Problem."""
    switch = policy_pb2.Switch(kind=_number(kind, name), name=name, reason=reason)  # type: ignore[arg-type]
    if faults := list(switch_rules.entry(switch)):
        raise Problem(f"no switch for {kind} {name}", [str(fault) for fault in faults])
    ask(target, key, lambda operations: operations.ask("PutSwitch", pb.PutSwitchRequest(switch=switch)))
    said = f"{kind} {name} is switched off: {reason}"
    console.print(Text.assemble(("■ ", "red"), said), soft_wrap=True)
    console.print(Text(f"`headrace switch off {kind} {name}` lets requests in again", style="bright_black"))


def off(target: str, key: str, kind: str, name: str, console: Console) -> None:
    """Takes a switch off. Raises Problem."""
    request = pb.DeleteSwitchRequest(kind=_number(kind, name), name=name)  # type: ignore[arg-type]
    ask(target, key, lambda operations: operations.ask("DeleteSwitch", request))
    console.print(Text.assemble(("□ ", "green"), f"{kind} {name} is on again"), soft_wrap=True)


def switches(target: str, key: str, as_json: bool, console: Console) -> None:
    """Shows what is switched off. Raises Problem."""
    found = ask(target, key, lambda operations: operations.every("ListSwitches", pb.ListSwitchesRequest(), "switches"))
    if as_json:
        console.print_json(json.dumps(shown(found)))
    elif not found:
        console.print("nothing is switched off")
    else:
        rows = [(switch_rules.KINDS.get(each.kind, "?"), each.name, each.reason, each.set_by) for each in found]
        table(console, ("kind", "name", "reason", "by"), (), rows)


def _number(kind: str, name: str) -> int:
    """Raises Problem."""
    if kind not in _NUMBERS:
        known = f"{', '.join(_NUMBERS)}{nearest(kind, _NUMBERS)}"
        raise Problem(f"{kind!r} is no kind of switch: {known}", advice=f"headrace switch on model {name} --reason …")
    return _NUMBERS[kind]
