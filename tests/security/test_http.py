"""Attacks 34–46: HTTP itself, caches, and pages of other sites."""

from __future__ import annotations

import asyncio
import gzip
import json
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio

from tbot.core.settings import Settings
from tbot.web.browser import COOKIE

pytestmark = pytest.mark.asyncio(loop_scope="session")
ORDER = {
    "symbol": "BTC-USDT",
    "side": "buy",
    "type": "limit",
    "quantity": "0.1",
    "limit_price": "99",
}
TOKEN = b"POST /v1/token HTTP/1.1\r\nHost: t\r\n"


@pytest_asyncio.fixture(loop_scope="session")
async def ann(world: Any) -> Any:
    return await world.person()


async def test_a34_requests_that_two_readers_read_differently(world: Any) -> None:
    """400 and the end of the connection: what follows is never taken for another request."""
    smuggled = b"GET /v1/me HTTP/1.1\r\nHost: t\r\n\r\n"
    for request in (
        TOKEN + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + smuggled,
        TOKEN + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n" + smuggled,
        TOKEN + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!" + smuggled,
        TOKEN + b"Content-Length: -1\r\n\r\n" + smuggled,
        TOKEN + b"Content-Length: 1e3\r\n\r\n" + smuggled,
        TOKEN + b"Content-Length: 0x5\r\n\r\nhello" + smuggled,
        TOKEN + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n" + smuggled,
        TOKEN + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + smuggled,
        TOKEN + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello!!\r\n0\r\n\r\n" + smuggled,
        TOKEN + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + smuggled,
        b"GET / HTTP/1.1\r\nHost: t\r\nX: a\x00b\r\n\r\n" + smuggled,
        b"GET / HTTP/1.1\r\nHost: t\r\nX Y: a\r\n\r\n" + smuggled,
        b"nonsense\r\n\r\n" + smuggled,
    ):
        answer = await world.raw(request, read_all=True)
        assert (answer.status, answer.closed) == (400, True), request


async def test_a35_slow_headers_and_slow_bodies(world: Any) -> None:
    """Timed out each, while somebody else is served on a connection that was idle meanwhile."""
    defaults = Settings().overload
    assert defaults.headers_timeout_s <= 30 and defaults.body_timeout_s <= 60
    server = await world.new_server(
        overload={
            "lag_ms_max": 1e6,
            "headers_timeout_s": 0.3,
            "body_timeout_s": 0.3,
            "keep_alive_s": 60,
        }
    )
    person = await server.person()
    assert (await person.http.get("/v1/me")).status_code == 200
    body = b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    for slow in (
        b"GET /v1/me HTTP/1.1\r\nHost: t\r\nX-Slow: ",
        b"POST /v1/token/refresh HTTP/1.1\r\nHost: t\r\n" + body,
        (
            b"POST /v1/token/refresh HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n"
        ),
    ):
        answer = await server.raw(slow, read_all=True)
        assert (answer.status, answer.closed) == (408, True), slow
    assert (await person.http.get("/v1/me")).status_code == 200


