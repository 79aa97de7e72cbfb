"""Who calls? Pure.

Of these the first that the call brings counts, and no other is tried when it is not good: a bearer (an API key or a
JSON Web Token), the client certificate that Envoy has verified, the one that this process has verified itself.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from libs.errors import CredentialsInvalid, SwitchedOff, Violation
from services.admission.client_certificate import names_of
from services.admission.json_web_token import Tokens
from services.admission.policy import Policy, Tenant

FORWARDED = "x-forwarded-client-cert"
"""The metadata in which Envoy tells of the certificate that it has verified."""
LONGEST = 16_384
"""Characters of a credential."""
MOST_KEYS = 1024
"""API keys that are remembered."""
_SCHEME = "bearer"


class Identity:
    """Finds out who calls; remembers tokens that were good, and of the policy of now whose keys have come.

    Args:
        trust_certificates: Whether FORWARDED is believed. Right only where nobody but an Envoy that removes what
            clients send under this name can reach this process.
    """

    def __init__(self, trust_certificates: bool = False) -> None:
        self._trust_certificates = trust_certificates
        self._tokens = Tokens()
        self._policy: Policy | None = None
        self._keys: dict[str, Tenant] = {}
        """By the whole header. A session is asked for its tenant with each request."""

    def authenticate(self, metadata: Mapping[str, str], policy: Policy, now: float, peer: Sequence[str] = ()) -> Tenant:
        """The tenant that calls.

        Args:
            metadata: Of the call, in lower case.
            now: Unix seconds.
            peer: Subject alternative names of the certificate with which the caller itself connected by mTLS.

        Raises CredentialsInvalid, which repeats nothing of what came; or SwitchedOff when a kill switch covers the
        tenant.
        """
        forwarded = metadata.get(FORWARDED, "") if self._trust_certificates else ""
        if "authorization" in metadata:
            tenant = self._bearer(metadata["authorization"], policy, now)
        elif forwarded:
            tenant = _certified(names_of(forwarded), policy)
        elif any(name in policy.certificates for name in peer):
            tenant = _certified(peer, policy)
        else:
            raise CredentialsInvalid("no API key: send metadata 'authorization: Bearer KEY'")
        if (reason := policy.tenants_off.get(tenant.name)) is not None:
            raise SwitchedOff(
                f"tenant {tenant.name} is switched off: {reason}",
                violations=[Violation(f"tenant/{tenant.name}", reason)],
            )
        return tenant

    def _bearer(self, header: str, policy: Policy, now: float) -> Tenant:
        """Keys are random and long, so a plain SHA-256 cannot be turned back, and looking the hash up leaks nothing
        about the key."""
        if policy is not self._policy:
            self._policy, self._keys = policy, {}
        if (known := self._keys.get(header)) is not None:
            return known
        scheme, _, credential = header.partition(" ")
        credential = credential.strip(" ")
        # Only what is printable in ASCII, and no blank: nothing that another reader could take for something else.
        sound = header.isascii() and credential.isprintable() and " " not in credential
        if scheme.lower() != _SCHEME or not credential or not sound:
            raise CredentialsInvalid("the authorization metadata is not of the form 'Bearer KEY'")
        if len(credential) > LONGEST:
            raise CredentialsInvalid(f"the credential is longer than {LONGEST} characters")
        tenant = policy.tenants.get(hashlib.sha256(credential.encode()).hexdigest())
        if tenant is not None:
            if len(self._keys) >= MOST_KEYS:
                self._keys.clear()
            self._keys[header] = tenant
            return tenant
        if credential.count(".") != 2:
            raise CredentialsInvalid("nobody has this API key")
        claims = self._tokens.read(credential, policy.issuers, now)
        tenant = policy.subjects.get((claims.issuer.name, claims.subject))
        if tenant is None:
            raise CredentialsInvalid("the token is good, but its subject is no tenant here")
        return tenant


def _certified(names: Iterable[str], policy: Policy) -> Tenant:
    """The tenant of a certificate with these names."""
    found = {tenant.name: tenant for name in names if (tenant := policy.certificates.get(name)) is not None}
    if len(found) != 1:
        which = "several tenants" if found else "no tenant"
        raise CredentialsInvalid(f"the client certificate is that of {which} here")
    return found.popitem()[1]
