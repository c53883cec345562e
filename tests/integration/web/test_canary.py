"""Attack 60: secrets in every field of every route, and none of them where others read."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
from fastapi.routing import APIRoute

from authenticator import Phone, unuse
from tbot.web.routes import StrictRoute

PASSWORD = "canary Pa55phrase: never write me down"
CANARIES = {
    "password": PASSWORD,
    "jwt": "eyJhbGciOiJFZERTQSIsInR5cCI6ImF0K2p3dCJ9.eyJzdWIiOiJjYW5hcnkifQ.Y2FuYXJ5LXNpZ25hdHVyZQ",
    "code": "804613",
    "api_secret": "tbk_CanaryCanaryCanaryCanaryCanaryCanaryCanary0",
    "refresh_token": "tbr_CanaryCanaryCanaryCanaryCanaryCanaryCanary0",
    "webhook_secret": "whsec_Q2FuYXJ5Q2FuYXJ5Q2FuYXJ5Q2FuYXJ5",
}
TOGETHER = (
    "X-Request-Id", "User-Agent", "Referer", "Accept-Language", "Cookie", "If-None-Match",
    "If-Match", "Prefer", "X-Forwarded-For", "Forwarded", "traceparent", "tracestate", "X-Canary",
    "Last-Event-Id", "Range", "X-HTTP-Method-Override",
)  # fmt: skip
"""Headers that hinder nothing: all of them in one request."""
ALONE = (
    "Origin", "Accept", "Idempotency-Key", "Authorization", "X-API-Key", "Content-Type",
    "Content-Encoding",
)  # fmt: skip
"""Headers that a request may be refused for."""
ENDS_THE_SESSION = ("/v1/sessions", "/v1/me/password", "/v1/token/revoke", "/v1/me/totp")
AT_ONCE = 8


def resolved(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in schema:
        schema = document["components"]["schemas"][schema["$ref"].rsplit("/", 1)[1]]
    for alternatives in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(alternatives, ()):
            if one.get("type") != "null":
                return resolved(document, one)
    return schema


def sample(document: dict[str, Any], schema: dict[str, Any]) -> Any:
    """Something of a schema's shape."""
    schema = resolved(document, schema)
    if schema.get("examples"):
        return schema["examples"][0]
    if schema.get("enum"):
        return schema["enum"][0]
    match schema.get("type"):
        case "object":
            members = schema.get("properties", {})
            return {name: sample(document, members[name]) for name in schema.get("required", ())}
        case "array":
            return [sample(document, schema.get("items", {}))] * max(1, schema.get("minItems", 0))
        case "integer" | "number":
            return max(1, schema.get("minimum", 1))
        case "boolean":
            return False
    return "x"


def planted(document: dict[str, Any], schema: dict[str, Any], secret: str) -> Iterator[Any]:
    """Values of a schema's shape, each with the secret in another place."""
    schema = resolved(document, schema)
    yield secret
    if schema.get("type") == "array":
        for item in planted(document, schema.get("items", {}), secret):
            yield [item]
    if schema.get("type") == "object":
        whole = sample(document, schema)
        whole = whole if isinstance(whole, dict) else {}
        for name, member in schema.get("properties", {}).items():
            for value in planted(document, member, secret):
                yield {**whole, name: value}
        yield {**whole, "canary": secret}


