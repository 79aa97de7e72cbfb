"""Does a chat template look into what was said, or only put text around it? Pure.

Read from the template's syntax tree, by a list of what is harmless: whatever is not on it counts as a look. So a
template of which this says that it does not look gives, for the same roles, the same text around the same places.
"""

from jinja2 import nodes

LOOP_ATTRIBUTES = frozenset({"first", "last", "index", "index0", "revindex", "revindex0", "length"})
"""That templates ask `loop` for: a truth or a number each."""
_TYPES = frozenset({"defined", "undefined", "none", "string", "mapping", "sequence", "iterable", "number", "boolean"})
"""Tests that look at what kind of value it is, which is always the same."""
_LETTERS = frozenset({"capitalize", "lower", "title", "trim", "upper"})
"""Filters of a text."""
_GIVEN = frozenset({"messages", "loop"})


class _Looks(Exception):
    """Something that is not known to be harmless."""


def looks_into(tree: nodes.Template) -> bool:
    """Whether the text around what was said may depend on what was said."""
    turns = {loop.target.name for loop in tree.find_all(nodes.For) if isinstance(loop.target, nodes.Name)}
    try:
        _Reader(turns).body(tree.body)
    except _Looks:
        return True
    return False


class _Reader:
    """Reads one template.

    Args:
        turns: Names that stand for a turn of the chat.
    """

    def __init__(self, turns: set[str]) -> None:
        self._turns = turns

    def body(self, statements: list[nodes.Node]) -> None:
        """Raises _Looks."""
        for node in statements:
            match node:
                case nodes.Output():
                    for each in node.nodes:
                        self._said(each)
                case nodes.If():
                    self._harmless(node.test)
                    for inner in (node.body, node.elif_, node.else_):
                        self.body(list(inner))
                case nodes.For(target=nodes.Name(name=turn), iter=nodes.Name(name="messages"), test=None) if (
                    turn not in _GIVEN and not node.recursive
                ):
                    self.body(node.body)
                    self.body(node.else_)
                case nodes.Assign(target=nodes.Name(name=name)) if name not in _GIVEN | self._turns:
                    self._harmless(node.node)
                case nodes.Break() | nodes.Continue():
                    pass
                case _:
                    raise _Looks

    def _harmless(self, *expressions: nodes.Node | None) -> None:
        if self._any(*expressions):
            raise _Looks

    def _any(self, *expressions: nodes.Node | None) -> bool:
        said = [self._said(each) for each in expressions if each is not None]  # of all: each may raise
        return True in said

    def _said(self, node: nodes.Node) -> bool:
        """Whether a value is what was said, perhaps with text around it. Raises _Looks."""
        match node:
            case nodes.TemplateData() | nodes.Const():
                return False
            case nodes.Name(name=name) if name not in _GIVEN | self._turns:
                return False
            case nodes.Getattr(node=base, attr=str(name)) | nodes.Getitem(node=base, arg=nodes.Const(value=str(name))):
                return self._field(base, name)
            case nodes.Add(left=left, right=right):
                return self._any(left, right)
            case nodes.Concat():
                return self._any(*node.nodes)
            case nodes.CondExpr(test=test, expr1=one, expr2=other):
                self._harmless(test)
                return self._any(one, other)
            case nodes.Test(node=value, name=name) if name in _TYPES:
                self._said(value)
                return False
            case nodes.Test(node=value):
                self._harmless(value, *node.args)
            case nodes.Filter(node=nodes.Name(name="messages"), name="length" | "count"):
                return False
            case nodes.Filter(node=nodes.Node() as value, name=name) if name in _LETTERS:
                self._harmless(value, *node.args)
            case nodes.Compare():
                self._harmless(node.expr, *(each.expr for each in node.ops))
            case nodes.Call(node=nodes.Name(name="raise_exception")) if not node.kwargs:
                self._harmless(*node.args)
            case nodes.BinExpr(left=left, right=right):
                self._harmless(left, right)
            case nodes.UnaryExpr(node=value):
                self._harmless(value)
            case nodes.List() | nodes.Tuple():
                self._harmless(*node.items)
            case _:
                raise _Looks
        return False

    def _field(self, base: nodes.Node, name: str) -> bool:
        """What somebody asks of a turn, or of `loop`."""
        match base:
            case nodes.Name(name="loop") if name in LOOP_ATTRIBUTES:
                return False
            case nodes.Name(name=turn) if turn in self._turns:
                pass
            case nodes.Getitem(node=nodes.Name(name="messages"), arg=nodes.Const() | nodes.Neg(node=nodes.Const())):
                pass
            case _:
                raise _Looks
        if hasattr(dict, name):  # a way around the names, as `items`
            raise _Looks
        return name == "content"
