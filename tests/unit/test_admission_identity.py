"""Who calls: by key, by token, by certificate; and everything that must not get anybody in."""

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from libs.errors import CredentialsInvalid, SwitchedOff
from services.admission.identity import FORWARDED, Identity
from services.admission.json_web_token import CACHED_S, LEEWAY_S, MOST_CACHED
from services.admission.policy import Policy, Tenant, TokenIssuer

NOW = 1_700_000_000.0
RSA = rsa.generate_private_key(65537, 2048)
OTHER_RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
PUBLIC_PEM = RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def jwk(key: Any, kid: str, **more: str) -> dict[str, Any]:
    if isinstance(key, rsa.RSAPrivateKey):
        made = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        made = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        made = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**made, "kid": kid, **more}


KEY_SET = json.dumps(
    {
        "keys": [
            jwk(RSA, "rsa"), jwk(EC, "ec"), jwk(ED, "ed"), jwk(OTHER_RSA, "sealed", use="enc"),
            {"kty": "oct", "kid": "secret", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2U"}, {"kty": "RSA"}, 7,
        ]
    }
)  # fmt: skip
ISSUER = TokenIssuer("company", "https://id.example", "headrace", KEY_SET)
BY_EMAIL = replace(ISSUER, name="partner", issuer="https://partner.example", subject_claim="email")
TENANTS = {name: Tenant(name) for name in ("keyed", "signed", "mailed", "certified", "other")}
POLICY = Policy(
    tenants={hashlib.sha256(key).hexdigest(): TENANTS["keyed"] for key in (b"secret", b"dotted.key.x")},
    issuers={issuer.issuer: issuer for issuer in (ISSUER, BY_EMAIL)},
    subjects={("company", "service-7"): TENANTS["signed"], ("partner", "x@partner.example"): TENANTS["mailed"]},
    certificates={
        "spiffe://mesh/team": TENANTS["certified"],
        "team.example": TENANTS["certified"],
        "o": TENANTS["other"],
    },
)
CLAIMS = {"iss": ISSUER.issuer, "aud": "headrace", "sub": "service-7", "exp": NOW + 300}


def token(claims: Mapping[str, Any] = CLAIMS, key: Any = RSA, algorithm: str = "RS256", **header: Any) -> str:
    return jwt.encode(dict(claims), key, algorithm, headers={"kid": "rsa", **header})


def part(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def forged(header: Mapping[str, object], claims: Mapping[str, Any] = CLAIMS, secret: bytes | None = None) -> str:
    """A token made by hand; signed with HMAC where there is a secret."""
    head = f"{part(header)}.{part(claims)}"
    mac = b"" if secret is None else hmac.new(secret, head.encode(), "sha256").digest()
    return f"{head}.{base64.urlsafe_b64encode(mac).rstrip(b'=').decode()}"


def bearer(credential: str) -> dict[str, str]:
    return {"authorization": f"Bearer {credential}"}


def who(metadata: Mapping[str, str], *, trust: bool = True, peer: tuple[str, ...] = ()) -> str:
    return Identity(trust).authenticate(metadata, POLICY, NOW, peer).name


# --- whoever is right gets in --------------------------------------------------------------------


@pytest.mark.parametrize("header", ["Bearer secret", "bearer secret", "BEARER  secret ", "Bearer dotted.key.x"])
def test_a_key_names_its_tenant(header: str) -> None:
    assert who({"authorization": header}) == "keyed"


@pytest.mark.parametrize(
    "good",
    [
        token(), token(algorithm="PS256"), token(key=EC, algorithm="ES256", kid="ec"),
        token(key=ED, algorithm="EdDSA", kid="ed"), jwt.encode(CLAIMS, RSA, "RS256"),
        token({**CLAIMS, "aud": ["else", "headrace"]}), token({**CLAIMS, "nbf": NOW, "iat": NOW}),
        token({**CLAIMS, "exp": NOW - LEEWAY_S + 1}), token({**CLAIMS, "nbf": NOW + LEEWAY_S - 1}),
    ],
)  # fmt: skip
def test_a_signed_token_names_its_tenant(good: str) -> None:
    assert who(bearer(good)) == "signed"


def test_the_subject_may_be_in_another_claim() -> None:
    assert who(bearer(token({**CLAIMS, "iss": BY_EMAIL.issuer, "email": "x@partner.example"}))) == "mailed"


@pytest.mark.parametrize(
    "header",
    [
        "By=spiffe://mesh/envoy;Hash=00ff;URI=spiffe://mesh/team",
        'Hash=00ff;Subject="CN=team, OU=\\"a;b\\", O=x";DNS=unknown.example;DNS=team.example',
        "uri=spiffe://mesh/team;dns=team.example", 'URI="spiffe://mesh/team"', "URI=spiffe://mesh/team;",
    ],
)  # fmt: skip
def test_a_certificate_that_envoy_verified_names_its_tenant(header: str) -> None:
    assert who({FORWARDED: header}) == "certified"


def test_a_certificate_of_the_connection_itself_names_its_tenant() -> None:
    assert who({}, peer=("mesh", "team.example")) == "certified"
    assert who(bearer("secret"), peer=("team.example",)) == "keyed", "what was sent for the call comes first"


def test_a_tenant_that_is_switched_off_stays_out_however_it_comes() -> None:
    policy = replace(POLICY, tenants_off=dict.fromkeys(TENANTS, "it paid nothing"))
    for metadata in (bearer("secret"), bearer(token()), {FORWARDED: "DNS=team.example"}):
        with pytest.raises(SwitchedOff, match="it paid nothing"):
            Identity(True).authenticate(metadata, policy, NOW)


# --- nobody else does ----------------------------------------------------------------------------

ATTEMPTS: dict[str, Mapping[str, str]] = {
    "nothing": {},
    "empty header": {"authorization": ""},
    "only a key": {"authorization": "secret"},
    "another scheme": {"authorization": "Basic secret"},
    "no bearer": {"authorization": "Bearer"},
    "empty bearer": {"authorization": "Bearer "},
    "blank bearer": {"authorization": "Bearer      "},
    "wrong case": bearer("Secret"),
    "unknown key": bearer("guess"),
    "hash instead of the key": bearer(hashlib.sha256(b"secret").hexdigest()),
    "a tab between": {"authorization": "Bearer\tsecret"},
    "a no-break space between": {"authorization": "Bearer\u00a0secret"},
    "a no-break space behind": bearer("secret\u00a0"),
    "a zero-width space": bearer("sec\u200bret"),
    "full-width letters": bearer("\uff53\uff45\uff43\uff52\uff45\uff54"),
    "a long s": {"authorization": "Bearer \u017fecret"},
    "a NUL behind": bearer("secret\x00"),
    "a line break": bearer("secret\r\nx: y"),
    "two headers, joined": {"authorization": "Bearer guess, Bearer secret"},
    "two headers, the same": {"authorization": "Bearer secret,Bearer secret"},
    "two keys": bearer("guess secret"),
    "a huge key": bearer("secret" + "a" * 1_000_000),
    "a huge token": bearer("a" * 8000 + "." + "b" * 8000 + ".c"),
    "many dots": bearer("." * 10_000),
    "two dots": bearer(".."),
    "alg none": bearer(forged({"alg": "none", "typ": "JWT"})),
    "alg None": bearer(forged({"alg": "None"})),
    "no alg": bearer(forged({"typ": "JWT", "kid": "rsa"})),
    "alg as a list": bearer(forged({"alg": ["RS256"], "kid": "rsa"})),
    "alg none, signature kept": bearer(f"{part({'alg': 'none'})}.{token().split('.', 1)[1]}"),
    "HS256 with the public key": bearer(forged({"alg": "HS256", "kid": "rsa"}, secret=PUBLIC_PEM)),
    "HS256 with the key set": bearer(forged({"alg": "HS256", "kid": "rsa"}, secret=KEY_SET.encode())),
    "HS256 with the symmetric key of the set": bearer(forged({"alg": "HS256", "kid": "secret"}, secret=b"secret" * 5)),
    "HMAC called RS256": bearer(forged({"alg": "RS256", "kid": "rsa"}, secret=PUBLIC_PEM)),
    "RS512": bearer(token(algorithm="RS512")),
    "no signature": bearer(token().rpartition(".")[0] + "."),
    "another's signature": bearer(token(key=OTHER_RSA)),
    "claims changed": bearer(".".join([token().split(".")[0], part({**CLAIMS, "sub": "x"}), token().split(".")[2]])),
    "the key of another algorithm": bearer(token(kid="ec")),
    "a key that is for encryption": bearer(token(key=OTHER_RSA, kid="sealed")),
    "kid unknown": bearer(token(kid="guess")),
    "kid as a path": bearer(token(kid="../../../../dev/null")),
    "kid as a query": bearer(token(kid="rsa' OR '1'='1")),
    "kid as a number": bearer(forged({"alg": "RS256", "kid": 0})),
    "kid as null, key of its own": bearer(token(key=OTHER_RSA, kid="", jwk=jwk(OTHER_RSA, ""))),
    "a key that came along": bearer(token(key=OTHER_RSA, jwk=jwk(OTHER_RSA, "rsa"))),
    "an address of keys that came along": bearer(token(key=OTHER_RSA, jku="http://127.0.0.1/keys", x5u="file:///keys")),
    "crit": bearer(token(crit=["exp"], exp=NOW)),
    "no issuer": bearer(token({k: v for k, v in CLAIMS.items() if k != "iss"})),
    "another issuer": bearer(token({**CLAIMS, "iss": "https://id.example/"})),
    "issuer as a list": bearer(forged({"alg": "RS256", "kid": "rsa"}, {**CLAIMS, "iss": [ISSUER.issuer]})),
    "no audience": bearer(token({k: v for k, v in CLAIMS.items() if k != "aud"})),
    "wrong audience": bearer(token({**CLAIMS, "aud": "elsewhere"})),
    "audience as a part": bearer(token({**CLAIMS, "aud": "headrace-staging"})),
    "audience in another case": bearer(token({**CLAIMS, "aud": "Headrace"})),
    "no end": bearer(token({k: v for k, v in CLAIMS.items() if k != "exp"})),
    "expired": bearer(token({**CLAIMS, "exp": NOW - LEEWAY_S})),
    "ends never": bearer(token({**CLAIMS, "exp": float("inf")})),
    "ends at no number": bearer(token({**CLAIMS, "exp": float("nan")})),
    "ends as text": bearer(forged({"alg": "RS256", "kid": "rsa"}, {**CLAIMS, "exp": "9999999999"})),
    "ends as truth": bearer(token({**CLAIMS, "exp": True})),
    "not valid yet": bearer(token({**CLAIMS, "nbf": NOW + LEEWAY_S + 1})),
    "from the future": bearer(token({**CLAIMS, "iat": NOW + LEEWAY_S + 1})),
    "another subject": bearer(token({**CLAIMS, "sub": "service-8"})),
    "subject in another case": bearer(token({**CLAIMS, "sub": "Service-7"})),
    "no subject": bearer(token({k: v for k, v in CLAIMS.items() if k != "sub"})),
    "the subject of another issuer": bearer(token({**CLAIMS, "iss": BY_EMAIL.issuer, "email": "service-7"})),
    "subject as a list": bearer(token({**CLAIMS, "iss": BY_EMAIL.issuer, "email": ["x@partner.example"]})),
    "no JSON": bearer("a.b.c"),
    "JSON that nests": bearer(f"{base64.urlsafe_b64encode(b'[' * 3000).decode()}.e30.x"),
    "a token in two lines": bearer(token().replace(".", ".\n", 1)),
    "two certificates": {FORWARDED: "URI=spiffe://mesh/evil,URI=spiffe://mesh/team"},
    "a certificate behind another": {FORWARDED: "By=x;Hash=y,By=spiffe://mesh/envoy;URI=spiffe://mesh/team"},
    "certificates of two tenants": {FORWARDED: "DNS=team.example;DNS=o"},
    "an unknown certificate": {FORWARDED: "URI=spiffe://mesh/tea"},
    "a name within a name": {FORWARDED: "URI=spiffe://mesh/team/evil"},
    "a name within the subject": {FORWARDED: 'Subject="CN=x;URI=spiffe://mesh/team"'},
    "a name within an escape": {FORWARDED: 'Subject="CN=\\";URI=spiffe://mesh/team"'},
    "a subject that does not end": {FORWARDED: 'Subject="CN=x;URI=spiffe://mesh/team'},
    "a certificate without a name": {FORWARDED: "Hash=00ff;Subject=team.example"},
    "a certificate of nothing": {FORWARDED: ";;"},
    "a huge certificate": {FORWARDED: "DNS=team.example;" * 100_000},
    "a wrong key beside a good certificate": {**bearer("guess"), FORWARDED: "DNS=team.example"},
    "an empty key beside a good certificate": {"authorization": "", FORWARDED: "DNS=team.example"},
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nobody_gets_in_by(attempt: str) -> None:
    with pytest.raises(CredentialsInvalid) as raised:
        who(ATTEMPTS[attempt])
    told = raised.value.message
    assert len(told) < 200
    for leak in ("ecret", "spiffe", "team", "service", "company", "example", "certified", "eyJ"):
        assert leak not in told
    assert raised.value.__cause__ is None


def test_a_header_from_outside_is_not_believed() -> None:
    """Unless the setting says that an Envoy in front removes what clients send."""
    with pytest.raises(CredentialsInvalid, match="no API key"):
        who({FORWARDED: "URI=spiffe://mesh/team"}, trust=False)
    with pytest.raises(CredentialsInvalid, match="no API key"):
        who({}, peer=("unknown.example",))


@pytest.mark.parametrize("key_set", ["", "{}", "[]", "no JSON", '{"keys": 7}', '{"keys": [null]}'])
def test_an_issuer_without_keys_signs_nothing(key_set: str) -> None:
    issuers = {ISSUER.issuer: replace(ISSUER, key_set=key_set)}
    with pytest.raises(CredentialsInvalid, match="does not have the key"):
        Identity().authenticate(bearer(token()), replace(POLICY, issuers=issuers), NOW)


@pytest.mark.parametrize("change", [{"audience": ""}, {"issuer": ""}])
def test_an_issuer_without_a_name_or_an_audience_signs_nothing(change: dict[str, str]) -> None:
    issuer = replace(ISSUER, **change)
    signed = token({**CLAIMS, "aud": issuer.audience, "iss": issuer.issuer})
    with pytest.raises(CredentialsInvalid):
        Identity().authenticate(bearer(signed), replace(POLICY, issuers={issuer.issuer: issuer}), NOW)


def test_short_keys_are_not_used() -> None:
    short = rsa.generate_private_key(65537, 1024)
    keys = {"keys": [jwk(short, "rsa")]}
    issuers = {ISSUER.issuer: replace(ISSUER, key_set=json.dumps(keys))}
    with pytest.raises(CredentialsInvalid, match="does not have the key"):
        Identity().authenticate(bearer(token()), replace(POLICY, issuers=issuers), NOW)


# --- what is remembered --------------------------------------------------------------------------


def test_a_token_that_was_good_ends_when_it_ends() -> None:
    identity = Identity()
    good = bearer(token({**CLAIMS, "exp": NOW + 10}))
    assert identity.authenticate(good, POLICY, NOW).name == "signed"
    assert identity.authenticate(good, POLICY, NOW + 9).name == "signed"
    with pytest.raises(CredentialsInvalid, match="expired"):
        identity.authenticate(good, POLICY, NOW + 10 + LEEWAY_S)


def test_a_change_of_policy_counts_at_once() -> None:
    identity, good = Identity(), bearer(token())
    assert identity.authenticate(good, POLICY, NOW).name == "signed"
    with pytest.raises(CredentialsInvalid, match="no tenant here"):
        identity.authenticate(good, replace(POLICY, subjects={}), NOW)
    with pytest.raises(CredentialsInvalid, match="issuer"):
        identity.authenticate(good, replace(POLICY, issuers={}), NOW)
    turned = replace(ISSUER, key_set=json.dumps({"keys": [jwk(OTHER_RSA, "rsa")]}))
    with pytest.raises(CredentialsInvalid, match="signature"):
        identity.authenticate(good, replace(POLICY, issuers={ISSUER.issuer: turned}), NOW)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.admission.json_web_token.MOST_CACHED", 8)
    identity = Identity()
    for number in range(20):
        identity.authenticate(bearer(token({**CLAIMS, "n": number}, key=ED, algorithm="EdDSA", kid="ed")), POLICY, NOW)
    assert len(identity._tokens._good) == 8 < MOST_CACHED
    assert identity.authenticate(bearer(token()), POLICY, NOW + CACHED_S).name == "signed"


def test_a_key_is_remembered_for_as_long_as_the_policy_is_the_same() -> None:
    identity, metadata = Identity(), {"authorization": "Bearer secret"}
    for _ in range(2):
        assert identity.authenticate(metadata, POLICY, NOW) is TENANTS["keyed"]
    off = replace(POLICY, tenants_off={"keyed": "unpaid"})
    with pytest.raises(SwitchedOff):
        identity.authenticate(metadata, off, NOW)
    moved = replace(POLICY, tenants=dict.fromkeys(POLICY.tenants, TENANTS["other"]))
    assert identity.authenticate(metadata, moved, NOW) is TENANTS["other"]
    with pytest.raises(CredentialsInvalid):
        identity.authenticate(metadata, replace(POLICY, tenants={}), NOW)


def test_no_more_keys_are_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.admission.identity.MOST_KEYS", 2)
    identity = Identity()
    for blanks in range(5):
        metadata = {"authorization": "Bearer" + " " * (blanks + 1) + "secret"}
        assert identity.authenticate(metadata, POLICY, NOW) is TENANTS["keyed"]
        assert len(identity._keys) <= 2
