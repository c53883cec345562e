"""Parameters of a call: text in, checked values out, refusals in the venue's own words. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec

from tbot.core.errors import ExchangeRefusal, InvalidAmount
from tbot.core.money import ZERO, parse, scale_of
from tbot.exchange.floor import Floor
from tbot.exchange.instruments import SCALE, Refusal

type Params = Mapping[str, str]


@dataclass(slots=True)
class Caller:
    """Who calls, and when.

    Attributes:
        account: Name of the account behind the key; empty for public calls.
    """

    floor: Floor
    address: str
    now_ms: int
    account: str = ""


def mandatory(params: Params, name: str) -> str:
    """A parameter that must be there."""
    value = params.get(name)
    if not value:
        raise ExchangeRefusal(
            -1102, f"Mandatory parameter '{name}' was not sent, was empty/null, or malformed."
        )
    return value


def integer(params: Params, name: str, default: int | None = None) -> int | None:
    """An optional whole number."""
    value = params.get(name)
    if value is None or value == "":
        return default
    if not value.isascii() or not value.isdigit() or len(value) > 19:
        raise ExchangeRefusal(
            -1100,
            f"Illegal characters found in parameter '{name}'; legal range is '^[0-9]{{1,20}}$'.",
        )
    return int(value)


def limit_of(params: Params, default: int, most: int) -> int:
    """The `limit` parameter."""
    limit = integer(params, "limit", default) or 0
    if limit < 1:
        raise ExchangeRefusal(-1130, "Data sent for parameter 'limit' is not valid.")
    return min(limit, most)


def amount(params: Params, name: str) -> Decimal:
    """An optional amount; zero when it was not sent."""
    value = params.get(name)
    if value is None or value == "":
        return ZERO
    try:
        number = parse(value)
    except InvalidAmount:
        number = Decimal(-1)
    if number < 0:
        raise ExchangeRefusal(
            -1100,
            f"Illegal characters found in parameter '{name}'; legal range is "
            "'^([0-9]{1,20})(\\.[0-9]{1,20})?$'.",
        )
    if scale_of(number) > SCALE:
        raise ExchangeRefusal(-1111, f"Parameter '{name}' has too much precision.")
    return number


def symbol_of(caller: Caller, params: Params) -> str:
    """The mandatory `symbol`, which must be traded here."""
    symbol = mandatory(params, "symbol")
    if symbol not in caller.floor.engine.markets:
        raise ExchangeRefusal(-1121, "Invalid symbol.")
    return symbol


def symbols_of(caller: Caller, params: Params) -> tuple[list[str], bool]:
    """The symbols asked for, and whether the answer is one object instead of a list."""
    if params.get("symbol"):
        return [symbol_of(caller, params)], True
    if params.get("symbols"):
        try:
            names = msgspec.json.decode(params["symbols"], type=list[str])
        except msgspec.DecodeError:
            raise ExchangeRefusal(
                -1100, "Illegal characters found in parameter 'symbols'."
            ) from None
        return [symbol_of(caller, {"symbol": name}) for name in names], False
    return list(caller.floor.engine.markets), False


def one_or_all(
    caller: Caller, params: Params, make: Callable[[str], dict[str, Any]]
) -> dict[str, Any] | list[dict[str, Any]]:
    """An answer for the one symbol asked for, or a list for several."""
    symbols, single = symbols_of(caller, params)
    return make(symbols[0]) if single else [make(symbol) for symbol in symbols]


def refuse(refusal: Refusal) -> ExchangeRefusal:
    """A refusal of the engine as an answer."""
    return ExchangeRefusal(refusal.code, refusal.message)
