"""What stands in a key: protojson, so that `etcdctl get` shows it readably. Pure."""

from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

M = TypeVar("M", bound=Message)


class ValueUnreadable(ValueError):
    """A value is not the protojson of the message that its key stands for."""


def encode(message: Message) -> bytes:
    """One line of JSON, with the field names of the proto."""
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None)
    return text.encode()


def decode(value: bytes, message_type: type[M]) -> M:
    """Reads a value; fields and enum values that this version does not know are ignored.

    Raises ValueUnreadable.
    """
    if not value.lstrip().startswith(b"{"):  # protobuf would take an empty list for a message
        raise ValueUnreadable(f"not a {message_type.DESCRIPTOR.full_name}: not a JSON object")
    try:
        return json_format.Parse(value.decode(), message_type(), ignore_unknown_fields=True)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise ValueUnreadable(f"not a {message_type.DESCRIPTOR.full_name}: {error}") from error
