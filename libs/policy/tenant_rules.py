"""What a tenant, and an issuer of tokens, must obey. No effects."""

import re
from collections.abc import Iterator, Mapping

from google.protobuf.message import Message

from headrace.policy.v1 import policy_pb2
from libs.catalogue.rules import Fault
from libs.policy import bounds, key_sets
from libs.policy.features import ASKED

SHA256 = re.compile(r"[0-9a-f]{64}")
WEIGHTS = (0.001, 1000.0)
MOST_REQUESTS_PER_S = 1e6
MOST_TOKENS_PER_MIN = 10**12
"""Far beyond any mesh, and exact as a float: limits are kept as such."""
MOST_AUDIT_DAYS = 3650
MOST_SUBJECT = 255

_URI = re.compile(r"[a-z][a-z0-9+.-]*:[!-~]{1,2040}")
_DNS = re.compile(r"(?!.{254})([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_FORBIDDEN = re.compile(r'[",;\\]')
"""What x-forwarded-client-cert would have to quote."""
_CLAIM = re.compile(r"[A-Za-z0-9_.:/-]{1,255}")


def entry(tenant: policy_pb2.Tenant) -> Iterator[Fault]:
    """What is wrong with a tenant by itself."""
    yield from bounds.name(tenant.name)
    yield from _identity(tenant)
    least, most = WEIGHTS
    if tenant.weight != 0 and not least <= tenant.weight <= most:
        yield Fault("weight", f"{tenant.weight:g}: a share against those of others, from {least:g} to {most:g}")
    yield from bounds.once(tenant.models, "models")
    yield from bounds.among(tenant.features, ASKED, "features")
    if not 0 <= tenant.requests_per_s <= MOST_REQUESTS_PER_S:
        said = f"{tenant.requests_per_s:g}: a rate, more than 0 and at most {MOST_REQUESTS_PER_S:g}; 0 means no limit"
        yield Fault("requests_per_s", said)
    yield from bounds.at_most(tenant.tokens_per_min, "tokens_per_min", MOST_TOKENS_PER_MIN)
    seen: set[str] = set()
    for index, limit in enumerate(tenant.model_limits):
        path = f"model_limits[{index}]"
        if not limit.model:
            yield Fault(f"{path}.model", "required")
        elif limit.model in seen:
            yield Fault(f"{path}.model", f"{bounds.shown(limit.model)} is named twice")
        elif not limit.max_prompt_tokens and not limit.max_output_tokens:
            yield Fault(path, "limits nothing: set max_prompt_tokens or max_output_tokens")
        seen.add(limit.model)
    yield from bounds.at_most(tenant.audit_days, "audit_days", MOST_AUDIT_DAYS)


def across(tenants: Mapping[str, policy_pb2.Tenant]) -> Iterator[tuple[str, Fault]]:
    """(key, fault): identities that two tenants have."""
    owners: dict[tuple[str, ...], str] = {}
    for key, tenant in tenants.items():
        for identity, path, what in _identities(tenant):
            if owners.setdefault(identity, tenant.name) != tenant.name:
                yield key, Fault(path, f"{owners[identity]!r} has {what} too")


def issuer(issuer: policy_pb2.TokenIssuer) -> Iterator[Fault]:
    """What is wrong with an issuer by itself."""
    yield from bounds.name(issuer.name)
    yield from bounds.text(issuer.issuer, "issuer")
    yield from bounds.text(issuer.audience, "audience")
    if issuer.subject_claim and not _CLAIM.fullmatch(issuer.subject_claim):
        yield Fault("subject_claim", f'{bounds.shown(issuer.subject_claim)} is not the name of a claim, as "sub"')
    if not issuer.key_set.strip():
        yield Fault("key_set", "required: a JSON Web Key Set with the issuer's public keys")
        return
    for path, said in key_sets.faults(issuer.key_set):
        yield Fault("key_set", f"{path}: {said}" if path else said)


def issuers_across(issuers: Mapping[str, policy_pb2.TokenIssuer]) -> Iterator[tuple[str, Fault]]:
    """(key, fault): issuers whose tokens say the same of where they come from."""
    owners: dict[str, str] = {}
    for key, each in issuers.items():
        if each.issuer and owners.setdefault(each.issuer, each.name) != each.name:
            yield key, Fault("issuer", f"{owners[each.issuer]!r} is the issuer {bounds.shown(each.issuer)} already")


def operators(objects: Mapping[str, Message]) -> list[str]:
    """Tenants that may operate the mesh."""
    return [each.name for each in objects.values() if isinstance(each, policy_pb2.Tenant) and each.operator]


def _identity(tenant: policy_pb2.Tenant) -> Iterator[Fault]:
    for index, digest in enumerate(tenant.key_sha256):
        if not SHA256.fullmatch(digest):
            said = f"{digest[:12]!r}… is not a SHA-256 in 64 hexadecimal digits, lower case"
            yield Fault(f"key_sha256[{index}]", said)
    if not (tenant.key_sha256 or tenant.certificate_names or tenant.token_subjects):
        said = "a tenant without a key cannot come in; `headrace keys new NAME` makes one"
        yield Fault("key_sha256", f"{said}, or give it certificate_names or token_subjects")
    yield from bounds.once(tenant.certificate_names, "certificate_names")
    for index, name in enumerate(tenant.certificate_names):
        if name and (_FORBIDDEN.search(name) or not (_URI.fullmatch(name) or _DNS.fullmatch(name))):
            said = "is not the URI (spiffe://…) or DNS name (lower case, no wildcard) of a certificate"
            yield Fault(f"certificate_names[{index}]", f"{bounds.shown(name)} {said}")
    for index, subject in enumerate(tenant.token_subjects):
        if not subject.issuer:
            yield Fault(f"token_subjects[{index}].issuer", "required: the name of an issuer")
        yield from bounds.text(subject.subject, f"token_subjects[{index}].subject", most=MOST_SUBJECT)


def _identities(tenant: policy_pb2.Tenant) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """What tells a tenant from others, where it says so, and what people call it."""
    for index, digest in enumerate(tenant.key_sha256):
        yield ("key", digest), f"key_sha256[{index}]", f"the key {digest[:8]}…"
    for index, name in enumerate(tenant.certificate_names):
        yield ("certificate", name), f"certificate_names[{index}]", f"the certificate name {bounds.shown(name)}"
    for index, each in enumerate(tenant.token_subjects):
        identity = ("subject", each.issuer, each.subject)
        yield identity, f"token_subjects[{index}]", f"the subject {bounds.shown(each.subject)}"
