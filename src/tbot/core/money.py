"""Exact decimal arithmetic for money, prices and quantities.

Entry points: `parse`, `text`, `quantize`, `is_multiple`, `divide`, `multiply`, `MoneyText`.

Invariants:

1. Importing this module makes `CONTEXT` the decimal context of the importing thread, of every
   asyncio task started from it and of every thread started later. It traps `Inexact`: a result
   that would have to be rounded raises instead, wherever in the program it happens.
2. Rounding happens only in `quantize` and `divide`, which demand a named rounding mode.
3. Text is checked for length and shape *before* it is parsed, so a hostile number costs nothing.
"""

from __future__ import annotations

import decimal
import re
from decimal import Decimal
from functools import cache
from typing import Annotated, Any, Final

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from tbot.core.errors import InvalidAmount

TEXT_LENGTH_MAX: Final = 64
DIGITS_MAX: Final = 38
SCALE_MAX: Final = 18

# Two 38-digit factors give at most 76 digits; 80 leaves room for a sum of such products.
CONTEXT: Final = decimal.Context(
    prec=80,
    rounding=decimal.ROUND_HALF_EVEN,
    traps=[
        decimal.Inexact,
        decimal.InvalidOperation,
        decimal.DivisionByZero,
        decimal.Overflow,
        decimal.FloatOperation,
    ],
)
_ROUNDING: Final = decimal.Context(
    prec=80, traps=[decimal.InvalidOperation, decimal.DivisionByZero, decimal.Overflow]
)

ZERO: Final = Decimal(0)
ONE: Final = Decimal(1)

_SHAPE: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?", re.ASCII)
_ALMOST: Final = re.compile(r"[0-9eE+., _-]{1,24}|-?(?i:nan|inf|infinity)", re.ASCII)


def install() -> None:
    """Make `CONTEXT` the context of this thread and the template of new threads' contexts."""
    decimal.DefaultContext.prec = CONTEXT.prec
    decimal.DefaultContext.rounding = CONTEXT.rounding
    for signal in (
        decimal.Inexact,
        decimal.InvalidOperation,
        decimal.DivisionByZero,
        decimal.Overflow,
        decimal.FloatOperation,
    ):
        decimal.DefaultContext.traps[signal] = True
    decimal.setcontext(CONTEXT.copy())


install()


def parse(value: str) -> Decimal:
    """Read a plain decimal number: optional minus, digits, optional fraction.

    Args:
        value: At most 64 ASCII characters and 38 significant digits, 18 of them decimals.
            No exponent, no sign but minus, no NaN or Infinity, no surrounding space.

    Raises:
        InvalidAmount: The text has another shape or is out of bounds. Nothing was rounded; the
            caller reports it and asks for the number again.

    Example:
        >>> parse("0.10")
        Decimal('0.10')
        >>> parse("1e3")
        Traceback (most recent call last):
        ...
        tbot.core.errors.InvalidAmount: '1e3' is not a plain decimal number such as "12.50"
    """
    if not isinstance(value, str):
        raise InvalidAmount(
            'amounts, prices and quantities travel as strings such as "12.50", never as numbers'
        )
    if len(value) > TEXT_LENGTH_MAX:
        raise InvalidAmount(f"longer than {TEXT_LENGTH_MAX} characters")
    if not _SHAPE.fullmatch(value):
        # What is no number at all may be something else, put here by mistake: not repeated.
        shown = repr(value) if _ALMOST.fullmatch(value) else "this"
        raise InvalidAmount(f'{shown} is not a plain decimal number such as "12.50"')
    number = Decimal(value)
    if len(value) > SCALE_MAX:  # anything shorter is within both bounds
        _, digits, exponent = number.as_tuple()
        if isinstance(exponent, int) and -exponent > SCALE_MAX:
            raise InvalidAmount(f"more than {SCALE_MAX} decimals")
        if len(digits) > DIGITS_MAX:
            raise InvalidAmount(f"more than {DIGITS_MAX} digits")
    return number or ZERO


def text(value: Decimal) -> str:
    """Write a number as JSON carries it: no exponent, no trailing zeros, no negative zero.

    Example:
        >>> text(Decimal("1.500")), text(Decimal("1E+3")), text(Decimal("-0.0"))
        ('1.5', '1000', '0')
    """
    if not value:
        return "0"
    written = str(value)
    if "E" in written:
        written = format(value, "f")
    if "." in written and written[-1] == "0":
        return written.rstrip("0").rstrip(".")
    return written


def scale_of(value: Decimal) -> int:
    """Number of decimals that the value needs.

    Example:
        >>> scale_of(Decimal("1.500")), scale_of(Decimal("100"))
        (1, 0)
    """
    written = str(value)
    if "E" in written:
        written = format(value, "f")
    point = written.find(".")
    if point < 0:
        return 0
    if written[-1] == "0":
        written = written.rstrip("0")
    return len(written) - point - 1


def quantize(value: Decimal, scale: int, rounding: str) -> Decimal:
    """Round to `scale` decimals in the named mode (`decimal.ROUND_*`).

    Example:
        >>> quantize(Decimal("1.005"), 2, decimal.ROUND_UP)
        Decimal('1.01')
    """
    return value.quantize(_unit(scale), rounding=rounding, context=_ROUNDING)


@cache
def _unit(scale: int) -> Decimal:
    return ONE.scaleb(-scale)


def is_multiple(value: Decimal, unit: Decimal) -> bool:
    """Whether `value` lies on the grid of `unit` (a tick, a step); a zero unit has no grid.

    Example:
        >>> is_multiple(Decimal("0.30"), Decimal("0.1"))
        True
        >>> is_multiple(Decimal("0.35"), Decimal("0.1"))
        False
    """
    return not unit or not value % unit


def floor_to(value: Decimal, unit: Decimal) -> Decimal:
    """The largest multiple of `unit` (> 0) that is not above `value` (>= 0).

    Example:
        >>> floor_to(Decimal("0.37"), Decimal("0.1"))
        Decimal('0.3')
    """
    return value // unit * unit


def divide(value: Decimal, by: Decimal, scale: int, rounding: str) -> Decimal:
    """Divide and round to `scale` decimals in the named mode.

    Example:
        >>> divide(Decimal(1), Decimal(3), 4, decimal.ROUND_DOWN)
        Decimal('0.3333')
    """
    # The quotient is cut towards zero at 80 digits first; amounts have at most 38, so the cut
    # cannot turn a value across a rounding boundary of `scale` <= 18 except at exact ties,
    # which ROUND_05UP keeps distinguishable (a cut digit 0 or 5 is nudged away).
    exact = _ROUNDING.copy()
    exact.rounding = decimal.ROUND_05UP
    return quantize(exact.divide(value, by), scale, rounding)


def from_json(value: Any) -> Any:
    """What Pydantic reads a `MoneyText` by.

    Raises:
        ValueError: As `parse` says.
    """
    if isinstance(value, Decimal):
        return value
    try:
        return parse(value)
    except InvalidAmount as error:
        raise ValueError(str(error)) from None


MoneyText = Annotated[
    Decimal,
    PlainValidator(from_json),
    PlainSerializer(text, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?$",
            "maxLength": TEXT_LENGTH_MAX,
            "examples": ["12.50"],
        }
    ),
]
"""A Decimal that is a string in JSON, in Pydantic models of requests and answers alike."""
