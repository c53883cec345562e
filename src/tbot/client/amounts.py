"""Exact numbers on their way to the server."""

from __future__ import annotations

from decimal import Decimal

type Amount = Decimal | int | str
"""An exact number; floats are refused, because they are not."""


def amount_text(amount: Amount) -> str:
    """An exact number as the server takes it.

    Example:
        >>> amount_text(Decimal("1E+2")), amount_text(5), amount_text("0.10")
        ('100', '5', '0.10')
    """
    if isinstance(amount, bool) or not isinstance(amount, Decimal | int | str):
        raise TypeError("amounts are Decimal, int or str: a float is not exact")
    return format(amount, "f") if isinstance(amount, Decimal) else str(amount)
