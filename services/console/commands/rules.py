"""`headrace policy list`."""

import json

from rich.console import Console
from rich.text import Text

from headrace.operations.v1 import operations_pb2 as pb
from libs.policy.kinds import OF_FIELD
from services.console.commands.asking import ask, shown, table


def rules(target: str, key: str, kind: str, as_json: bool, console: Console) -> None:
    """Shows the rules that hold. Raises Problem."""
    request = pb.ListPoliciesRequest(kind=kind)
    found = ask(target, key, lambda operations: operations.every("ListPolicies", request, "objects"))
    if as_json:
        console.print_json(json.dumps(shown(found)))
        return
    rows = []
    for each in found:
        field = each.WhichOneof("object")
        if field is None:  # of a newer mesh
            continue
        said = shown([getattr(each, field)])[0]
        name = OF_FIELD[field].name(getattr(each, field))
        said.pop(OF_FIELD[field].name_field, None)
        rows.append((OF_FIELD[field].folder, name, Text(json.dumps(said, ensure_ascii=False))))
    table(console, ("kind", "name", "what it says"), (), rows)
