"""Ways to get in without being let in: credentials that look like good ones. See docs/security.md, which lists them."""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

KEY = "headrace-alice-8f3b2c71d05e49aa"
SIGNER = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(65537, 2048)
STRANGER = ed25519.Ed25519PrivateKey.generate()
ISSUER, AUDIENCE, SUBJECT = "https://id.example", "headrace", "service-7"
NAME_OF_CERTIFICATE = "spiffe://mesh/alice"


def _public(key: Any, kid: str) -> dict[str, Any]:
    algorithm: Any = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else OKPAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}


KEY_SET = json.dumps({"keys": [_public(SIGNER, "ed"), _public(RSA, "rsa")]})
PEM = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)

Metadata = tuple[tuple[str, str | bytes], ...]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One way."""

    name: str
    """As the page has it."""
    metadata: Metadata


def token(claims: Mapping[str, Any], key: Any = SIGNER, algorithm: str = "EdDSA", **header: Any) -> str:
    """A signed token."""
    return jwt.encode(dict(claims), key, algorithm, headers={"kid": "ed", **header})


def attempts(now: float) -> Iterator[Attempt]:
    """All of them. The mesh knows KEY, KEY_SET's issuer with its subject, and a certificate's name.

    Args:
        now: Unix seconds.
    """
    yield Attempt("no metadata", ())
    for name, header in _headers().items():
        yield Attempt(name, (("authorization", header),))
    yield Attempt("key in another header", (("x-api-key", KEY), ("api-key", KEY), ("cookie", f"authorization={KEY}")))
    yield Attempt("key in binary metadata", (("authorization-bin", f"Bearer {KEY}".encode()),))
    good, bad = ("authorization", f"Bearer {KEY}"), ("authorization", "Bearer guess")
    yield Attempt("two authorization headers, the good one first", (good, bad))
    yield Attempt("two authorization headers, the good one last", (bad, good))
    yield Attempt("the same authorization header twice", (good, good))
    yield Attempt("name of a tenant in a header", (("x-tenant", "alice"), ("x-headrace-tenant", "alice")))
    yield Attempt("a header of calls between processes", (("headrace-local", "1"),))
    yield Attempt("x-forwarded-for a trusted address", (("x-forwarded-for", "127.0.0.1"), ("x-real-ip", "127.0.0.1")))
    claim = ("x-forwarded-client-cert", f"By=spiffe://envoy;Hash=00;URI={NAME_OF_CERTIFICATE}")
    yield Attempt("forged x-forwarded-client-cert", (claim,))
    yield Attempt("forged x-forwarded-client-cert beside a bad key", (claim, bad))
    for name, made in tokens(now).items():
        yield Attempt(f"token: {name}", (("authorization", f"Bearer {made}"),))


def _headers() -> dict[str, str]:
    encoded = base64.b64encode(f"alice:{KEY}".encode()).decode()
    return {
        "empty authorization": "",
        "empty bearer": "Bearer ",
        "bearer without a key": "Bearer",
        "key without a scheme": KEY,
        "scheme Basic": f"Basic {encoded}",
        "scheme Token": f"Token {KEY}",
        "scheme with a colon": f"Bearer: {KEY}",
        "key cut by one character": f"Bearer {KEY[:-1]}",
        "key without its beginning": f"Bearer {KEY[1:]}",
        "key with one character more": f"Bearer {KEY}0",
        "key in capitals": f"Bearer {KEY.upper()}",
        "key twice": f"Bearer {KEY}{KEY}",
        "key and another one behind a comma": f"Bearer {KEY}, Bearer guess",
        "key and another one behind a blank": f"Bearer {KEY} guess",
        "key in quotes": f'Bearer "{KEY}"',
        "key percent-encoded": "Bearer " + "".join(f"%{ord(c):02x}" for c in KEY),
        "the key's hash, as the policy has it": f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}",
        "pattern": "Bearer *",
        "name of a tenant": "Bearer alice",
        "SQL": "Bearer ' OR '1'='1",
        "a key of 16 KB": f"Bearer {'x' * 7000}",
    }


def tokens(now: float) -> Mapping[str, str]:
    """Tokens that are not good, by what is wrong."""
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "exp": now + 300}
    good = token(claims)
    head, body, mark = good.split(".")
    own: dict[str, Any] = {"jwk": _public(STRANGER, "ed")}
    return {
        "alg none, without a signature": _forged({"alg": "none"}, claims, None),
        "alg None, with the signature of a good one": f"{_part({'alg': 'None', 'kid': 'ed'})}.{body}.{mark}",
        "alg HS256, signed with the public key (PEM)": _forged({"alg": "HS256", "kid": "rsa"}, claims, PEM),
        "alg HS256, signed with the key set": _forged({"alg": "HS256", "kid": "ed"}, claims, KEY_SET.encode()),
        "alg HS256, signed with nothing": _forged({"alg": "HS256"}, claims, b""),
        "alg in another spelling": f"{_part({'alg': 'eddsa', 'kid': 'ed'})}.{body}.{mark}",
        "expired": token({**claims, "exp": now - 60}),
        "not yet valid": token({**claims, "nbf": now + 300}),
        "issued in the future": token({**claims, "iat": now + 300}),
        "without an end": token({name: value for name, value in claims.items() if name != "exp"}),
        "with an end that is no time": token({**claims, "exp": "never"}),
        "for another audience": token({**claims, "aud": "elsewhere"}),
        "without an audience": token({name: value for name, value in claims.items() if name != "aud"}),
        "of an unknown issuer": token({**claims, "iss": "https://evil.example"}),
        "without an issuer": token({name: value for name, value in claims.items() if name != "iss"}),
        "of nobody here": token({**claims, "sub": "service-8"}),
        "without a subject": token({name: value for name, value in claims.items() if name != "sub"}),
        "signed by a stranger": token(claims, STRANGER),
        "signed by a stranger who brings the key (jwk)": token(claims, STRANGER, **own),
        "signed by a stranger, key at an address (jku)": token(claims, STRANGER, jku="https://evil.example/keys"),
        "with an unknown key id": token(claims, kid="../../keys/ed"),
        "with the id of another kind of key": token(claims, kid="rsa"),
        "with an extension that must be understood (crit)": token(claims, crit=["b64"], b64=False),
        "with other claims under the signature": f"{head}.{_part({**claims, 'sub': 'root'})}.{mark}",
        "with a signature cut short": good[:-6],
        "without its signature": f"{head}.{body}.",
        "of two parts": f"{head}.{body}",
        "of three parts that are nothing": "a.b.c",
    }


def _forged(header: Mapping[str, Any], claims: Mapping[str, Any], secret: bytes | None) -> str:
    """By hand, signed with HMAC where there is a secret."""
    head = f"{_part(header)}.{_part(claims)}"
    return f"{head}.{_base64(b'' if secret is None else hmac.new(secret, head.encode(), 'sha256').digest())}"


def _part(value: object) -> str:
    return _base64(json.dumps(value).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
