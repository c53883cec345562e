"""Money is exact, and hostile numbers cost nothing."""

from __future__ import annotations

import asyncio
import decimal
import threading
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tbot.core import money
from tbot.core.errors import InvalidAmount

amounts = st.decimals(
    min_value=Decimal(-(10**20)), max_value=Decimal(10**20), places=18, allow_nan=False
)
HOSTILE = [
    "NaN",
    "Infinity",
    "-Infinity",
    "1e3",
    "1E+999999",
    "+1",
    " 1",
    "1 ",
    "01",
    ".5",
    "5.",
    "",
    "-",
    "1_000",
    "1,000",
    "0x10",
    "１",
    "1\u0000",
    "9" * 5000,
    "1." + "0" * 5000,
    "1." + "1" * 19,
    "9" * 39,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_no_plain_number_is_refused(text: str) -> None:
    with pytest.raises(InvalidAmount):
        money.parse(text)


@pytest.mark.parametrize("value", [1, 1.5, None, True, Decimal(1), b"1", ["1"]])
def test_only_strings_are_parsed(value: object) -> None:
    with pytest.raises(InvalidAmount):
        money.parse(value)  # type: ignore[arg-type]


def test_minus_zero_is_zero() -> None:
    assert not money.parse("-0.00").is_signed()


@given(amounts)
def test_text_reads_back_as_the_same_number(value: Decimal) -> None:
    written = money.text(value)
    assert "e" not in written.lower()
    assert Decimal(written) == value
    assert money.text(Decimal(written)) == written


@given(amounts, amounts.filter(bool), st.integers(0, 18))
def test_division_rounds_once(value: Decimal, by: Decimal, scale: int) -> None:
    from fractions import Fraction

    result = money.divide(value, by, scale, decimal.ROUND_HALF_EVEN)
    exact = Fraction(value) / Fraction(by) * 10**scale
    assert Fraction(result) * 10**scale == round(exact)  # Python rounds fractions half-even


def test_rounding_by_accident_raises_everywhere() -> None:
    def inexact() -> Decimal:
        return Decimal(1) / Decimal(3)

    with pytest.raises(decimal.Inexact):
        inexact()

    async def in_a_task() -> None:
        with pytest.raises(decimal.Inexact):
            inexact()

    asyncio.run(in_a_task())
    raised: list[bool] = []

    def in_a_thread() -> None:
        try:
            inexact()
        except decimal.Inexact:
            raised.append(True)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert raised == [True]


def test_floats_do_not_mix_in() -> None:
    with pytest.raises(decimal.FloatOperation):
        Decimal(0.1)  # noqa: RUF032


def test_json_carries_strings() -> None:
    class Model(BaseModel):
        amount: money.MoneyText

    assert Model.model_validate_json('{"amount": "12.50"}').model_dump_json() == '{"amount":"12.5"}'
    for body in ('{"amount": 12.5}', '{"amount": 12}', '{"amount": "1e2"}', '{"amount": null}'):
        with pytest.raises(ValidationError):
            Model.model_validate_json(body)