async def test_a36_huge_headers(world: Any) -> None:
    most = world.site.settings.overload.headers_bytes_max
    for head in (b"X: " + b"a" * most, b"".join(b"X%d: a\r\n" % n for n in range(most // 6))):
        answer = await world.raw(b"GET / HTTP/1.1\r\nHost: t\r\n" + head + b"\r\n\r\n")
        assert answer.status == 431


async def test_a36_bodies_addresses_and_headers_without_end(world: Any) -> None:
    head = b"POST /v1/token/refresh HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
    # Answered before it comes: a declared gigabyte, of which one byte is sent.
    answer = await world.raw(head + b"Content-Length: 1000000000\r\n\r\n{", read_all=True)
    assert (answer.status, answer.code, answer.closed) == (413, "body_too_large", True)
    # Answered once it is too much: chunks that would never end.
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    most = world.site.settings.http.body_bytes_max // 65_536 + 1
    answer = await world.raw(head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * most)
    assert (answer.status, answer.code) == (413, "body_too_large")
    answer = await world.raw(b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: t\r\n\r\n")
    assert (answer.status, answer.code) == (414, "uri_too_long")
    answer = await world.raw(b"GET /?" + b"a" * 9000 + b" HTTP/1.1\r\nHost: t\r\n\r\n")
    assert (answer.status, answer.code) == (414, "uri_too_long")


async def test_a37_deep_and_repeated_json(ann: Any, problem: Any) -> None:
    headers = {"Content-Type": "application/json"}
    deep = 100_000
    for body in (
        b"[" * deep,
        b"[" * deep + b"]" * deep,
        b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
        b'{"name": "a", "name": "b"}',
        b'{"name": "a", "\\u006eame": "b"}',
        b'{"name": "a", "limits": {"max_open_orders": 1, "max_open_orders": 2}}',
        b'{"name": "a"} {"name": "b"}',
    ):
        answer = await ann.http.post("/v1/accounts", content=body, headers=headers)
        problem(answer, 400, "malformed_json")
    assert (await ann.http.get("/v1/accounts")).json()["items"] == []


async def test_a38_compressed_bodies_are_not_inflated(ann: Any, problem: Any) -> None:
    bomb = gzip.compress(b"[" + b" " * 10_000_000 + b"]")
    for coding in ("gzip", "deflate", "br", "zstd", "gzip, gzip", "x-gzip"):
        headers = {"Content-Type": "application/json", "Content-Encoding": coding}
        answer = await ann.http.post("/v1/accounts", content=bomb, headers=headers)
        problem(answer, 415, "unsupported_media_type")
    form = {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"}
    answer = await ann.http.post("/v1/token", content=gzip.compress(b"username=a"), headers=form)
    problem(answer, 415, "unsupported_media_type")


async def test_a39_types_forms_and_methods(ann: Any, problem: Any) -> None:
    body = json.dumps({"name": "a"})
    for kind in (
        "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
        "application/json; charset=latin-1", "application/xml", "application/jsonp",
    ):  # fmt: skip
        headers = {"Content-Type": kind}
        answer = await ann.http.post("/v1/accounts", content=body, headers=headers)
        problem(answer, 415, "unsupported_media_type")
    answer = await ann.http.post("/v1/accounts", content=body)
    problem(answer, 415, "unsupported_media_type")
    for accept in ("text/html", "image/png", "application/xml;q=0.9", "application/json;q=0"):
        answer = await ann.http.get("/v1/accounts", headers={"Accept": accept})
        problem(answer, 406, "not_acceptable")
        headers = {"Accept": accept, "Content-Type": "application/json"}
        answer = await ann.http.post("/v1/accounts", content=body, headers=headers)
        problem(answer, 406, "not_acceptable")
    assert (await ann.http.get("/v1/accounts")).json()["items"] == [], "before anything is done"
    for method, path, allow in (
        ("PUT", "/v1/orders", {"DELETE", "GET", "HEAD", "POST"}),
        ("DELETE", "/v1/me", {"GET", "HEAD"}),
        ("TRACE", "/v1/me", {"GET", "HEAD"}),
        ("PROPFIND", "/v1/token", {"POST"}),
    ):
        answer = await ann.http.request(method, path)
        problem(answer, 405, "method_not_allowed")
        assert set(answer.headers["allow"].split(", ")) - {"OPTIONS"} == allow


async def test_a40_paths_that_are_written_differently(world: Any, ann: Any) -> None:
    for path in (
        b"/v1/%2e%2e/v1/me", b"/v1/../v1/me", b"//v1/me", b"/v1//me", b"/v1/me%00", b"/v1/me/",
        b"/V1/me", b"/v1/me%2f", b"/v1/%6de/..", b"/docs/%2e%2e/%2e%2e/etc/passwd", b"/v1/me;x=1",
        b"/docs/../../etc/passwd", b"/docs/..%2f..%2fetc%2fpasswd", b"/v1\\me", b"/%76%31/me%20",
    ):  # fmt: skip
        request = b"GET " + path + b" HTTP/1.1\r\nHost: t\r\nAuthorization: Bearer "
        answer = await world.raw(request + ann.token.encode() + b"\r\n\r\n")
        assert answer.status == 404, path
        assert answer.code == "not_found"


async def test_a41_line_breaks_in_what_is_reflected(world: Any, ann: Any) -> None:
    for value in (b"ok\r\nX-Evil: 1", b"ok%0d%0aX-Evil: 1", b"ok\nX-Evil: 1", b"ok\rX-Evil: 1"):
        request = b"GET /nope HTTP/1.1\r\nHost: t\r\nX-Request-Id: " + value + b"\r\n\r\n"
        answer = await world.raw(request)
        assert answer.status in (400, 404)
        assert "x-evil" not in answer.headers
    # In what we put into headers ourselves: ids, links to pages, locations.
    for number in range(2):
        await ann.http.post("/v1/accounts", json={"name": f"a{number}"})
    page = await ann.http.get("/v1/accounts?limit=1&name=%0d%0aX-Evil:1&%0d%0aX-Evil=1")
    assert page.status_code in (200, 422)
    assert "x-evil" not in page.headers and "\n" not in page.headers.get("link", "")
    for key in ('"a\r\nX-Evil: 1"', "a%0d%0aX-Evil"):
        raw = json.dumps({"name": "b"}).encode()
        request = (
            b"POST /v1/accounts HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\n"
            b"Authorization: Bearer " + ann.token.encode() + b"\r\nIdempotency-Key: "
            + key.encode() + b"\r\nContent-Length: " + str(len(raw)).encode() + b"\r\n\r\n" + raw
        )  # fmt: skip
        answer = await world.raw(request)
        assert "x-evil" not in answer.headers
        assert answer.status in (201, 400)


async def test_a42_pages_of_other_origins_read_nothing(world: Any, ann: Any) -> None:
    host = urlsplit(world.url).netloc
    for origin in (
        "null", "https://evil.example", f"http://{host}.evil.example", f"http://evil{host}",
        "http://evil.example#" + host, "https://desk.example.evil", "",
    ):  # fmt: skip
        for method, path in (("GET", "/v1/me"), ("GET", "/v1/instruments"), ("GET", "/nope")):
            answer = await ann.http.request(method, path, headers={"Origin": origin})
            assert "access-control-allow-origin" not in answer.headers, origin
            assert "access-control-allow-credentials" not in answer.headers
        asked = {"Origin": origin, "Access-Control-Request-Method": "DELETE"}
        answer = await ann.http.options("/v1/orders", headers=asked)
        assert "access-control-allow-origin" not in answer.headers


async def test_a42_listed_origins_and_no_others(world: Any) -> None:
    listed = "https://desk.example"
    server = await world.new_server(http={"cors_origins": [listed]})
    person = await server.person()
    for origin in (
        listed, "https://desk.example.evil", "https://evil-desk.example", "http://desk.example",
        "https://desk.example:444", "https://DESK.example", "null", "https://sub.desk.example",
    ):  # fmt: skip
        answer = await person.http.get("/v1/me", headers={"Origin": origin})
        allowed = answer.headers.get("access-control-allow-origin")
        assert allowed == (listed if origin == listed else None), origin
        assert "Origin" in answer.headers["vary"]
        assert "access-control-allow-credentials" not in answer.headers
        asked = {"Origin": origin, "Access-Control-Request-Method": "DELETE"}
        preflight = await person.http.options("/v1/orders", headers=asked)
        assert ("access-control-allow-origin" in preflight.headers) == (origin == listed)
        assert preflight.headers.get("access-control-allow-origin") != "*"


async def test_a43_cookies_across_sites(world: Any, problem: Any) -> None:
    person = await world.person()
    host = urlsplit(world.url).netloc
    cookie = f"{COOKIE}={person.grant.refresh_token}"
    client = world.client(address=person.address)
    for headers in (
        {},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://{host}.evil.example"},
        {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
        {"Origin": f"http://{host}", "Sec-Fetch-Site": "cross-site"},
        {"Origin": f"http://{host}", "Sec-Fetch-Site": "same-site"},
        {"Origin": f"http://{host}", "Sec-Fetch-Site": "none"},
    ):
        for path in ("/v1/token/refresh", "/v1/token/revoke"):
            answer = await client.post(path, headers={"Cookie": cookie, **headers})
            problem(answer, 403, "cross_site")
            assert "set-cookie" not in answer.headers
    # A cookie alone opens nothing else, from whatever page.
    own = {"Cookie": cookie, "Origin": f"http://{host}", "Sec-Fetch-Site": "same-origin"}
    problem(
        await client.post("/v1/accounts", json={"name": "a"}, headers=own), 401, "unauthenticated"
    )
    assert (await client.post("/v1/token/refresh", headers=own)).status_code == 200


async def test_a44_somebody_elses_entity_tag(world: Any, ann: Any, problem: Any) -> None:
    bob = await world.person()
    account = await world.site.account(ann.http)
    placed = await ann.http.post("/v1/orders", json={**ORDER, "account_id": account["id"]})
    path, tag = placed.headers["location"], placed.headers["etag"]
    assert (await ann.http.get(path, headers={"If-None-Match": tag})).status_code == 304
    for given in (tag, "*", f"W/{tag.removeprefix('W/')}"):
        problem(await bob.http.get(path, headers={"If-None-Match": given}), 404, "not_found")
    shared = "/v1/accounts"
    mine = (await ann.http.get(shared)).headers.get("etag")
    if mine is not None:
        answer = await bob.http.get(shared, headers={"If-None-Match": mine})
        assert answer.status_code == 200


async def test_a45_hosts_that_are_made_up(world: Any, ann: Any) -> None:
    for number in range(2):
        await ann.http.post("/v1/accounts", json={"name": f"a{number}"})
    forged = {
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Proto": "gopher",
        "X-Original-URL": "/v1/users",
        "X-Rewrite-URL": "/v1/users",
        "Host": "evil.example",
    }
    for method, path in (
        ("GET", "/v1/accounts?limit=1"),
        ("POST", "/v1/accounts"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/nope"),
        ("GET", "/v1/me/"),
    ):
        body = {"name": "new"} if method == "POST" else None
        answer = await ann.http.request(method, path, headers=forged, json=body)
        assert answer.status_code in (200, 201, 404)
        assert "evil" not in str(answer.headers) + answer.text
        assert "gopher" not in str(answer.headers) + answer.text
    assert answer.status_code == 404


async def test_a46_changes_without_and_with_a_stale_tag(world: Any, ann: Any, problem: Any) -> None:
    account = await world.site.account(ann.http)
    path = f"/v1/accounts/{account['id']}"
    tag = (await ann.http.get(path)).headers["etag"]
    change = {"name": "renamed"}
    problem(await ann.http.patch(path, json=change), 428, "precondition_required")
    for stale in ('"never"', f"W/{tag}", '""'):
        answer = await ann.http.patch(path, json=change, headers={"If-Match": stale})
        problem(answer, 412, "precondition_failed")
    headers = {"If-Match": tag}
    assert (await ann.http.patch(path, json=change, headers=headers)).status_code == 200
    again = await ann.http.patch(path, json={"name": "lost"}, headers=headers)
    problem(again, 412, "precondition_failed")
    assert (await ann.http.get(path)).json()["name"] == "renamed"
    # Of changes at once under one tag one wins.
    tag = (await ann.http.get(path)).headers["etag"]
    answers = await asyncio.gather(
        *(ann.http.patch(path, json={"name": f"n{n}"}, headers={"If-Match": tag}) for n in range(8))
    )
    assert sorted(answer.status_code for answer in answers) == [200] + [412] * 7
