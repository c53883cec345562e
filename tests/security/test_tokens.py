"""Attacks 1–13: access tokens that are forged, altered, of another kind, or good for less."""

from __future__ import annotations

import base64
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from joserfc import jwe
from joserfc.jwk import OctKey, OKPKey

from tbot.auth import tokens
from tbot.auth.tokens import SigningKey

pytestmark = pytest.mark.asyncio(loop_scope="session")


def encoded(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(segment: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(base64.urlsafe_b64decode(segment + "=="))
    return value


@dataclass
class Forge:
    """A good token, what it is made of, and the key that signed it."""

    world: Any
    client: Any
    token: str
    key: SigningKey

    @property
    def header(self) -> dict[str, Any]:
        return decoded(self.token.split(".")[0])

    @property
    def claims(self) -> dict[str, Any]:
        return decoded(self.token.split(".")[1])

    def signed(self, header: Any = None, claims: Any = None, key: Any = None) -> str:
        """A token with another header or claims, correctly signed all the same."""
        header = self.header if header is None else header
        claims = self.claims if claims is None else claims
        text = f"{encoded(header)}.{encoded(claims)}"
        private = (key or self.key.key).private_key
        return f"{text}.{encoded(private.sign(text.encode()))}"

    async def refused(self, token: str) -> None:
        """401 `invalid_token` with a challenge, which repeats nothing of the token."""
        headers = {"Authorization": b"Bearer " + token.encode("utf-8")}
        answer = await self.client.get("/v1/me", headers=headers)
        assert answer.status_code == 401, (token[:80], answer.text)
        assert answer.json()["code"] == "invalid_token"
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
        assert token[:30] not in answer.text + answer.headers["www-authenticate"]

    async def works(self) -> bool:
        """Whether the good token is good: what is refused is refused for its own sake."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return (await self.client.get("/v1/me", headers=headers)).status_code == 200


@pytest_asyncio.fixture(loop_scope="session")
async def forge(world: Any) -> Forge:
    person = await world.person()
    key = world.site.auth.keys.ring.signing(time.time())
    made = Forge(world, world.client(), person.token, key)
    again = made.signed()
    assert decoded(again.split(".")[1]) == made.claims
    answer = await made.client.get("/v1/me", headers={"Authorization": f"Bearer {again}"})
    assert answer.status_code == 200, "the forge itself makes good tokens"
    return made


async def test_a01_other_algorithms(forge: Forge) -> None:
    for alg in ("none", "nOnE", "None", "", "EdDSA", "HS256", "RS256", "ES256", None, ["Ed25519"]):
        header = {**forge.header, "alg": alg}
        await forge.refused(forge.signed(header))
        unsigned = f"{encoded(header)}.{encoded(forge.claims)}"
        await forge.refused(unsigned + ".")
        await forge.refused(unsigned + "." + forge.token.split(".")[2])
    assert await forge.works()


async def test_a02_hmac_with_our_public_key(forge: Forge) -> None:
    (published,) = [
        key
        for key in (await forge.client.get("/.well-known/jwks.json")).json()["keys"]
        if key["kid"] == forge.key.kid
    ]
    assert "d" not in published, "the public half alone"
    raw = base64.urlsafe_b64decode(published["x"] + "==")
    pem = forge.key.key.as_pem(private=False)
    for secret in (published["x"].encode(), raw, pem, pem.strip(), json.dumps(published).encode()):
        for alg in ("HS256", "Ed25519"):
            text = f"{encoded({**forge.header, 'alg': alg})}.{encoded(forge.claims)}"
            await forge.refused(f"{text}.{encoded(hmac.digest(secret, text.encode(), 'sha256'))}")


async def test_a03_keys_in_the_token_are_not_used_and_nothing_is_fetched(forge: Forge) -> None:
    import asyncio

    asked: list[str] = []

    async def listen(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append("somebody came")
        writer.close()

    trap = await asyncio.start_server(listen, "127.0.0.1", 0)
    port = trap.sockets[0].getsockname()[1]
    mine = OKPKey.generate_key("Ed25519")
    url = f"http://127.0.0.1:{port}/keys"
    for extra in (
        {"jwk": mine.as_dict(private=False)},
        {"jku": url},
        {"x5u": url},
        {"x5c": ["AA"]},
        {"jwk": mine.as_dict(private=False), "kid": mine.thumbprint()},
        {"jku": url, "kid": url},
    ):
        header = {**forge.header, **extra}
        await forge.refused(forge.signed(header))
        await forge.refused(forge.signed(header, key=mine))
    await forge.refused(forge.signed({**forge.header, "kid": mine.thumbprint()}, key=mine))
    trap.close()
    await trap.wait_closed()
    assert asked == []


async def test_a04_key_ids(forge: Forge) -> None:
    for kid in (
        "../../../../etc/passwd",
        "/dev/null",
        "' OR 1=1 --",
        "'; DROP TABLE signing_keys; --",
        "k" * 10_000,
        "k" * 44,
        "",
        "\x00",
        None,
        5,
        ["a"],
        {"a": 1},
        "unknown-but-well-formed",
    ):
        await forge.refused(forge.signed({**forge.header, "kid": kid}))
    without = {name: value for name, value in forge.header.items() if name != "kid"}
    await forge.refused(forge.signed(without))
    assert await forge.works()


async def test_a05_other_forms(forge: Forge) -> None:
    header, payload, signature = forge.token.split(".")
    tail = {"A": "B", "Q": "R", "g": "h", "w": "x"}[signature[-1]]
    for bad in (
        f"{header}.{payload}.",
        f"{header}.{payload}",
        f".{payload}.{signature}",
        f"{header}..{signature}",
        f"{forge.token}.",
        f"{forge.token}.x",
        f"{forge.token}=",
        f"{header}=.{payload}.{signature}",
        f"{header}.{payload}=.{signature}",
        f"{header}.{payload}.{signature[:-1]}{tail}",  # the same bytes, written differently
        f"{header}.{payload}.{signature[:-4]}",
        f"{header}.{payload}.{signature[:10]} {signature[10:]}",
        f"{header}.{payload}.{encoded(bytes(64))}",
        json.dumps({"protected": header, "payload": payload, "signature": signature}),
        json.dumps(
            {"payload": payload, "signatures": [{"protected": header, "signature": signature}]}
        ),
        "é" * 50,
        "a" * 5000,
        "..",
    ):
        await forge.refused(bad)
    assert await forge.works()


async def test_a06_critical_extensions_and_unencoded_payloads(forge: Forge) -> None:
    for extra in (
        {"crit": ["b64"], "b64": False},
        {"b64": False},
        {"crit": ["exp"]},
        {"crit": ["http://example.com/unknown"], "http://example.com/unknown": 1},
        {"crit": []},
        {"cty": "JWT"},
    ):
        await forge.refused(forge.signed({**forge.header, **extra}))


async def test_a07_encrypted_tokens_are_refused_before_any_work(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    work: list[str] = []
    monkeypatch.setattr(
        vars(tokens)["jws"], "deserialize_compact", lambda *_, **__: work.append("jws")
    )
    key = OctKey.import_key("0123456789abcdef")
    protected = {"alg": "A128KW", "enc": "A128GCM", "zip": "DEF"}
    bomb = jwe.encrypt_compact(protected, b"A" * 200_000, key)
    huge = encoded({"alg": "PBES2-HS256+A128KW", "enc": "A128GCM", "p2c": 2**31 - 1, "p2s": "AA"})
    for token in (bomb, f"{huge}.AA.AA.AA.AA", f"{huge}.AA.AA", f"{huge}.{'A' * 1000}.AA.AA.AA"):
        await forge.refused(token)
    assert work == [], "neither decrypted, nor inflated, nor derived, nor verified"


async def test_a08_tokens_of_another_kind(forge: Forge, problem: Any) -> None:
    for typ in ("JWT", "jwt", "rt+jwt", "mfa+jwt", "application/at+jwt", "AT+JWT", None, 1):
        await forge.refused(forge.signed({**forge.header, "typ": typ}))
    without = {name: value for name, value in forge.header.items() if name != "typ"}
    await forge.refused(forge.signed(without))
    person = await forge.world.person()
    for other in (
        person.grant.refresh_token,
        tokens.new_mfa(),
        "tbt_" + "A" * 43,
        "tbk_" + "A" * 43,
    ):
        await forge.refused(other)
    # And the reverse: what opens the API refreshes nothing, and finishes no login.
    body = {"refresh_token": person.token}
    answer = await forge.client.post("/v1/token/refresh", json=body)
    problem(answer, 401, "invalid_token")
    for wrong in (person.token, person.grant.refresh_token):
        answer = await forge.client.post(
            "/v1/token/mfa", json={"mfa_token": wrong, "code": "123456"}
        )
        problem(answer, 401, "invalid_token")
    assert (await person.http.get("/v1/me")).status_code == 200, "and it harms nobody"


async def test_a09_wrong_claims(forge: Forge) -> None:
    now_s = int(time.time())
    changes: list[dict[str, Any]] = [
        {"iss": "other"},
        {"iss": ["tbot"]},
        {"aud": "other"},
        {"aud": ["tbot-api", "other"]},
        {"exp": now_s},
        {"exp": now_s - 3600, "iat": now_s - 7200, "nbf": now_s - 7200},
        {"exp": str(now_s + 900)},
        {"exp": now_s + 900.5},
        {"exp": True},
        {"exp": -1},
        {"exp": 2**80},
        {"nbf": now_s + 60},
        {"nbf": None},
        {"iat": now_s + 60},
        {"iat": "now"},
        {"sub": "ann"},
        {"sub": forge.claims["sub"].upper().replace("0", "A")},
        {"sub": str(uuid4())},
        {"sid": 1},
        {"sid": str(uuid4())},
        {"jti": ""},
        {"scope": ["admin"]},
        {"scope": None},
    ]
    for change in changes:
        await forge.refused(forge.signed(claims={**forge.claims, **change}))
    for missing in forge.claims:
        rest = {name: value for name, value in forge.claims.items() if name != missing}
        await forge.refused(forge.signed(claims=rest))
    for payload in (b"[]", b"null", b"1e999", b"NaN", b"{", b"\xff", b"[" * 1500):
        await forge.refused(forge.signed(claims=payload))
    assert await forge.works()


async def test_a10_repeated_members_and_an_edited_scope(forge: Forge) -> None:
    twice = json.dumps(forge.claims)[:-1] + ',"scope":"admin"}'
    await forge.refused(forge.signed(claims=twice.encode()))
    header = json.dumps(forge.header)[:-1] + ',"alg":"Ed25519"}'
    await forge.refused(forge.signed(header.encode()))
    nested = json.dumps(forge.claims)[:-1] + ',"x":{"a":1,"a":2}}'
    await forge.refused(forge.signed(claims=nested.encode()))
    first, _, signature = forge.token.split(".")
    for edited in ("admin", forge.claims["scope"] + " admin"):
        claims = encoded({**forge.claims, "scope": edited})
        await forge.refused(f"{first}.{claims}.{signature}")


async def test_a11_a_revoked_token_written_differently(forge: Forge) -> None:
    person = await forge.world.person()
    assert (await person.http.get("/v1/me")).status_code == 200
    body = {"refresh_token": person.grant.refresh_token}
    assert (await person.http.post("/v1/token/revoke", json=body)).status_code == 200
    header, payload, signature = person.token.split(".")
    claims = decoded(payload)
    await forge.refused(person.token)
    again = forge.signed({**decoded(header)}, claims)
    reordered = forge.signed(
        dict(reversed(decoded(header).items())), dict(reversed(claims.items()))
    )
    spaced = forge.signed(claims=json.dumps(claims, indent=1).encode())
    renamed = forge.signed(claims={**claims, "jti": str(uuid4())})
    for token in (again, reordered, spaced, renamed, f"{header}.{payload}.{signature}="):
        await forge.refused(token)


async def test_a12_a_retired_key(world: Any, problem: Any) -> None:
    """On a server of its own: all keys go. The token was good, and remembered as good."""
    own = await world.new_server()
    person = await own.person()
    assert (await person.http.get("/v1/me")).status_code == 200
    old = {key["kid"] for key in (await person.http.get("/.well-known/jwks.json")).json()["keys"]}
    await own.site.auth.keys.retire_all()
    await world.site.auth.keys.load()
    problem(await person.http.get("/v1/me"), 401, "invalid_token")
    new = {key["kid"] for key in (await person.http.get("/.well-known/jwks.json")).json()["keys"]}
    assert new and not old & new
    fresh = await person.http.post(
        "/v1/token/refresh", json={"refresh_token": person.grant.refresh_token}
    )
    assert fresh.status_code == 200, "sessions live on, under the new key"


async def test_a13_a_scope_that_is_too_low(world: Any, problem: Any) -> None:
    reader = await world.person(scope="market:read orders:read")
    for method, path, scope in (
        ("POST", "/v1/orders", "orders:write"),
        ("DELETE", f"/v1/orders/{uuid4()}", "orders:write"),
        ("GET", "/v1/accounts", "account:read"),
        ("POST", "/v1/withdrawals", "payments:write"),
        ("GET", "/v1/users", "admin"),
    ):
        answer = await reader.http.request(method, path)
        document = problem(answer, 403, "insufficient_scope")
        assert document["scope"] == scope
        challenge = answer.headers["www-authenticate"]
        assert 'error="insufficient_scope"' in challenge and f'scope="{scope}"' in challenge
    assert (await reader.http.get("/v1/orders")).status_code == 200
