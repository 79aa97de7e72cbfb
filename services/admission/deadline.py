"""By when has a request to be answered? Pure. Times are Unix seconds."""

from services.admission.policy import TierPolicy
from services.admission.request import Request

WAY_BACK_S, WAY_BACK_SHARE = 0.2, 0.1
"""How much earlier than its call a request ends: so many seconds, but no more than this share of what is left."""


def heard(call_deadline: float, now: float) -> float:
    """The deadline of a request whose call has one. At that of the call the caller's own gRPC ends it and gives no
    reason, so the mesh has to have said before where the request stood."""
    return call_deadline - min(WAY_BACK_S, WAY_BACK_SHARE * max(call_deadline - now, 0.0))


def deadline_of(request: Request, rules: TierPolicy, now: float) -> float:
    """The earliest of what the call, the request and the tier say. That of a session is its stream's: it bounds each
    request on it, and says of none how long that may take."""
    latest = now + rules.max_timeout_s
    if request.call_deadline is not None:
        latest = min(latest, request.call_deadline)
    if request.timeout_s:
        return min(latest, now + request.timeout_s)
    own = request.call_deadline is not None and not request.in_session
    return latest if own else min(latest, now + rules.default_timeout_s)
