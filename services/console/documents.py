"""YAML as messages: every fault with its line, unknown fields with the nearest known one. Pure.

The field names are those of the proto, or its JSON names; durations are "300s", enum values have their full names.
A file is one or many documents, divided by "---"; JSON is YAML too.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import yaml
from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from libs.catalogue.rules import nearest

MOST_BYTES = 1024 * 1024
"""Of one file; etcd takes values of 1.5 MiB."""
_INTEGERS = frozenset(
    {FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_INT64}
)
_KINDS = {
    FieldDescriptor.TYPE_STRING: "text",
    FieldDescriptor.TYPE_BOOL: "true or false",
    FieldDescriptor.TYPE_DOUBLE: "a number",
}


@dataclass(frozen=True, slots=True)
class LineFault:
    """One thing that is wrong in a file."""

    line: int
    """Counted from 1; 0 where it has none."""
    path: str
    """The field: "scaling.min"; "" for the whole document."""
    text: str

    def __str__(self) -> str:
        return f"{self.path}: {self.text}" if self.path else self.text


@dataclass(slots=True)
class Document:
    """One document of a file."""

    number: int
    """Counted from 1; empty documents count, and are left out."""
    line: int
    """Where it begins."""
    message: Message
    """As far as it could be read."""
    faults: list[LineFault] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    """Where each field is, by path."""

    def line_of(self, path: str) -> int:
        """The line of a field, or of the nearest thing around it."""
        while path and path not in self.lines:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return self.lines.get(path, self.line)


class NotYaml(ValueError):
    """The text is no YAML at all.

    Args:
        line: Where reading ended; counted from 1, 0 where that is not known.
    """

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Dates stay text: no message has a field for them."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if pair[0] != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read(text: str, message_type: Callable[[], Message]) -> list[Document]:
    """Every document of a file. Raises NotYaml."""
    loader = _Loader(text)
    documents: list[Document] = []
    number = 0
    try:
        while loader.check_node():
            number += 1
            node = loader.get_node()
            if node is None or _is_null(node):
                continue
            document = Document(number, _line(node), message_type())
            documents.append(document)
            if isinstance(node, yaml.MappingNode):
                _Reader(loader, document).fill(document.message, node, "")
            else:
                document.faults.append(LineFault(_line(node), "", "not a mapping of fields"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(filter(None, (error.context, error.problem)))
        raise NotYaml(f"not YAML: {said}", mark.line + 1 if mark else 0) from error
    except yaml.YAMLError as error:
        raise NotYaml(f"not YAML: {' '.join(str(error).split())}", 0) from error
    except RecursionError:
        raise NotYaml("not YAML: nested too deeply", 0) from None
    finally:
        loader.dispose()
    return documents


def covers(paths: Collection[str], path: str) -> bool:
    """Whether a path is among the paths, or in something that is, or around it."""
    return any(
        path == each or path.startswith((each + ".", each + "[")) or each.startswith((path + ".", path + "["))
        for each in paths
    )


class _Reader:
    """Fills a message field by field, so that one fault does not hide the next."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self._loader = loader
        self._document = document

    def fill(self, message: Message, node: yaml.MappingNode, prefix: str) -> None:
        """Reads a mapping into a message; `prefix` is the path in front of its fields."""
        known = _fields(message)
        seen: set[str] = set()
        for key_node, value in node.value:
            key = str(getattr(key_node, "value", ""))
            found = known.get(key)
            if found is None:
                names = [each.name for each in message.DESCRIPTOR.fields]
                where = f"{message.DESCRIPTOR.name} has no such field{nearest(_snake(key), names)}"
                self._fault(key_node, prefix + key, where)
                continue
            path = prefix + found.name
            if found.name in seen:
                self._fault(key_node, path, "given twice")
                continue
            seen.add(found.name)
            self._document.lines[path] = _line(key_node)
            if others := sorted(seen.intersection(_alternatives(found))):
                self._fault(key_node, path, f"it stands beside {others[0]!r}: exactly one of them")
                continue
            self._field(message, found, value, path)

    def _field(self, message: Message, found: FieldDescriptor, node: yaml.Node, path: str) -> None:
        if _is_null(node):
            return  # as in JSON: not set
        if _is_message(found) and not found.is_repeated:
            if isinstance(node, yaml.MappingNode):
                getattr(message, found.name).SetInParent()
                self.fill(getattr(message, found.name), node, path + ".")
            else:
                self._fault(node, path, "not a mapping of fields")
        elif found.is_repeated and not _is_map(found) and not isinstance(node, yaml.SequenceNode):
            self._fault(node, path, f"not a list: [{_shown(self._value(node))}]")
        elif found.is_repeated and not _is_map(found):
            for index, item in enumerate(node.value):
                inner = f"{path}[{index}]"
                self._document.lines[inner] = _line(item)
                if _is_message(found) and isinstance(item, yaml.MappingNode):
                    self.fill(getattr(message, found.name).add(), item, inner + ".")
                else:
                    self._leaf(message, found, [self._value(item)], item, inner)
        elif _is_map(found) and isinstance(node, yaml.MappingNode):
            for key_node, item in node.value:
                inner = f"{path}.{key_node.value}"
                self._document.lines[inner] = _line(key_node)
                self._leaf(message, found, {str(key_node.value): self._value(item)}, item, inner)
        else:
            self._leaf(message, found, self._value(node), node, path)

    def _leaf(self, message: Message, found: FieldDescriptor, value: object, node: yaml.Node, path: str) -> None:
        read = type(message)()
        try:
            json_format.ParseDict({found.name: value}, read)
        except (json_format.ParseError, TypeError, ValueError, AttributeError):
            given = value[0] if isinstance(value, list) else value
            if _is_map(found) and isinstance(value, dict):
                given = next(iter(value.values()))
            self._fault(node, path, f"{_shown(given)} is not {_expected(found, given)}")
        else:
            message.MergeFrom(read)  # ParseDict itself would forget the items before this one

    def _value(self, node: yaml.Node) -> Any:
        return self._loader.construct_object(node, deep=True)

    def _fault(self, node: yaml.Node, path: str, text: str) -> None:
        self._document.faults.append(LineFault(_line(node), path, text))