def requests(site: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every field of every route with a secret in it: method, address and what httpx takes."""
    document = site.app.openapi()
    kinds = itertools.cycle(CANARIES.values())
    routes = [route for route in site.app.routes if isinstance(route, APIRoute)]
    routes.sort(key=lambda route: route.path.startswith(ENDS_THE_SESSION))
    for route in routes:
        if route.path in ("/v1/events", "/docs/swagger-ui-bundle.js"):
            continue  # one has no end (its log is that of any route), the other is a file
        for method in sorted((route.methods or set()) - {"HEAD"}):
            told = document["paths"].get(route.path, {}).get(method.lower(), {})
            names = list(route.param_convertors)
            path = route.path_format
            for name in names:
                path = path.replace("{" + name + "}", "0199f3a2-7c4e-7c51-9d0e-3f6b8a2c4d10")
            content = told.get("requestBody", {}).get("content", {})
            body: dict[str, Any] = {}
            if "application/json" in content:
                schema = content["application/json"]["schema"]
                body = {"json": sample(document, schema)}
            many = {header: next(kinds) for header in TOGETHER}
            yield method, path, {**body, "headers": many}
            for header in ALONE:
                secret = next(kinds)
                value = f"Bearer {secret}" if header == "Authorization" else secret
                yield method, path, {**body, "headers": {header: value}}
            for name in names:
                place = route.path_format.replace("{" + name + "}", next(kinds))
                for other in names:
                    place = place.replace("{" + other + "}", "0199f3a2-7c4e-7c51-9d0e-3f6b8a2c4d10")
                yield method, place, body
            for one in [*told.get("parameters", ()), {"in": "query", "name": "canary"}]:
                if one["in"] == "query":
                    yield method, path, {**body, "params": {one["name"]: next(kinds)}}
            for media, shape in content.items():
                if media == "application/json":
                    for value in planted(document, shape["schema"], next(kinds)):
                        yield method, path, {"json": value}
                elif media == "application/x-www-form-urlencoded":
                    fields = resolved(document, shape["schema"]).get("properties", {})
                    for name, secret in itertools.product(fields, CANARIES.values()):
                        form = {"grant_type": "password", "username": "ann", "password": "x" * 20}
                        yield method, path, {"data": {**form, name: secret}}
            if content:
                broken = b'{"a": "' + next(kinds).encode() + b'", '
                yield method, path, {
                    "content": broken,
                    "headers": {"Content-Type": "application/json"},
                }
    for secret in CANARIES.values():
        yield "GET", f"/{secret}", {}
        yield secret.split()[0], "/v1/me", {}


def finder(secrets: list[str]) -> Callable[[str], list[str]]:
    """Which of the secrets are in a text, also as JSON or a URL would write them."""
    patterns = {}
    for secret in secrets:
        written = {secret, json.dumps(secret)[1:-1], str(httpx.QueryParams({"x": secret}))[2:]}
        edge = r"(?![0-9a-f])" if secret.isdigit() else ""
        before = r"(?<![0-9a-f.-])" if secret.isdigit() else ""
        patterns[secret] = re.compile(
            before + "(?:" + "|".join(map(re.escape, written)) + ")" + edge
        )
    return lambda text: [secret for secret, pattern in patterns.items() if pattern.search(text)]


async def test_attack_60_no_secret_in_a_log_an_error_or_a_metric(
    new_site: Any, serve: Any, log_lines: Callable[[], list[str]]
) -> None:
    site = await new_site()
    await site.user("ann")
    await site.pool.execute("UPDATE users SET role = 'admin'")
    found = finder(list(CANARIES.values()))
    leaks: list[Any] = []
    asked = 0
    async with httpx.AsyncClient(base_url=await serve(site), timeout=60) as client:
        token = await site.token("ann")

        async def ask(one: tuple[str, str, dict[str, Any]]) -> None:
            nonlocal token, asked
            method, path, options = one
            headers = {"Authorization": f"Bearer {token}", **options.get("headers", {})}
            answer = await client.request(method, path, **{**options, "headers": headers})
            asked += 1
            if answer.status_code == 401 and "Authorization" not in options.get("headers", {}):
                token = await site.token("ann")
            told = answer.text + str([v for n, v in answer.headers.multi_items()])
            if answer.status_code >= 400 and (secrets := found(told)):
                leaks.append((method, path, options, answer.status_code, secrets, answer.text))
            assert answer.status_code < 500 or answer.status_code == 503, (one, answer.text)

        every = list(requests(site))
        for batch in itertools.batched(every, AT_ONCE):
            await asyncio.gather(*(ask(one) for one in batch))
        metrics = (await client.get("/metrics")).text
    assert asked > 800
    assert not leaks, "\n".join(f"{one[:2]} {one[3:]}"[:400] for one in leaks[:20])
    assert not found(metrics)
    logged = [(found(line), line) for line in log_lines() if found(line)]
    assert len(log_lines()) > asked, "there is a line of each"
    assert not logged, logged[:5]
    assert not [line for line in log_lines() if "Traceback" in line]


async def test_attack_60_what_the_server_gives_out_itself_is_in_no_log(
    new_site: Any, serve: Any, log_lines: Callable[[], list[str]]
) -> None:
    """Real ones: a login in two steps, a refresh, a key, a ticket, a webhook and a new password."""
    site = await new_site()
    async with httpx.AsyncClient(base_url=await serve(site), timeout=60) as client:
        await site.user("root")
        await site.pool.execute("UPDATE users SET role = 'admin'")
        root = {"Authorization": f"Bearer {await site.token('root')}"}
        secrets = [PASSWORD]

        async def did(method: str, path: str, **options: Any) -> Any:
            answer = await client.request(method, path, **options)
            assert answer.status_code < 400 or answer.json()["code"] == "mfa_required", answer.text
            return answer.json() if answer.content else None

        new = {"username": "carla", "password": PASSWORD, "role": "trader"}
        await did("POST", "/v1/users", json=new, headers=root)
        form = {"username": "carla", "password": PASSWORD}
        first = await did("POST", "/v1/token", data=form)
        mine = {"Authorization": f"Bearer {first['access_token']}"}
        begun = await did("POST", "/v1/me/totp", headers=mine)
        phone = Phone(begun["secret"])
        codes = [phone.code()]
        kept = await did("POST", "/v1/me/totp/confirm", json={"code": codes[0]}, headers=mine)
        waiting = await did("POST", "/v1/token", data=form)
        await unuse(site.pool)
        codes.append(phone.code())
        answer = {"mfa_token": waiting["mfa_token"], "code": codes[1]}
        second = await did("POST", "/v1/token/mfa", json=answer)
        third = await did(
            "POST", "/v1/token/refresh", json={"refresh_token": second["refresh_token"]}
        )
        mine = {"Authorization": f"Bearer {third['access_token']}"}
        body = {"name": "k", "scopes": ["account:read"]}
        key = await did("POST", "/v1/api-keys", json=body, headers=mine)
        ticket = await did("POST", "/v1/stream/tickets", json={}, headers=mine)
        account = await did(
            "POST", "/v1/accounts", json={"name": "c", "kind": "cash"}, headers=mine
        )
        hook = {"account_id": account["id"], "url": "https://example.com/"}
        webhook = await did("POST", "/v1/webhooks", json=hook, headers=mine)
        later = "another canary that is not to be seen"
        change = {"current_password": PASSWORD, "new_password": later}
        await did("POST", "/v1/me/password", json=change, headers=mine)
        secrets += [later, begun["secret"], begun["otpauth_uri"], *codes, *kept["recovery_codes"]]
        secrets += [waiting["mfa_token"], key["key"], ticket["ticket"], webhook["secret"]]
        for tokens in (first, second, third):
            secrets += [tokens["access_token"], tokens["refresh_token"]]
        metrics = (await client.get("/metrics")).text
    found = finder(secrets)
    assert len(log_lines()) > 10
    assert not found(metrics)
    assert not [line for line in log_lines() if found(line)]


async def test_attack_61_a_forced_fault_is_a_plain_500_and_its_log_has_no_secret(
    site: Any, problem: Any, log_lines: Callable[[], list[str]], monkeypatch: Any
) -> None:
    """Wherever it is: in every route's own function, with a secret in the error's text."""
    failed = 0
    for route in site.app.routes:
        if not isinstance(route, StrictRoute) or "instruments" not in route.path:
            continue
        assert route.dependant.call is not None

        async def fail(**_: Any) -> Any:
            raise RuntimeError(f"secret detail {CANARIES['jwt']} password={CANARIES['code']}")

        monkeypatch.setattr(route.dependant, "call", fail)
        async with site.client("ann") as client:
            url = route.path_format.replace("{symbol}", "BTC-USDT")
            answer = await client.get(url, params={"interval": "1m"})
        document = problem(answer, 500, "internal_error")
        assert set(document) == {"type", "title", "status", "detail", "code", "request_id"}
        assert "RuntimeError" not in answer.text and "secret" not in answer.text
        failed += 1
    lines = [line for line in log_lines() if "request_failed" in line]
    assert len(lines) == failed > 3
    assert all("RuntimeError" in line and "[masked]" in line for line in lines)
    assert not finder(list(CANARIES.values()))("\n".join(lines))
