"""Access tokens under attack. Each test names the attack it makes."""

from __future__ import annotations

import base64
import hmac
import json
from typing import Any
from uuid import UUID

import pytest
from joserfc import jwe
from joserfc.jwk import OctKey, OKPKey

from tbot.auth import tokens
from tbot.auth.scopes import Scope
from tbot.auth.tokens import KeyRing, SigningKey
from tbot.core.errors import IntegrityError, InvalidToken

NOW_S = 1_800_000_000.0
USER, SESSION = UUID(int=1), UUID(int=2)
KEY = SigningKey.from_seed(b"k" * 32, NOW_S - 100, NOW_S + 100, NOW_S + 1000)
OTHER = SigningKey.from_seed(b"o" * 32, NOW_S - 100, NOW_S + 200, NOW_S + 1000)
RING = KeyRing([KEY])
SCOPES = frozenset({Scope.ORDERS_READ, Scope.MARKET_READ})


def issue(ring: KeyRing = RING, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "user_id": USER,
        "session_id": SESSION,
        "scopes": SCOPES,
        "issuer": "tbot",
        "audience": "tbot-api",
        "now_s": NOW_S,
        "ttl_s": 900,
        **changes,
    }
    return tokens.sign_access(ring, **arguments)


def verify(token: str, ring: KeyRing = RING, now_s: float = NOW_S + 1) -> tokens.AccessClaims:
    return tokens.verify_access(ring, token, issuer="tbot", audience="tbot-api", now_s=now_s)


