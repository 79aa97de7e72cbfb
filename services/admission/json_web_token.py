"""Signed JSON Web Tokens (RFC 7519), by the rules of RFC 8725, "JSON Web Token Best Current Practices". Pure.

What a token says of itself is believed behind its signature only, but for two things that choose the key: its issuer,
which has to be one of the policy's, and `kid`, which is looked up among that issuer's keys and nowhere else. Keys and
addresses that a token brings along (`jwk`, `jku`, `x5c`, `x5u`) are not looked at.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import Any

import jwt
from jwt.algorithms import get_default_algorithms

from libs.errors import CredentialsInvalid
from services.admission.policy import TokenIssuer

LONGEST = 8192
"""Characters of a token."""
LEEWAY_S = 30.0
"""Between the issuer's clock and ours."""
CACHED_S = 60.0
"""A token that was good is not looked at again for this long, nor beyond its end."""
MOST_CACHED = 4096
"""Of more, those that came first are forgotten."""
LEAST_RSA_BITS = 2048
_KINDS = {"RS256": ("RSA", None), "PS256": ("RSA", None), "ES256": ("EC", "P-256"), "EdDSA": ("OKP", "Ed25519")}
"""The algorithms that are believed, with type and curve of their keys. No key of theirs is both public and secret."""


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token proves."""

    issuer: TokenIssuer
    subject: str
    expires: float
    """Unix seconds."""


class Tokens:
    """Reads tokens; remembers those that were good."""

    def __init__(self) -> None:
        self._good: OrderedDict[bytes, tuple[Claims, float]] = OrderedDict()

    def read(self, token: str, issuers: Mapping[str, TokenIssuer], now: float) -> Claims:
        """What a token proves. An issuer that has changed is asked for its keys anew.

        Args:
            issuers: By what `iss` says.
            now: Unix seconds.

        Raises CredentialsInvalid, which says which rule the token breaks and repeats nothing of it.
        """
        if len(token) > LONGEST:
            raise CredentialsInvalid(f"the token is longer than {LONGEST} characters")
        digest = sha256(token.encode()).digest()
        if (known := self._good.get(digest)) is not None:
            claims, until = known
            if now < until and issuers.get(claims.issuer.issuer) == claims.issuer:
                return claims
            del self._good[digest]
        claims = _read(token, issuers, now)
        if now < claims.expires:
            self._good[digest] = claims, min(claims.expires, now + CACHED_S)
            if len(self._good) > MOST_CACHED:
                self._good.popitem(last=False)
        return claims


def _read(token: str, issuers: Mapping[str, TokenIssuer], now: float) -> Claims:
    try:
        header = jwt.get_unverified_header(token)
        said = jwt.decode(token, options={"verify_signature": False})
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise CredentialsInvalid("the bearer token is no signed JSON Web Token") from None
    algorithm, name = header.get("alg"), said.get("iss")
    if not isinstance(algorithm, str) or algorithm not in _KINDS:
        raise CredentialsInvalid(f"the token is not signed with one of {', '.join(_KINDS)}")
    if "crit" in header:
        raise CredentialsInvalid("the token demands extensions (crit), and none are known")
    issuer = issuers.get(name) if isinstance(name, str) else None
    if issuer is None or not issuer.issuer or not issuer.audience:
        raise CredentialsInvalid("nobody here knows the token's issuer")
    key = _key(issuer.key_set, algorithm, header.get("kid"))
    claims = _verified(token, algorithm, key, issuer)
    expires = _times(claims, now)
    subject = claims.get(issuer.subject_claim)
    if not isinstance(subject, str) or not subject:
        raise CredentialsInvalid(f"the token has no claim {issuer.subject_claim!r} that is a text")
    return Claims(issuer, subject, expires)


def _verified(token: str, algorithm: str, key: Any, issuer: TokenIssuer) -> Mapping[str, Any]:
    options: Any = {
        # The times are compared with a clock that is an argument: `_times`.
        "verify_exp": False, "verify_nbf": False, "verify_iat": False,
        "verify_sub": False, "verify_jti": False, "require": ["exp", "iss", "aud"],
    }  # fmt: skip
    try:
        return jwt.decode(
            token, key, algorithms=[algorithm], audience=issuer.audience, issuer=issuer.issuer, options=options
        )
    except jwt.InvalidSignatureError:
        raise CredentialsInvalid("the token's signature is not that of its issuer") from None
    except jwt.InvalidAudienceError:
        raise CredentialsInvalid("the token is for another audience") from None
    except jwt.MissingRequiredClaimError as error:
        raise CredentialsInvalid(f"the token has no claim {error.claim!r}") from None
    except (jwt.PyJWTError, ValueError, TypeError):
        raise CredentialsInvalid("the token is not valid") from None


def _times(claims: Mapping[str, Any], now: float) -> float:
    """When it ends. Raises CredentialsInvalid unless it holds now."""
    for name in ("exp", "nbf", "iat"):
        # Written so that NaN and Infinity, which Python's JSON knows, are refused.
        if name in claims and not (type(claims[name]) in (int, float) and -1e12 < claims[name] < 1e12):
            raise CredentialsInvalid(f"the token's {name} is no time")
    if claims["exp"] <= now - LEEWAY_S:
        raise CredentialsInvalid("the token has expired")
    if claims.get("nbf", now) > now + LEEWAY_S:
        raise CredentialsInvalid("the token is not valid yet")
    if claims.get("iat", now) > now + LEEWAY_S:
        raise CredentialsInvalid("the token was issued in the future")
    return float(claims["exp"])


def _key(key_set: str, algorithm: str, kid: object) -> Any:
    """The issuer's key for a token: the one named, or the only one of its kind where none is."""
    fitting = [(name, key) for name, for_, key in _keys(key_set) if for_ == algorithm]
    if kid is not None:
        fitting = [(name, key) for name, key in fitting if name == kid]
    if len(fitting) != 1:
        which = "the key that it names" if kid is not None else "exactly one key for tokens that name none"
        raise CredentialsInvalid(f"the token's issuer does not have {which}, for {algorithm}")
    return fitting[0][1]


@lru_cache(maxsize=64)
def _keys(key_set: str) -> tuple[tuple[str, str, Any], ...]:
    """Each usable key of a JSON Web Key Set (RFC 7517), once for each algorithm that it is for: name, algorithm, key.
    What cannot be used is left out; an unreadable set has no keys."""
    try:
        listed = json.loads(key_set)["keys"]
        keys = [each for each in listed if isinstance(each, dict)]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()
    found = []
    for key in keys:
        for algorithm, (kind, curve) in _KINDS.items():
            fits = key.get("kty") == kind and (curve is None or key.get("crv") == curve)
            if fits and key.get("alg", algorithm) == algorithm and key.get("use", "sig") == "sig":
                made = _made({each: value for each, value in key.items() if each != "d"}, algorithm)
                if made is not None:
                    found.append((str(key.get("kid", "")), algorithm, made))
    return tuple(found)


def _made(key: Mapping[str, Any], algorithm: str) -> Any:
    try:
        made = get_default_algorithms()[algorithm].from_jwk(dict(key))
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        return None
    return None if getattr(made, "key_size", LEAST_RSA_BITS) < LEAST_RSA_BITS and key["kty"] == "RSA" else made
