"""Spans of one trace as a tree: who called whom, also where a link is missing."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from libs.telemetry.span import Kind, SpanRecord


@dataclass(slots=True)
class Node:
    """A span and those below it, by start. A node without a span gathers those whose parent is missing."""

    span: SpanRecord | None
    children: list["Node"] = field(default_factory=list)

    @property
    def spans(self) -> Iterator[SpanRecord]:
        """This span and all below it, depth first."""
        if self.span is not None:
            yield self.span
        for child in self.children:
            yield from child.spans


def build(spans: Sequence[SpanRecord]) -> list[Node]:
    """The roots of a trace, every span in exactly one place.

    A root has no parent. If none has none, the caller had a trace of its own, which went elsewhere: then the
    earliest server span is the root. Other spans without their parent, and circles, come last under one node
    without a span.
    """
    ordered = sorted(spans, key=lambda span: (span.start_ns, -span.end_ns))
    nodes = {span.span_id: Node(span) for span in ordered}
    below: dict[str, list[Node]] = defaultdict(list)
    roots: list[Node] = []
    lost: list[Node] = []
    for node in nodes.values():
        assert node.span is not None
        parent = node.span.parent_id
        if not parent:
            roots.append(node)
        elif parent in nodes:
            below[parent].append(node)
        else:
            lost.append(node)
    if not roots:
        entry = next((node for node in lost if node.span is not None and node.span.kind is Kind.SERVER), None)
        if entry is not None:
            lost.remove(entry)
            roots.append(entry)
    seen: set[str] = set()
    for node in (*roots, *lost):
        _attach(node, below, seen)
    for span_id, node in nodes.items():  # what no root leads to goes round in a circle: cut it open
        if span_id not in seen:
            lost.append(node)
            _attach(node, below, seen)
    return [*roots, Node(None, lost)] if lost else roots


def _attach(root: Node, below: dict[str, list[Node]], seen: set[str]) -> None:
    assert root.span is not None
    seen.add(root.span.span_id)
    pending = [root]
    while pending:
        node = pending.pop()
        assert node.span is not None
        node.children = [child for child in below[node.span.span_id] if child.span and child.span.span_id not in seen]
        seen.update(child.span.span_id for child in node.children if child.span)
        pending.extend(node.children)
