"""`headrace explain`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from headrace.inference.v1 import inference_pb2
from headrace.operations.v1 import operations_pb2 as pb
from services.console.commands.asking import ask, shown, table


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that is not run."""

    prompt: str
    model: str
    tenant: str = ""
    tier: str | None = None
    max_tokens: int | None = None
    json_schema: str = ""
    contract: str = ""
    requires: Sequence[str] = ()
    tags: Mapping[str, str] = field(default_factory=dict)
    raw: bool = False
    """Without a chat around the prompt."""

    def message(self) -> inference_pb2.GenerateRequest:
        """As it would be sent."""
        request = inference_pb2.GenerateRequest(
            model=self.model, contract=self.contract, requires=self.requires, tags=self.tags
        )
        if self.raw:
            request.prompt = self.prompt
        else:
            request.chat.messages.add(role=inference_pb2.ROLE_USER, content=self.prompt)
        if self.tier is not None:
            tiers = {"interactive": inference_pb2.TIER_INTERACTIVE, "async": inference_pb2.TIER_ASYNC}
            request.tier = tiers[self.tier]
        if self.max_tokens is not None:
            request.sampling.max_tokens = self.max_tokens
        if self.json_schema:
            request.grammar.json_schema = self.json_schema
        return request


def explain(target: str, key: str, asked: Asked, as_json: bool, console: Console) -> None:
    """Shows what every stage would decide. Raises Problem."""
    request = pb.ExplainRequest(request=asked.message(), tenant=asked.tenant)
    decisions = ask(target, key, lambda operations: operations.ask("Explain", request)).decisions
    if as_json:
        console.print_json(json.dumps(shown(decisions)))
        return
    rows = []
    for each in decisions:
        refused = each.choice.startswith(("refuse", "not "))
        rows.append((each.stage, Text(each.choice, style="red" if refused else "green"), Text(each.reason)))
    table(console, ("stage", "would", "because"), (), rows)
