"""Texts within policies: regular expressions, key sets."""

import json
import re
from base64 import urlsafe_b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from libs.policy import key_sets, patterns


@pytest.mark.parametrize(
    "pattern",
    [
        "I('m| am) (sorry|unable)", r"^\s*$", r"cannot\b.{0,40}\bhelp", r"[+*(){},]+sorry", r"\(a+\)+", r"[]+]+x",
        r"(?i)as an ai",         r"(sorry )+", r"no{2,}", r"(ab?c){1,3}d", "[^\\]]+x+",
    ],
)  # fmt: skip
def test_a_plain_pattern_is_taken(pattern: str) -> None:
    assert patterns.fault(pattern) == ""
    re.compile(pattern)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("", "empty"),
        ("x" * 501, "501 characters: at most 500"),
        ("(", "not a regular expression: missing )"),
        ("a{99999999999}", "not a regular expression"),
        ("a*", "it matches any text"),
        (".", "it matches any text"),
        ("(a+)+b", "a repetition without bound inside another"),
        ("(a*)*b", "a repetition without bound inside another"),
        ("(a{2,})+b", "a repetition without bound inside another"),
        ("((a+)b?)*c", "a repetition without bound inside another"),
        ("(?:x[)+]+y)+z", "a repetition without bound inside another"),
        (r"(?:\(+a)+z", "a repetition without bound inside another"),
        (r"(a|b)\1", "a reference back"),
        (r"(?P<q>a)(?P=q)", "a reference back"),
    ],
)
def test_a_pattern_that_could_hurt_is_not(pattern: str, said: str) -> None:
    assert patterns.fault(pattern).startswith(said)


@given(st.text("ab(){}[]*+?|\\^,1$.", max_size=30))
def test_any_text_is_judged(text: str) -> None:
    if patterns.fault(text) == "":
        re.compile(text)


def base64url(length: int, first: int = 0xFF) -> str:
    return urlsafe_b64encode(bytes([first]) + bytes(length - 1)).rstrip(b"=").decode()


RSA: dict[str, Any] = {"kty": "RSA", "n": base64url(256), "e": "AQAB", "alg": "PS256", "use": "sig", "kid": "1"}
EC: dict[str, Any] = {"kty": "EC", "crv": "P-256", "x": base64url(32), "y": base64url(32), "kid": "2"}
ED: dict[str, Any] = {"kty": "OKP", "crv": "Ed25519", "x": base64url(32), "alg": "EdDSA", "kid": "3"}


def faults(*keys: Any) -> list[str]:
    return [f"{path}: {said}" for path, said in key_sets.faults(json.dumps({"keys": keys}))]


def test_the_three_kinds_of_keys_are_taken() -> None:
    assert faults(RSA, EC, ED) == []
    assert faults({key: value for key, value in EC.items() if key != "kid"}) == []


@pytest.mark.parametrize(
    ("key", "changed", "said"),
    [
        (RSA, {"kty": "oct"}, "keys[0].kty: 'oct' is not one of RSA, EC, OKP: tokens are signed by a private key"),
        (RSA, {"kty": ["RSA"]}, "keys[0].kty: "),
        (RSA, {"d": "AQAB"}, "keys[0].d: a private or secret key must not lie in etcd"),
        ({"kty": "oct", "k": "secret"}, {}, "keys[0].k: a private or secret key must not lie in etcd"),
        (RSA, {"alg": "RS512"}, "keys[0].alg: 'RS512' is not one of RS256, PS256"),
        (RSA, {"alg": "HS256"}, "keys[0].alg: 'HS256' is not one of RS256, PS256"),
        (RSA, {"alg": "none"}, "keys[0].alg: 'none' is not one of"),
        (EC, {"alg": "RS256"}, "keys[0].alg: 'RS256' is not one of ES256"),
        (RSA, {"use": "enc"}, "keys[0].use: 'enc'"),
        (RSA, {"n": base64url(128)}, "keys[0].n: 1024 bits: from 2048 to 8192"),
        (RSA, {"n": base64url(2048)}, "keys[0].n: 16384 bits: from 2048 to 8192"),
        (RSA, {"n": "!"}, "keys[0].n: 0 bits"),
        (RSA, {"n": None}, "keys[0].n: 0 bits"),
        (RSA, {"e": "AQ"}, "keys[0].e: not the exponent"),
        (RSA, {"e": "Ag"}, "keys[0].e: not the exponent"),
        (EC, {"crv": "P-384"}, "keys[0].crv: 'P-384' is not P-256, the curve of ES256"),
        (EC, {"y": ""}, "keys[0].y: not 32 bytes in base64url"),
        (ED, {"crv": "Ed448"}, "keys[0].crv: 'Ed448' is not Ed25519"),
        (ED, {"x": base64url(31)}, "keys[0].x: not 32 bytes in base64url"),
    ],
)
def test_a_key_that_is_none_of_them_is_not(key: dict[str, Any], changed: dict[str, Any], said: str) -> None:
    assert any(each.startswith(said) for each in faults({**key, **changed}))


def test_a_set_is_one() -> None:
    assert next(key_sets.faults("{"))[1].startswith("not JSON")
    assert [*key_sets.faults("[]")] == [("", 'not a key set: {"keys": [{"kty": …}, …]}')]
    assert [*key_sets.faults('{"keys": []}')] == [("", 'not a key set: {"keys": [{"kty": …}, …]}')]
    assert faults("key") == ["keys[0]: not a key: a key is an object"]
    assert faults(EC, EC) == ["keys[1].kid: '2' is the id of another key already"]
    assert [each.split(":")[0] for each in faults(*({**ED, "kid": ""} for _ in range(2)))] == [
        "keys[0].kid",
        "keys[1].kid",
    ]
    assert faults(*({**ED, "kid": str(i)} for i in range(17))) == ["keys: 17 keys: at most 16"]
    assert [*key_sets.faults(" " * 65_537)] == [("", "65537 characters: at most 65536")]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), lambda x: st.lists(x, max_size=3)))
def test_any_json_is_judged(value: object) -> None:
    for text in (json.dumps(value), json.dumps({"keys": value}), json.dumps({"keys": [{"kty": value, "alg": value}]})):
        assert list(key_sets.faults(text))
    for key in (RSA, EC, ED):
        for name in key:
            list(key_sets.faults(json.dumps({"keys": [{**key, name: value}]})))
