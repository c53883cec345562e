"""Negotiation, tags, codings, CORS and deprecation, without a server behind."""

from __future__ import annotations

import json
import zlib
from datetime import UTC, datetime
from typing import Any

import httpx
import msgspec
import pytest
import structlog
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from tbot.core import trace
from tbot.core.settings import HttpSettings
from tbot.venues.binance.rest import traced
from tbot.web.answers import json_answer
from tbot.web.compression import GZIP_BITS, Stream
from tbot.web.cors import Origins
from tbot.web.deprecation import deprecated
from tbot.web.edge import Edge
from tbot.web.negotiation import PACKED, coding_of, preferred
from tbot.web.openapi_http import complete
from tbot.web.preconditions import expected_versions, matches
from tbot.web.problems import Problem
from tbot.web.representation import Terms
from tbot.web.routes import SHOWS_SECRET

LONG = {"items": ["0.00125"] * 400}
OURS, TRUSTED = "https://app.example.com", "https://in.example.com"


def toy() -> FastAPI:
    """A few routes behind the real edge."""
    app = FastAPI(openapi_url=None, telemetry={"tracing": False, "metrics": False, "logs": False})
    settings = HttpSettings()
    terms = Terms(settings, Origins([OURS], [TRUSTED], 60))
    app.add_middleware(Edge, settings=settings, terms=terms)

    @app.get("/long")
    async def long() -> Response:
        return json_answer(LONG)

    @app.get("/short")
    async def short() -> Response:
        return json_answer({"a": 1}, headers={"ETag": '"1.7"', "Cache-Control": "private"})

    @app.get("/dated")
    async def dated() -> Response:
        return Response("x" * 10, headers={"Last-Modified": "Thu, 08 Aug 2024 00:00:00 GMT"})

    @app.post("/secret", openapi_extra=SHOWS_SECRET)
    async def secret() -> Response:
        return json_answer(LONG, 201, {"Location": "/secret/1"})

    @app.post("/made")
    async def made() -> Response:
        return json_answer(LONG, 201, {"Location": "/made/1", "ETag": '"1.1"'})

    @app.patch("/made")
    async def changed() -> Response:
        return json_answer(LONG, headers={"ETag": '"2.1"'})

    @app.get("/lines")
    async def lines() -> Response:
        async def chunks() -> Any:
            for number in range(3):
                yield f'{{"n":{number}}}\n' * 50

        return StreamingResponse(chunks(), media_type="application/x-ndjson")

    @app.get(
        "/old",
        **deprecated(
            since=datetime(2026, 11, 1, tzinfo=UTC),
            sunset=datetime(2027, 6, 1, tzinfo=UTC),
            successor="/long",
        ),
    )
    async def old() -> Response:
        return json_answer(trace.outgoing())

    return app


