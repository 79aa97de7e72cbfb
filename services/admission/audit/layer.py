"""Writes down what operators change: a layer around every call, inside that which says who calls."""

import json
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from libs.clock import Clock
from libs.errors import HeadraceError
from libs.rpc.call import CALL
from libs.rpc.context import Context
from libs.rpc.interceptors import Handler, Layer
from services.admission.audit.audit import Audit
from services.admission.audit.entry import OK, Entry

CHANGES = frozenset({
    "ApplyModels", "DeleteModel", "PutSwitch", "DeleteSwitch", "PinPrefix", "UnpinPrefix", "ApplyPolicy",
    "DeletePolicy", "DeleteAudit", "Approve",
})  # fmt: skip
SECRETS = frozenset({"key_sha256"})
"""Fields that are left out."""
MOST_CHANGE = 64 * 1024


def audited(audit: Audit, clock: Clock) -> Layer:
    """The layer. Its caller is known by then: it lies within `identity`."""

    def layer(handler: Handler) -> Handler:
        async def enter(request: Any, context: Context) -> Any:
            call = CALL.get()
            action = call.method.rpartition("/")[2]
            if action not in CHANGES or not isinstance(request, Message):
                return await handler(request, context)
            outcome, reason = OK, ""
            try:
                return await handler(request, context)
            except HeadraceError as error:
                outcome, reason = error.reason, error.message
                raise
            finally:
                audit.record(
                    Entry(
                        time=clock.now(),
                        tenant=call.identity.name,
                        action=action,
                        outcome=outcome,
                        reason=reason,
                        change=_text(request),
                    )
                )

        return enter

    return layer


def _text(request: Message) -> str:
    """The request as JSON, without what is secret."""
    try:
        fields = json_format.MessageToDict(request, preserving_proto_field_name=True)
    except (json_format.SerializeToJsonError, ValueError):  # times out of range, NaN: what is refused in any case
        return "cannot be written as JSON"
    text = json.dumps(_without(fields), ensure_ascii=False)
    return text if len(text) <= MOST_CHANGE else f"{text[:MOST_CHANGE]}…"


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: "left out" if key in SECRETS else _without(each) for key, each in value.items()}
    return [_without(each) for each in value] if isinstance(value, list) else value
