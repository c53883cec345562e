"""What messages about orders may be: pure. What they ask for is checked as REST checks it.

Entry points: `items_of`, `keys_of`, `wait_s_of`, `checked`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from tbot.web.once import key_text
from tbot.web.problems import invalid


def items_of(message: dict[str, Any], most: int) -> Sequence[Any]:
    """The orders that a message is about, each to be checked by itself.

    Args:
        most: Items that a message may have.

    Raises:
        Problem: The message itself is not of its form.
    """
    match message["op"]:
        case "place":
            return _one_or_many(message, "order", "orders", most)
        case "cancel":
            return _one_or_many(message, "order_id", "order_ids", most)
        case "cancel_all":
            _check_members(message, {"account_id", "symbol"})
        case _:
            _check_members(message, {"order_id", "quantity", "limit_price", "key"})
    return (message,)


def _one_or_many(message: dict[str, Any], one: str, many: str, most: int) -> Sequence[Any]:
    _check_members(message, {one, many, "key", "wait_s"})
    if (one in message) == (many in message):
        raise invalid(f"has either {one} or {many}", pointer=f"/{one}")
    if one in message:
        return (message[one],)
    items = message[many]
    if not isinstance(items, list) or not 1 <= len(items) <= most:
        raise invalid(f"is a list of 1 to {most}", pointer=f"/{many}")
    return items


def _check_members(message: dict[str, Any], known: set[str]) -> None:
    for name in message:
        if name not in known and name not in ("op", "id"):
            raise invalid("is not a member that this message may have", pointer=f"/{name[:64]}")


def keys_of(message: dict[str, Any], count: int) -> Sequence[str | None]:
    """The idempotency key of each item.

    Raises:
        Problem: There is one, and it is not of its form.
    """
    key = message.get("key")
    if key is None:
        return (None,) * count
    if not isinstance(key, str):
        raise invalid("is a text", pointer="/key")
    text = key_text(key)
    return [text] if count == 1 else [f"{text}#{index}" for index in range(count)]


def wait_s_of(message: dict[str, Any], most_s: float) -> float | None:
    """How long the answer may wait, within our limit.

    Raises:
        Problem: It is no number of seconds.
    """
    wait_s = message.get("wait_s")
    if wait_s is None:
        return None
    good = isinstance(wait_s, int | float) and not isinstance(wait_s, bool)
    if not good or not math.isfinite(wait_s) or wait_s < 0:
        raise invalid("is a number of seconds", pointer="/wait_s")
    return min(float(wait_s), most_s)


def checked(validate: Callable[[Any], Any], value: Any, name: str = "") -> Any:
    """A value as the model of REST has it.

    Raises:
        RequestValidationError: As FastAPI would have raised it; pointers lead into the item.
    """
    try:
        return validate(value)
    except ValidationError as error:
        place = ("body", name) if name else ("body",)
        errors = error.errors(include_url=False, include_input=False)
        raise RequestValidationError(
            [{**item, "loc": (*place, *item["loc"])} for item in errors]
        ) from None
