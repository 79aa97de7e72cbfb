"""JSON Web Key Sets (RFC 7517, RFC 7518, RFC 8037) by which tokens are checked. Pure: nothing is computed with them."""

import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Mapping
from typing import Any

MOST_KEYS = 16
MOST_CHARACTERS = 64 * 1024
ALGORITHMS: Mapping[str, tuple[str, ...]] = {"RSA": ("RS256", "PS256"), "EC": ("ES256",), "OKP": ("EdDSA",)}
"""By the type of the key: signatures by a private key. What is signed with a shared secret anybody here could sign."""
CURVES = {"EC": "P-256", "OKP": "Ed25519"}
RSA_BITS = (2048, 8192)
"""NIST SP 800-131A takes no less; more makes each check slow."""
PRIVATE = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_COORDINATE_BYTES = 32


def faults(text: str) -> Iterator[tuple[str, str]]:
    """(path, text): everything that is wrong with a key set; paths as "keys[0].alg", "" for the whole."""
    if len(text) > MOST_CHARACTERS:
        yield "", f"{len(text)} characters: at most {MOST_CHARACTERS}"
        return
    try:
        keys = json.loads(text)["keys"]
    except (ValueError, RecursionError) as error:
        yield "", f"not JSON: {error}"
        return
    except (KeyError, TypeError):
        keys = None
    if not isinstance(keys, list) or not keys:
        yield "", 'not a key set: {"keys": [{"kty": …}, …]}'
        return
    if len(keys) > MOST_KEYS:
        yield "keys", f"{len(keys)} keys: at most {MOST_KEYS}"
    ids: set[str] = set()
    for index, key in enumerate(keys[:MOST_KEYS]):
        where = f"keys[{index}]"
        if not isinstance(key, dict):
            yield where, "not a key: a key is an object"
            continue
        yield from ((f"{where}.{path}" if path else where, said) for path, said in _key(key))
        id_ = str(key.get("kid", ""))
        if len(keys) > 1 and not id_:
            yield f"{where}.kid", "required where there are several keys: tokens say by it which one is theirs"
        elif id_ and id_ in ids:
            yield f"{where}.kid", f"{id_[:80]!r} is the id of another key already"
        ids.add(id_)


def _key(key: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    kind = str(key.get("kty"))
    if private := sorted(PRIVATE.intersection(key)):
        yield private[0], "a private or secret key must not lie in etcd: give its public part, and make a new one"
        return
    if kind not in ALGORITHMS:
        known = ", ".join(ALGORITHMS)
        yield (
            "kty",
            f"{kind[:80]!r} is not one of {known}: tokens are signed by a private key, not by a shared one",
        )
        return
    algorithm = key.get("alg")
    if algorithm is not None and algorithm not in ALGORITHMS[kind]:
        yield (
            "alg",
            f"{str(algorithm)[:80]!r} is not one of {', '.join(ALGORITHMS[kind])}, which a key of {kind} can sign",
        )
    if key.get("use", "sig") != "sig":
        yield "use", f'{str(key["use"])[:80]!r}: a key for signatures has "sig"'
    if kind == "RSA":
        yield from _rsa(key)
        return
    if key.get("crv") != CURVES[kind]:
        yield "crv", f"{str(key.get('crv'))[:80]!r} is not {CURVES[kind]}, the curve of {ALGORITHMS[kind][0]}"
    for name in ("x", "y") if kind == "EC" else ("x",):
        if len(_bytes(key.get(name))) != _COORDINATE_BYTES:
            yield name, f"not {_COORDINATE_BYTES} bytes in base64url"


def _rsa(key: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    bits = int.from_bytes(_bytes(key.get("n"))).bit_length()
    least, most = RSA_BITS
    if not least <= bits <= most:
        yield "n", f"{bits} bits: from {least} to {most}"
    exponent = int.from_bytes(_bytes(key.get("e")))
    if exponent % 2 == 0 or not 3 <= exponent < 1 << 64:
        yield "e", "not the exponent of a public key: AQAB, as a rule"


def _bytes(value: object) -> bytes:
    """Of base64url without padding; b"" for what is none."""
    if not isinstance(value, str) or not _BASE64URL.fullmatch(value) or len(value) % 4 == 1:
        return b""
    return urlsafe_b64decode(value + "=" * (-len(value) % 4))
