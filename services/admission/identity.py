"""Who calls? Pure."""

import hashlib
from collections.abc import Mapping

from libs.errors import CredentialsInvalid, SwitchedOff, Violation
from services.admission.policy import Policy, Tenant

_SCHEME = "bearer "


def authenticate(metadata: Mapping[str, str], policy: Policy) -> Tenant:
    """The tenant whose key came as `authorization: Bearer KEY`.

    Keys are random and long, so a plain SHA-256 cannot be turned back, and looking the hash up leaks nothing
    about the key. Raises CredentialsInvalid, or SwitchedOff when a kill switch covers the tenant.
    """
    header = metadata.get("authorization", "")
    if not header:
        raise CredentialsInvalid("no API key: send metadata 'authorization: Bearer KEY'")
    if not header.lower().startswith(_SCHEME):
        raise CredentialsInvalid("the authorization metadata is not of the form 'Bearer KEY'")
    key = header[len(_SCHEME) :].strip()
    tenant = policy.tenants.get(hashlib.sha256(key.encode()).hexdigest())
    if tenant is None:
        raise CredentialsInvalid("nobody has this API key")
    if (reason := policy.tenants_off.get(tenant.name)) is not None:
        raise SwitchedOff(
            f"tenant {tenant.name} is switched off: {reason}", violations=[Violation(f"tenant/{tenant.name}", reason)]
        )
    return tenant
