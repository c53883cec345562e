"""Keys, what is kept under them, and amounts: the same by the short and by the long way."""

from __future__ import annotations

import hashlib
from decimal import Decimal
from typing import Annotated, Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import AfterValidator, TypeAdapter, ValidationError
from starlette.responses import Response

from tbot.core.money import MoneyText
from tbot.journal.once import contents_of, key_of
from tbot.web.answers import json_answer
from tbot.web.fields import PositiveAmount, _positive
from tbot.web.once import _kept


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Location": "/v1/x/1"},
        {"Location": "/v1/x/1", "ETag": '"a-1"'},
        {"etag": '"a-1"', "Idempotent-Replayed": "true", "Link": "<x>"},
    ],
)
def test_a_json_answer_is_kept_as_any_other(headers: dict[str, str]) -> None:
    answer = json_answer({"id": "1"}, 201, headers)
    plain = Response(b'{"id":"1"}', 201, dict(answer.headers))
    short, long = _kept(answer), _kept(plain)
    assert short == long
    assert list(short.headers) == list(long.headers)  # they are stored as they stand
    assert short.headers["content-type"] == "application/json"


def test_keys_and_contents_stay_what_they_were() -> None:
    """They are in the tables of those who run an older version."""
    user = UUID(int=1)
    told = user.bytes + b"k"
    expected = hashlib.blake2b(told, digest_size=16, person=b"tbot:once").digest()
    assert key_of(user, "k").bytes == expected
    assert key_of(user, "k").bytes == expected
    digest = hashlib.blake2b(digest_size=16, key=b"s" * 64)
    for part in (b"POST /x", b"{}"):
        digest.update(len(part).to_bytes(4, "big") + part)
    for _ in range(2):
        assert contents_of(b"s" * 64, b"POST /x")(b"{}") == digest.digest()


_short: TypeAdapter[Decimal] = TypeAdapter(PositiveAmount)
_long: TypeAdapter[Decimal] = TypeAdapter(Annotated[MoneyText, AfterValidator(_positive)])


def _read(adapter: TypeAdapter[Decimal], value: Any) -> str:
    try:
        return repr(adapter.validate_python(value))
    except ValidationError as error:
        return repr(error.errors(include_url=False, include_context=False))


@given(
    st.from_regex(r"-?[0-9]{0,20}(\.[0-9]{0,20})?", fullmatch=True)
    | st.text(max_size=8)
    | st.integers()
    | st.sampled_from([Decimal("1.5"), Decimal(0), Decimal(-1), Decimal("1E+30"), 1.5, True, ["1"]])
    | st.none()
)
@example("0")
@example("0.00")
@example("1\n")
@example("\u0661")
@example("999999999999999999.999999999999999999")
@example("1000000000000000000")
def test_an_amount_is_read_alike_by_the_short_and_the_long_way(value: Any) -> None:
    assert _read(_short, value) == _read(_long, value)
