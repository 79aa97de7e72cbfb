"""What contracts and tools must obey. No effects."""

from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from headrace.policy.v1 import policy_pb2
from libs.catalogue.rules import Fault
from libs.policy import bounds, schemas

MOST_REPAIRS = 5
MOST_RETRIES = 5
MOST_TOOLS = 64
MOST_STEPS = 100
MOST_TIMEOUT_S = 600.0
MOST_DESCRIPTION = 4096
"""It is part of every prompt that the tool is offered in."""


def contract(contract: policy_pb2.Contract) -> Iterator[Fault]:
    """What is wrong with a contract by itself."""
    yield from bounds.name(contract.name)
    if contract.output_schema.strip():
        yield from schemas.faults(contract.output_schema, "output_schema")
    elif contract.repairs:
        yield Fault("repairs", f"{contract.repairs}, but without output_schema no answer is ever wrong: set one")
    yield from bounds.at_most(contract.repairs, "repairs", MOST_REPAIRS)
    if len(contract.tools) > MOST_TOOLS:
        yield Fault("tools", f"{len(contract.tools)} tools: at most {MOST_TOOLS}")
    seen: set[str] = set()
    for index, tool in enumerate(contract.tools):
        path = f"tools[{index}]"
        if not tool.tool:
            yield Fault(f"{path}.tool", "required")
        elif tool.tool in seen:
            yield Fault(f"{path}.tool", f"{bounds.shown(tool.tool)} is named twice")
        seen.add(tool.tool)
        yield from bounds.duration(tool.timeout, tool.HasField("timeout"), f"{path}.timeout", MOST_TIMEOUT_S)
        yield from bounds.at_most(tool.retries, f"{path}.retries", MOST_RETRIES)
    yield from bounds.at_most(contract.max_steps, "max_steps", MOST_STEPS)
    yield from bounds.once(contract.tenants, "tenants")


def across(contract: policy_pb2.Contract, tools: Mapping[str, policy_pb2.Tool]) -> Iterator[Fault]:
    """What is wrong with a contract in a mesh that has these tools, beyond names that stand for nothing."""
    for index, each in enumerate(contract.tools):
        tool = tools.get(each.tool)
        if each.retries and tool is not None and not tool.idempotent:
            text = f"{each.retries}, but {each.tool!r} is not idempotent: a call that failed may have done its work"
            yield Fault(f"tools[{index}].retries", f"{text}; leave it out, or say `idempotent: true` if it is")


def tool(tool: policy_pb2.Tool) -> Iterator[Fault]:
    """What is wrong with a tool by itself."""
    yield from bounds.name(tool.name)
    yield from bounds.text(tool.description, "description", most=MOST_DESCRIPTION)
    if not tool.arguments_schema.strip():
        yield Fault("arguments_schema", 'required: {"type": "object"} for a tool that takes any, or none')
    else:
        yield from schemas.faults(tool.arguments_schema, "arguments_schema", of_object=True)
    yield from _url(tool.url)
    yield from bounds.duration(tool.timeout, tool.HasField("timeout"), "timeout", MOST_TIMEOUT_S)


def _url(url: str) -> Iterator[Fault]:
    if not url:
        yield Fault("url", "required")
        return
    form = "http://host/path or https://host/path"
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        sound = False
    if not sound or len(url) > bounds.MOST_CHARACTERS or not url.isprintable() or " " in url:
        yield Fault("url", f"{bounds.shown(url.split('@')[-1])} is not of the form {form}")
    elif parts.username or parts.password:
        yield Fault("url", "a password must not lie in etcd: let the tool know the mesh by its address or certificate")
    elif parts.fragment:
        yield Fault("url", f"a call has nothing behind '#': {form}")