def decoded(segment: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=="))
    return value


def encoded(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


HEADER, CLAIMS = (decoded(part) for part in issue().split(".")[:2])


def forged(
    header: dict[str, Any] | bytes | None = None, claims: dict[str, Any] | bytes | None = None
) -> str:
    """A token with another header or claims, correctly signed with our own key all the same."""
    signed = f"{encoded(HEADER if header is None else header)}.{encoded(CLAIMS if claims is None else claims)}"
    private = KEY.key.private_key
    assert private is not None
    return f"{signed}.{encoded(private.sign(signed.encode()))}"  # type: ignore[union-attr,call-arg]


def refused(token: str, ring: KeyRing = RING, now_s: float = NOW_S + 1) -> str:
    with pytest.raises(InvalidToken) as error:
        verify(token, ring, now_s)
    message = str(error.value)
    assert not token.strip(".") or token[:20] not in message
    return message


def test_a_good_token_says_who_and_what() -> None:
    claims = verify(issue())
    assert (claims.user_id, claims.session_id, claims.scopes) == (USER, SESSION, SCOPES)
    assert claims.expires_at_s - claims.issued_at_s == 900
    assert verify(forged()).token_id == UUID(CLAIMS["jti"])
    assert {"alg": "Ed25519", "typ": "at+jwt", "kid": KEY.kid} == HEADER
    assert set(CLAIMS) == {"iss", "aud", "sub", "sid", "jti", "iat", "nbf", "exp", "scope"}


@pytest.mark.parametrize(
    "alg", ["none", "nOnE", "None", "", "EdDSA", "HS256", None, 7, ["Ed25519"]]
)
def test_attack_1_other_algorithms(alg: Any) -> None:
    refused(forged({**HEADER, "alg": alg}))
    body = f"{encoded({**HEADER, 'alg': alg})}.{encoded(CLAIMS)}"
    refused(body + ".")
    refused(body + ".AA")


def test_attack_2_hmac_with_our_public_key() -> None:
    public = str(KEY.key.as_dict(private=False)["x"])
    pem = KEY.key.as_pem(private=False)
    for secret in (public.encode(), base64.urlsafe_b64decode(public + "="), pem):
        signed = f"{encoded({**HEADER, 'alg': 'HS256'})}.{encoded(CLAIMS)}"
        mac = hmac.digest(secret, signed.encode(), "sha256")
        refused(f"{signed}.{encoded(mac)}")


def test_attack_3_keys_inside_the_token_or_elsewhere() -> None:
    mine = OKPKey.generate_key("Ed25519")
    public = mine.as_dict(private=False)
    for extra in (
        {"jwk": public},
        {"jku": "http://127.0.0.1:1/keys"},
        {"x5u": "http://127.0.0.1:1/cert"},
        {"x5c": ["AA"]},
    ):
        header = {**HEADER, **extra}
        refused(forged(header))
        signed = f"{encoded(header)}.{encoded(CLAIMS)}"
        private = mine.private_key
        assert private is not None
        refused(f"{signed}.{encoded(private.sign(signed.encode()))}")  # type: ignore[union-attr,call-arg]


@pytest.mark.parametrize(
    "kid",
    [
        "../../etc/passwd",
        "' OR 1=1 --",
        "k" * 10_000,
        "k" * 44,
        "",
        None,
        5,
        ["a"],
        {"a": 1},
        "\x00",
        OTHER.kid,
    ],
)
def test_attack_4_key_ids(kid: Any) -> None:
    refused(forged({**HEADER, "kid": kid}))


def test_attack_4_a_known_key_id_with_another_keys_signature() -> None:
    token = issue(KeyRing([OTHER]))
    header = encoded({**HEADER, "kid": KEY.kid})
    refused(".".join([header, *token.split(".")[1:]]))


def test_attack_5_forms_that_are_not_canonical() -> None:
    token = issue()
    header, payload, signature = token.split(".")
    tail = {"A": "B", "Q": "R", "g": "h", "w": "x"}[signature[-1]]
    for bad in (
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f".{payload}.{signature}",
        f"{header}..{signature}",
        token + ".",
        token + ".x",
        token + "=",
        f"{header}=.{payload}.{signature}",
        f"{header}.{payload}.{signature[:-1]}{tail}",  # the same bytes, written differently
        f"{header}.{payload}.{signature[:-4]}",
        token.replace("-", "+").replace("_", "/") if "-" in token or "_" in token else token + " ",
        " " + token,
        token + "\n",
        f"{header}.{payload}.{signature[:10]}\n{signature[10:]}",
        json.dumps({"protected": header, "payload": payload, "signature": signature}),
        "é" * 50,
        "",
        "." * 2,
        "a" * 1_000_000,
    ):
        refused(bad)


@pytest.mark.parametrize(
    "extra",
    [
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"crit": ["exp"]},
        {"crit": []},
        {"zip": "DEF"},
    ],
)
def test_attack_6_critical_and_unencoded(extra: dict[str, Any]) -> None:
    refused(forged({**HEADER, **extra}))


def test_attack_7_encrypted_tokens_are_refused_before_any_work() -> None:
    key = OctKey.import_key("0123456789abcdef")
    encrypted = jwe.encrypt_compact({"alg": "A128KW", "enc": "A128GCM"}, json.dumps(CLAIMS), key)
    refused(encrypted)
    header = encoded({"alg": "PBES2-HS256+A128KW", "enc": "A128GCM", "p2c": 2**31, "p2s": "AA"})
    refused(f"{header}.AA.AA.AA.AA")
    refused(f"{header}.AA.AA")


@pytest.mark.parametrize("typ", ["JWT", "jwt", "rt+jwt", "mfa+jwt", "application/at+jwt", None, 1])
def test_attack_8_other_kinds_of_token(typ: Any) -> None:
    refused(forged({**HEADER, "typ": typ}))


def test_attack_8_a_refresh_token_is_not_an_access_token_and_reverse() -> None:
    refused(tokens.new_refresh())
    assert tokens.refresh_hash(issue()) is None


@pytest.mark.parametrize(
    "change",
    [
        {"iss": "other"},
        {"iss": ["tbot"]},
        {"aud": "other"},
        {"aud": ["tbot-api", "other"]},
        {"exp": int(NOW_S)},
        {"exp": str(int(NOW_S) + 900)},
        {"exp": NOW_S + 900.5},
        {"exp": True},
        {"exp": -1},
        {"exp": 2**80},
        {"nbf": int(NOW_S) + 60},
        {"nbf": None},
        {"iat": int(NOW_S) + 60},
        {"iat": "now"},
        {"iat": int(NOW_S) + 3, "exp": int(NOW_S) + 3},
        {"sub": "ann"},
        {"sub": str(USER).upper().replace("0", "A")},
        {"sub": f"urn:uuid:{USER}"},
        {"sid": 1},
        {"jti": ""},
        {"scope": ["admin"]},
        {"scope": None},
    ],
)
def test_attack_9_wrong_claims(change: dict[str, Any]) -> None:
    refused(forged(claims={**CLAIMS, **change}))


@pytest.mark.parametrize("claim", sorted(CLAIMS))
def test_attack_9_missing_claims(claim: str) -> None:
    refused(forged(claims={name: value for name, value in CLAIMS.items() if name != claim}))


def test_attack_9_expired_to_the_second() -> None:
    token = issue(ttl_s=10)
    verify(token, now_s=NOW_S + 9.999)
    refused(token, now_s=NOW_S + 10)


def test_attack_10_repeated_members_and_edited_claims() -> None:
    twice = json.dumps(CLAIMS)[:-1] + ',"scope":"admin"}'
    refused(forged(claims=twice.encode()))
    refused(forged((json.dumps(HEADER)[:-1] + ',"alg":"Ed25519"}').encode()))
    nested = json.dumps(CLAIMS)[:-1] + ',"x":{"a":1,"a":2}}'
    refused(forged(claims=nested.encode()))
    header, _, signature = issue().split(".")
    refused(f"{header}.{encoded({**CLAIMS, 'scope': 'admin'})}.{signature}")


def test_a_payload_that_is_not_an_object() -> None:
    for payload in (b"[]", b"null", b"1e999", b"NaN", b"{", b"\xff", b"[" * 1500):
        refused(forged(claims=payload))


def test_attack_12_a_retired_key() -> None:
    token = issue()
    verify(token, now_s=NOW_S + 899)
    retired = KeyRing([SigningKey.from_seed(b"k" * 32, 0, NOW_S + 1, NOW_S + 1)])
    assert "retired" in refused(token, retired)
    assert "retired" in refused(token, KeyRing([OTHER]))


def test_the_key_that_signs_longest_signs_and_the_old_one_still_verifies() -> None:
    both = KeyRing([KEY, OTHER])
    assert both.signing(NOW_S) is OTHER
    verify(issue(), both)
    future = SigningKey.from_seed(b"f" * 32, NOW_S + 50, NOW_S + 500, NOW_S + 900)
    assert KeyRing([KEY, future]).signing(NOW_S) is KEY
    with pytest.raises(IntegrityError):
        RING.signing(NOW_S + 100)


def test_public_keys_hold_no_private_half() -> None:
    (key,) = RING.public_keys(NOW_S)
    assert set(key) == {"kty", "crv", "x", "kid", "alg", "use"}
    assert RING.public_keys(NOW_S + 1000) == []


def test_unknown_scopes_grant_nothing() -> None:
    claims = verify(forged(claims={**CLAIMS, "scope": "orders:read future:scope ADMIN"}))
    assert claims.scopes == {Scope.ORDERS_READ}


@pytest.mark.parametrize("token", ["", "tbr_", "tbr_short", "TBR_" + "a" * 43, "tbr_" + "é" * 43])
def test_what_cannot_be_a_refresh_token(token: str) -> None:
    assert tokens.refresh_hash(token) is None
