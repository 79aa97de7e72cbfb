"""What to try when the mesh is up: lines that work as they are."""

import json
import shlex

from rich.text import Text

from services.console.mesh import parts
from services.console.mesh.snapshot import MeshSnapshot

QUESTION = "What is the capital of France?"
METHOD = "headrace.inference.v1.InferenceService/Generate"


def hints(snapshot: MeshSnapshot, state_option: str) -> Text:
    """The lines; `state_option` is what the commands need to find this mesh, "" for the default folder."""
    headrace = parts.beside_python("headrace")
    model = snapshot.models[0].name if snapshot.models else "MODEL"
    services = {part.service for part in snapshot.components}
    log = "monolith" if "monolith" in services else "router"
    text = Text.assemble(
        ("\nThe mesh is up.", "bold green"), f"  Clients call {snapshot.target} (gRPC, plaintext)", "\n\n"
    )
    for comment, command in (
        ("ask something", f'{headrace} generate{state_option} "{QUESTION}"'),
        ("the same with grpcurl", grpcurl(snapshot, model)),
        ("where the time of a request went", f"{headrace} trace{state_option} REQUEST_ID"),
        ("how it is, what it says", f"{headrace} status{state_option}; {headrace} logs{state_option} {log}"),
        ("stop it", f"{headrace} down{state_option}"),
    ):
        text.append(f"  # {comment}\n", "bright_black").append(f"  {command}\n")
    return text


def grpcurl(snapshot: MeshSnapshot, model: str) -> str:
    """A line that streams an answer through the door."""
    request = {
        "model": model,
        "chat": {"messages": [{"role": "ROLE_USER", "content": QUESTION}]},
        "sampling": {"temperature": 0, "max_tokens": 32},
    }
    words = [
        parts.beside_python("grpcurl"), "-plaintext",
        "-H", f"authorization: Bearer {snapshot.key or 'KEY'}",
        "-d", json.dumps(request),
        snapshot.target, METHOD,
    ]  # fmt: skip
    return shlex.join(words)
