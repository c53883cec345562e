"""Strict JSON, bounded bodies, cursors."""

from __future__ import annotations

import contextlib
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from tbot.core.errors import InvalidCursor
from tbot.web.limits import check_media_type, limited, parse_json
from tbot.web.pages import decode_cursor, encode_cursor
from tbot.web.problems import Problem


def code_of(body: bytes, depth_max: int = 8) -> str:
    with pytest.raises(Problem) as error:
        parse_json(body, depth_max)
    return error.value.code


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{'a':1}",
        b'{"a":1,}',
        b'{"a":1}{',
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        b"NaN",
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'"\xff"',
        b"\xef\xbb\xbf{}",
        '{"a":1}'.encode("utf-16"),
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"[" * 9 + b"]" * 9,
        b"1" * 5000,
        b'"\x00"',
        b'"\t"',
    ],
)
def test_what_is_not_strict_json(body: bytes) -> None:
    assert code_of(body) == "malformed_json"


def test_depth_counts_nesting_not_brackets() -> None:
    assert parse_json(b"[" * 8 + b"]" * 8, 8) is not None
    assert len(parse_json(b"[[],[],[],[],[],[],[],[],[],[],[]]", 2)) == 11
    assert parse_json(b'"[[[[[[[[[[[[[[[["', 2) == "[" * 16
    assert parse_json(b'["\\"[[[[[[[[", "]"]', 2) == ['"[[[[[[[[', "]"]


@given(st.binary(max_size=200))
def test_any_bytes_are_json_or_a_problem(body: bytes) -> None:
    with contextlib.suppress(Problem):  # and nothing else may come out of it
        parse_json(body, 8)


def scope(*headers: tuple[bytes, bytes], path: bytes = b"/", query: bytes = b"") -> dict[str, Any]:
    return {"headers": headers, "raw_path": path, "query_string": query}


async def test_a_body_is_counted_as_it_comes() -> None:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 600, "more_body": True}

    counted = limited(scope(), receive, 1000)
    await counted()
    with pytest.raises(Problem) as error:
        await counted()
    assert error.value.status_code == 413
    assert error.value.headers == {"Connection": "close"}


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (scope((b"content-length", b"1001")), 413),
        (scope((b"content-length", b"9" * 400)), 413),
        (scope(path=b"/" * 9000), 414),
        (scope(query=b"a" * 9000), 414),
    ],
)
async def test_refused_by_what_it_says(asked: dict[str, Any], status: int) -> None:
    async def receive() -> dict[str, Any]:
        raise AssertionError("nothing may be read")

    with pytest.raises(Problem) as error:
        limited(asked, receive, 1000)
    assert error.value.status_code == status


@pytest.mark.parametrize(
    ("given_type", "encoding", "good"),
    [
        ("application/json", None, True),
        ("application/json; charset=utf-8", None, True),
        ('Application/JSON;charset="UTF-8"', "identity", True),
        ("application/json; charset=utf-16", None, False),
        ("application/json", "gzip", False),
        ("text/json", None, False),
        ("application/problem+json", None, False),
        ("application/x-www-form-urlencoded", None, False),
        ("multipart/form-data; boundary=x", None, False),
        ("application/json, text/plain", None, False),
        ("", None, False),
    ],
)
def test_media_types(given_type: str, encoding: str | None, good: bool) -> None:
    headers = {"content-type": given_type}
    if encoding is not None:
        headers["content-encoding"] = encoding
    if good:
        check_media_type(Headers(headers), form=False)
        return
    with pytest.raises(Problem) as error:
        check_media_type(Headers(headers), form=False)
    assert error.value.status_code == 415


SECRET, READER = b"s" * 32, UUID(int=1)


def test_a_cursor_only_works_where_it_was_given() -> None:
    cursor = encode_cursor(SECRET, READER, "orders", {"side": "buy"}, ["x", 5])
    assert decode_cursor(SECRET, READER, "orders", {"side": "buy"}, cursor) == ["x", 5]
    for secret, reader, name, filters in (
        (b"t" * 32, READER, "orders", {"side": "buy"}),
        (SECRET, UUID(int=2), "orders", {"side": "buy"}),
        (SECRET, READER, "fills", {"side": "buy"}),
        (SECRET, READER, "orders", {"side": "sell"}),
        (SECRET, READER, "orders", {}),
    ):
        with pytest.raises(InvalidCursor):
            decode_cursor(secret, reader, name, filters, cursor)


@given(st.text(max_size=600))
def test_a_made_up_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidCursor):
        decode_cursor(SECRET, READER, "orders", {}, cursor)
