"""Types of members, parameters and path segments: what is not of these shapes gets no further."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    StringConstraints,
    WithJsonSchema,
)

from tbot.auth.users import USERNAME_PATTERN
from tbot.core import money
from tbot.core.ids import read_id
from tbot.core.money import MoneyText

SYMBOL_PATTERN: Final = r"^[A-Z0-9]{1,20}-[A-Z0-9]{1,20}$"
ASSET_PATTERN: Final = r"^[A-Z0-9]{1,20}$"
CLIENT_ORDER_ID_PATTERN: Final = r"^[A-Za-z0-9._:-]{1,36}$"
_UUID_LENGTH: Final = 36
_NO_ID: Final = "is not an id: 32 lower-case hexadecimal digits in five groups"
_UUID: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.ASCII)


class Request(BaseModel):
    """Base of request bodies: what is not known is refused, never ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _canonical(value: Any) -> Any:
    # Pydantic alone would also take braces, urn:uuid: and digits without dashes.
    if isinstance(value, str) and len(value) == _UUID_LENGTH:
        return _known_id(value)
    if isinstance(value, UUID):
        return value
    raise ValueError(_NO_ID)


@lru_cache(8192)  # the same accounts are named again and again
def _known_id(value: str) -> UUID:
    if not _UUID.fullmatch(value):
        raise ValueError(_NO_ID)
    return read_id(value)


Id = Annotated[
    UUID,
    BeforeValidator(_canonical),
    WithJsonSchema(
        {
            "type": "string",
            "format": "uuid",
            "examples": ["0199f3a2-7c4e-7c51-9d0e-3f6b8a2c4d10"],
        }
    ),
]
"""A UUID in its one canonical form."""

Symbol = Annotated[
    str, StringConstraints(pattern=SYMBOL_PATTERN), Field(examples=["BTC-USDT"], strict=True)
]
Asset = Annotated[
    str, StringConstraints(pattern=ASSET_PATTERN), Field(examples=["USDT"], strict=True)
]
Username = Annotated[
    str, StringConstraints(pattern=USERNAME_PATTERN), Field(examples=["ann"], strict=True)
]
ClientOrderId = Annotated[
    str,
    StringConstraints(pattern=CLIENT_ORDER_ID_PATTERN),
    Field(
        description="Your own name for the order, unique in the account for ever: repeating a "
        "request under it never places a second order.",
        examples=["rebalance-2026-11-22.1"],
        strict=True,
    ),
]


def _harmless(value: str) -> str:
    """Refuse what could deceive or break whoever shows it: controls, direction, lone surrogates."""
    for character in value:
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"):
            raise ValueError("has an invisible or control character")
    if value != value.strip():
        raise ValueError("begins or ends with a space")
    return unicodedata.normalize("NFC", value)


Harmless: Final = AfterValidator(_harmless)

Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=64),
    Harmless,
    Field(examples=["main"], strict=True),
]

Metadata = Annotated[
    dict[
        Annotated[str, StringConstraints(min_length=1, max_length=40), Harmless],
        Annotated[str, StringConstraints(max_length=500), Harmless, Field(strict=True)],
    ],
    Field(max_length=20, description="Notes of your own.", examples=[{"invoice": "2026-117"}]),
]

Timestamp = Annotated[
    str,
    WithJsonSchema(
        {
            "type": "string",
            "format": "date-time",
            "description": "RFC 3339, UTC, with microseconds.",
            "examples": ["2026-11-22T05:14:43.123456Z"],
        }
    ),
]
"""An instant as `core.clock.stamp` writes it."""


_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?"
    r"([Zz]|[+-][0-9]{2}:[0-9]{2})",
    re.ASCII,
)


def _moment(value: Any) -> Any:
    # Pydantic alone would also take numbers, dates, and times without a zone.
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise ValueError("is not an RFC 3339 time with its zone, such as 2026-11-22T05:14:43Z")
    try:
        moment = datetime.fromisoformat(value.upper()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError("is no time of any calendar") from None
    if not 1970 <= moment.year <= 9998:
        raise ValueError("has to be of the years 1970 to 9998")
    return moment


Moment = Annotated[
    datetime,
    BeforeValidator(_moment),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-22T05:14:43Z"]}),
]
"""An instant that a caller names: RFC 3339 with a zone, at most microseconds."""


# Far above any real amount, and far enough below what the tables hold to add many of them.
_AMOUNT_MAX: Final = Decimal(10) ** 18
GOOD_AMOUNT: Final = re.compile(r"(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?", re.ASCII)
"""What is within every bound that there is for a positive amount, if it is not zero."""


def _positive(value: Decimal) -> Decimal:
    if value <= 0:
        raise ValueError("has to be above zero")
    if value >= _AMOUNT_MAX:
        raise ValueError("is larger than any amount may be")
    return value


def _positive_from_json(value: Any) -> Any:
    # What is good in one step, as nearly all is; what is not is told by those who take several.
    if isinstance(value, str) and GOOD_AMOUNT.fullmatch(value):
        amount = Decimal(value)
        if amount:
            return amount
    return _positive(money.from_json(value))


PositiveAmount = Annotated[
    Decimal,
    PlainValidator(_positive_from_json),
    PlainSerializer(money.text, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "description": "A plain decimal above zero.",
            "pattern": r"^(?!0(\.0+)?$)(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?$",
            "examples": ["12.50"],
        }
    ),
]
"""A plain decimal above zero, as a string."""


def _share(value: Decimal) -> Decimal:
    if not 0 <= value <= 1:
        raise ValueError("has to be from 0 to 1")
    return value


Share = Annotated[
    MoneyText,
    AfterValidator(_share),
    WithJsonSchema(
        {
            "type": "string",
            "description": "A plain decimal from 0 to 1.",
            "pattern": r"^(0(\.[0-9]{1,18})?|1(\.0{1,18})?)$",
            "examples": ["0.05"],
        }
    ),
]
"""A part of a whole: a plain decimal from 0 to 1, as a string."""