def _fields(message: Message) -> Mapping[str, FieldDescriptor]:
    """By both of their names."""
    fields = cast(Sequence[FieldDescriptor], message.DESCRIPTOR.fields)
    return {**{each.json_name: each for each in fields}, **{each.name: each for each in fields}}


def _alternatives(found: FieldDescriptor) -> list[str]:
    """Fields that stand for the same as this one does; none for most."""
    together = found.containing_oneof
    return [] if together is None else [each.name for each in together.fields if each.name != found.name]


def _is_map(found: FieldDescriptor) -> bool:
    return found.message_type is not None and found.message_type.GetOptions().map_entry


def _is_message(found: FieldDescriptor) -> bool:
    """Of our own: those of google.protobuf have a JSON form of theirs."""
    message = found.message_type
    return message is not None and not _is_map(found) and not message.full_name.startswith("google.protobuf.")


def _expected(found: FieldDescriptor, given: object) -> str:
    if _is_map(found):
        return "a mapping" if not isinstance(given, (bool, int, float)) else 'text: put it into "quotes"'
    if found.enum_type is not None:
        return f"one of {', '.join(_values(found.enum_type))}{_nearest_value(str(given), found.enum_type)}"
    if found.message_type is not None:
        if found.message_type.name == "Duration":
            return "a duration: 300s, 0.5s"
        return "a mapping"
    if found.type in _INTEGERS:
        return "a whole number, 0 or more"
    kind = _KINDS.get(found.type, "of its type")
    return f'{kind}: put it into "quotes"' if kind == "text" else kind


def _values(enum: EnumDescriptor) -> list[str]:
    """But the first, which stands for "not set"."""
    return [value.name for value in enum.values[1:]]


def _nearest_value(given: str, enum: EnumDescriptor) -> str:
    ends = [name for name in _values(enum) if name.endswith("_" + given.upper())]
    return f"; did you mean {ends[0]!r}?" if len(ends) == 1 else nearest(given, [])


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)


def _shown(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _is_null(node: yaml.Node) -> bool:
    return bool(node.tag == "tag:yaml.org,2002:null")


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
