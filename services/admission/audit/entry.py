"""What the audit log says of a request, or of a change. Pure."""

import msgspec

from libs.errors import HeadraceError
from libs.lane.work import Outcome
from services.admission.generation import Generation
from services.admission.policy import Storage, Tenant
from services.admission.request import Request

MOST_TEXT = 64 * 1024
"""Characters of a prompt, and of an answer, that are kept; the rest is cut off, and the cut marked."""
OK = "ok"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the log; field meanings: operations.AuditEntry."""

    time: float
    """Unix seconds."""
    tenant: str
    action: str
    outcome: str
    request_id: str = ""
    subject: str = ""
    reason: str = ""
    prompt_tokens: int = 0
    output_tokens: int = 0
    prompt: str = ""
    answer: str = ""
    change: str = ""
    instance: str = ""
    """Set when it is written."""
    sequence: int = 0
    """Set when it is written."""


def refused(request: Request, tenant: Tenant, error: HeadraceError, now: float) -> Entry:
    """A request that did not enter. Its text is not kept: nothing was done with it."""
    return Entry(
        time=now,
        tenant=tenant.name,
        action=_action(request),
        outcome=error.reason,
        request_id=request.request_id,
        subject=request.model,
        reason=error.message,
    )


def ended(generation: Generation, tenant: Tenant, outcome: Outcome, storage: Storage, now: float) -> Entry:
    """A request that ran. Its texts are here as they were, unless nothing is to be kept of them."""
    request, work = generation.checked.request, generation.work
    keep = storage is not Storage.NONE
    ok = outcome.error is None or bool(generation.stop)
    return Entry(
        time=now,
        tenant=tenant.name,
        action=_action(request),
        outcome=OK if ok or outcome.error is None else outcome.error.reason,
        request_id=work.request_id,
        subject=request.model,
        reason=generation.reason,
        prompt_tokens=len(work.prompt),
        output_tokens=generation.made,
        prompt=_cut(_said(request)) if keep else "",
        answer=_cut(generation.kept) if keep else "",
    )


def _action(request: Request) -> str:
    return "session" if request.in_session else "generate"


def _said(request: Request) -> str:
    if request.chat is not None:
        return "\n".join(f"{turn.role}: {turn.content}" for turn in request.chat)
    return request.prompt or ""


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[:MOST_TEXT]}… ({len(text) - MOST_TEXT} characters more)"