@pytest.fixture
async def client() -> Any:
    transport = httpx.ASGITransport(toy(), raise_app_exceptions=False)
    headers = {"Accept-Encoding": "identity"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        yield client


JSON_OFFERS = ("application/json", *PACKED)


@pytest.mark.parametrize(
    ("accept", "best"),
    [
        ("", "application/json"),
        ("*/*", "application/json"),
        ("application/*", "application/json"),
        ("application/msgpack", "application/msgpack"),
        ("application/x-msgpack, */*;q=0.1", "application/x-msgpack"),
        ("application/json;q=0.2, application/msgpack;q=0.7", "application/msgpack"),
        ("application/json;q=0, application/*;q=0.1", "application/msgpack"),
        ("application/json;q=0.5;version=1", "application/json"),
        ("APPLICATION/JSON ; Q=1.000", "application/json"),
        ("text/html, application/xhtml+xml, */*;q=0.8", "application/json"),
        ("text/html", None),
        ("application/json;q=0", None),
        ("*/*;q=0.000", None),
        ("application/json;q=nan", None),
        ("application/json;q=2", None),
        (",,;q=1", None),
        ("a" * 5000, "application/json"),
    ],
)
def test_which_media_type_is_liked_best(accept: str, best: str | None) -> None:
    assert preferred(accept, JSON_OFFERS) == best


@pytest.mark.parametrize(
    ("accepted", "large", "small"),
    [
        ("", "identity", "identity"),
        ("gzip", "gzip", "identity"),
        ("gzip, deflate, br, zstd", "gzip", "identity"),
        ("x-gzip", "gzip", "identity"),
        ("*", "gzip", "identity"),
        ("gzip;q=0", "identity", "identity"),
        ("gzip;q=0.1, identity;q=0.5", "identity", "identity"),
        ("gzip, identity;q=0", "gzip", "gzip"),
        ("gzip, *;q=0", "gzip", "gzip"),
        ("identity;q=0", "identity", "identity"),
        ("br", "identity", "identity"),
    ],
)
def test_which_coding_is_liked_best(accepted: str, large: str, small: str) -> None:
    assert coding_of(accepted.encode(), True) == large
    assert coding_of(accepted.encode(), False) == small


async def test_each_form_has_a_tag_of_its_own_and_304_is_about_that_form(
    client: httpx.AsyncClient,
) -> None:
    forms = [
        {},
        {"Accept": "application/msgpack"},
        {"Accept-Encoding": "gzip"},
        {"Accept": "application/vnd.msgpack", "Accept-Encoding": "gzip"},
    ]
    tags = []
    for form in forms:
        answer = await client.get("/long", headers=form)
        assert answer.status_code == 200
        packed = "msgpack" in form.get("Accept", "")
        assert answer.headers["content-type"] == form.get("Accept", "application/json")
        assert (answer.headers.get("content-encoding") == "gzip") is ("Accept-Encoding" in form)
        content = answer.content
        assert (msgspec.msgpack.decode(content) if packed else json.loads(content)) == LONG
        assert answer.headers["vary"] == "Accept, Accept-Encoding, Origin"
        tags.append(answer.headers["etag"])
    assert len(set(tags)) == len(forms)
    assert all(tag.startswith('"') for tag in tags), "strong: no two forms share one"
    for form in forms:
        for tag in tags:
            headers = {**form, "If-None-Match": f'"x", W/{tag}'}
            again = await client.get("/long", headers=headers)
            if tag == tags[forms.index(form)]:
                assert (again.status_code, again.content) == (304, b"")
                assert again.headers["etag"] == tag
                assert again.headers["cache-control"] == "no-store"
                assert again.headers["vary"] == "Accept, Accept-Encoding, Origin"
                for name in ("content-type", "content-length", "content-encoding"):
                    assert name not in again.headers
            else:
                assert again.status_code == 200
        any_tag = await client.get("/long", headers={**form, "If-None-Match": "*"})
        assert any_tag.status_code == 304


async def test_a_tag_wins_over_a_date_and_a_bad_date_says_nothing(
    client: httpx.AsyncClient,
) -> None:
    at = "Thu, 08 Aug 2024 00:00:00 GMT"
    assert (await client.get("/dated", headers={"If-Modified-Since": at})).status_code == 304
    for headers in (
        {"If-Modified-Since": "Wed, 07 Aug 2024 23:59:59 GMT"},
        {"If-Modified-Since": "yesterday"},
        {"If-Modified-Since": at, "If-None-Match": '"x"'},
    ):
        assert (await client.get("/dated", headers=headers)).status_code == 200
    head = await client.head("/short", headers={"If-None-Match": 'W/"1.7"'})
    assert (head.status_code, head.headers["cache-control"]) == (304, "private")


@pytest.mark.parametrize(
    ("given", "matching"),
    [
        (b'"a"', True),
        (b'W/"a"', True),
        (b'"b", "a"', True),
        (b"*", True),
        (b'"b"', False),
        (b"a", False),
        (b'"a+gzip"', False),
        (b"", False),
        (b'*, "b"', False),
    ],
)
def test_if_none_match_compares_weakly(given: bytes, matching: bool) -> None:
    assert matches(given, b'"a"') is matching


@pytest.mark.parametrize(
    ("given", "versions"),
    [
        (['"5.41"'], {"5"}),
        (['"5.41+gzip"', '"6.1"'], {"5", "6"}),
        (['W/"5.41"'], set()),
        (["*"], None),
        (['"5"'], {"5"}),
    ],
)
def test_if_match_compares_strongly(given: list[str], versions: set[str] | None) -> None:
    headers = [(b"if-match", value.encode()) for value in given]
    assert expected_versions(Request({"type": "http", "headers": headers})) == versions


@pytest.mark.parametrize(
    "given", ["5", '"5', '"5" "6"', '*, "5"', '"' + "5" * 3000 + '"', '"\xe9"']
)
def test_if_match_has_to_be_tags(given: str) -> None:
    headers = [(b"if-match", given.encode("latin-1"))]
    with pytest.raises(Problem) as refused:
        expected_versions(Request({"type": "http", "headers": headers}))
    assert (refused.value.status_code, refused.value.code) == (400, "malformed_header")


async def test_only_what_is_large_and_no_secret_is_compressed(client: httpx.AsyncClient) -> None:
    gzip = {"Accept-Encoding": "gzip"}
    assert "content-encoding" not in (await client.get("/short", headers=gzip)).headers
    only = {"Accept-Encoding": "gzip, identity;q=0"}
    assert (await client.get("/short", headers=only)).headers["content-encoding"] == "gzip"
    secret = await client.post("/secret", headers={**only, "Prefer": "return=minimal"})
    assert "content-encoding" not in secret.headers
    assert (secret.status_code, secret.json()) == (201, LONG)
    assert "preference-applied" not in secret.headers
    head = await client.head("/long", headers=gzip)
    whole = await client.get("/long", headers=gzip)
    assert head.content == b""
    assert head.headers["content-length"] == whole.headers["content-length"]


async def test_a_stream_is_compressed_as_it_comes(client: httpx.AsyncClient) -> None:
    whole = (await client.get("/lines")).content
    async with client.stream("GET", "/lines", headers={"Accept-Encoding": "gzip"}) as answer:
        assert answer.headers["content-encoding"] == "gzip"
        assert "content-length" not in answer.headers
        packed = b"".join([chunk async for chunk in answer.aiter_raw()])
    assert zlib.decompress(packed, GZIP_BITS) == whole
    # Every piece can be read before the next one is there.
    stream, reader = Stream(4), zlib.decompressobj(GZIP_BITS)
    for piece, last in ((b"one", False), (b"two", False), (b"", True)):
        assert reader.decompress(stream.chunk(piece, last=last)) == piece
    assert reader.eof
    head = await client.head("/lines")
    assert (head.status_code, head.content) == (200, b"")


async def test_prefer_minimal(client: httpx.AsyncClient) -> None:
    minimal = {"Prefer": "respond-async, return=minimal"}
    made = await client.post("/made", headers=minimal)
    assert (made.status_code, made.content) == (204, b"")
    assert made.headers["location"] == "/made/1"
    assert made.headers["preference-applied"] == "return=minimal"
    assert "content-length" not in made.headers
    changed = await client.patch("/made", headers=minimal)
    assert (changed.status_code, changed.headers["etag"]) == (204, '"2.1"')
    assert "content-type" not in changed.headers
    for other in ("return=representation", "return=minimalistic", "x" * 300):
        assert (await client.post("/made", headers={"Prefer": other})).json() == LONG
    assert (await client.get("/long", headers=minimal)).json() == LONG


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (OURS, True),
        (TRUSTED, True),
        ("null", False),
        ("https://evil.example", False),
        ("https://app.example.com.evil.example", False),
        ("https://evil-app.example.com", False),
        ("http://app.example.com", False),
        ("https://app.example.com:443", False),
        ("HTTPS://APP.EXAMPLE.COM", False),
        ("*", False),
        ("", False),
    ],
)
async def test_attack_42_origins(client: httpx.AsyncClient, origin: str, allowed: bool) -> None:
    for method, path in (("GET", "/long"), ("GET", "/nothing"), ("DELETE", "/long")):
        answer = await client.request(method, path, headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") == (origin if allowed else None)
        assert "Origin" in answer.headers["vary"]
        credentials = answer.headers.get("access-control-allow-credentials")
        assert credentials == ("true" if origin == TRUSTED else None)
    ask = {"Origin": origin, "Access-Control-Request-Method": "PATCH"}
    preflight = await client.options("/made", headers=ask)
    assert (preflight.status_code, preflight.content) == (204, b"")
    assert "Access-Control-Request-Method" in preflight.headers.get_list("vary", True)
    if allowed:
        assert preflight.headers["access-control-allow-methods"] == "OPTIONS, PATCH, POST"
        assert "Idempotency-Key" in preflight.headers["access-control-allow-headers"]
        assert preflight.headers["access-control-max-age"] == "60"
    else:
        assert not [name for name in preflight.headers if name.startswith("access-control")]


async def test_options_tells_what_there_is(client: httpx.AsyncClient) -> None:
    for path, allow in (("/long", "GET, HEAD, OPTIONS"), ("/made", "OPTIONS, PATCH, POST")):
        answer = await client.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (204, allow)
        takes_patches = answer.headers.get("accept-patch", "")
        assert ("application/merge-patch+json" in takes_patches) is (path == "/made")
    assert (await client.options("/nothing")).status_code == 404


async def test_a_deprecated_route_says_so(client: httpx.AsyncClient) -> None:
    headers = (await client.get("/old")).headers
    assert headers["deprecation"] == "@1793491200"
    assert headers["sunset"] == "Tue, 01 Jun 2027 00:00:00 GMT"
    assert '</long>; rel="successor-version"' in headers["link"]
    assert 'rel="deprecation"' in headers["link"]
    assert "deprecation" not in (await client.get("/long")).headers
    (route,) = [r for r in toy().routes if isinstance(r, APIRoute) and r.path == "/old"]
    operation: dict[str, Any] = {
        "responses": {"200": {"content": {"application/json": {"schema": {}}}}}
    }
    complete(route, operation)
    assert {"Deprecation", "Sunset", "Link"} <= set(operation["responses"]["200"]["headers"])
    with pytest.raises(ValueError, match="half a year"):
        deprecated(since=datetime(2026, 1, 1, tzinfo=UTC), sunset=datetime(2026, 3, 1, tzinfo=UTC))


TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


async def test_a_trace_goes_on(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tbot.core.log._least", 0)  # whatever was tested before
    given = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "a=1,b@c=x y"}
    with structlog.testing.capture_logs([trace.merged]) as logs:
        answer = await client.get("/old", headers=given)
    sent = answer.json()
    version, trace_id, span_id, flags = sent["traceparent"].split("-")
    assert (version, trace_id, flags) == ("00", TRACE, "01")
    assert span_id != PARENT
    assert sent["tracestate"] == "a=1,b@c=x y"
    assert answer.headers["x-request-id"] == f"{TRACE}-{span_id}"
    (event,) = [log for log in logs if log["event"] == "http_request"]
    assert (event["trace_id"], event["span_id"]) == (TRACE, span_id)
    own = await client.get("/old", headers={**given, "X-Request-Id": "mine"})
    assert own.headers["x-request-id"] == "mine"
    assert (await client.get("/old")).json() == {}, "the next request is not of that trace"


async def test_calls_to_a_venue_carry_it_on() -> None:
    found = trace.read(f"00-{TRACE}-{PARENT}-01", ["a=1"])
    assert found is not None
    for current, sent in ((found, found.parent), (None, None)):
        trace.begun(current)
        request = httpx.Request("POST", "http://venue/api/v3/order", headers={"X-MBX-APIKEY": "k"})
        await traced(request)
        assert request.headers.get("traceparent") == sent
        assert request.headers["x-mbx-apikey"] == "k"


@pytest.mark.parametrize(
    "parent",
    [
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01-more",
        f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01",
        "nonsense",
    ],
)
def test_what_is_no_trace_begins_none(parent: str) -> None:
    assert trace.read(parent, []) is None


def test_later_versions_and_bad_states_of_traces() -> None:
    later = trace.read(f"cc-{TRACE}-{PARENT}-ff-what-comes", ["a=1", "b=2"])
    assert later is not None
    assert (later.flags, later.state) == ("03", "a=1,b=2")
    for state in (
        "a=1,a=2",
        "A=1",
        "=1",
        "a=\x01",
        "x" * 600,
        ",".join(f"k{n}=1" for n in range(33)),
    ):
        found = trace.read(f"00-{TRACE}-{PARENT}-00", [state])
        assert found is not None
        assert found.state == ""


async def test_tls_is_for_good() -> None:
    transport = httpx.ASGITransport(toy())
    async with httpx.AsyncClient(transport=transport, base_url="https://test") as client:
        secure = (await client.get("/short")).headers["strict-transport-security"]
        assert secure == "max-age=31622400; includeSubDomains"
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        assert "strict-transport-security" not in (await client.get("/short")).headers
