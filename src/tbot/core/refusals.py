"""Why a command was refused: a closed list, part of the public API.

`docs/refusals.md` is generated from this enum (`make docs`) and a test fails when they differ.
A refusal changed nothing: no journal entry, no funds held, nothing sent.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Self


class Reason(StrEnum):
    """A reason's value is the `code` of the problem document; its `doc` is the table's text."""

    doc: str

    def __new__(cls, value: str, doc: str) -> Self:
        """Attach the documentation to the member."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.doc = doc
        return member

    ACCOUNT_CLOSED = "account_closed", "The account is closed: nothing more happens on it."
    ACCOUNT_FROZEN = "account_frozen", "The account is frozen by an administrator."
    ACCOUNT_EXISTS = "account_exists", "An account with this id already exists."
    ACCOUNT_KIND = "account_kind", "An account of this kind cannot do this."
    OVERDRAFT_NOT_ALLOWED = (
        "overdraft_not_allowed",
        "Only a cash account can have an overdraft, and only an administrator can give it.",
    )
    ASSET_UNKNOWN = "asset_unknown", "No such asset is known."
    VENUE_UNKNOWN = "venue_unknown", "No venue of this name can do this."
    CLIENT_ORDER_ID_REUSED = (
        "client_order_id_reused",
        "This client_order_id already names an order of this account with other content.",
    )
    IDEMPOTENCY_KEY_REUSED = (
        "idempotency_key_reused",
        "This Idempotency-Key was used for a request of other content.",
    )
    INSTRUMENT_UNKNOWN = "instrument_unknown", "No such instrument on the account's venue."
    INSTRUMENT_HALTED = "instrument_halted", "The venue does not trade this instrument now."
    INSTRUMENT_NOT_ALLOWED = (
        "instrument_not_allowed",
        "The account's risk limits do not list this instrument.",
    )
    VENUE_HALTED = "venue_halted", "Trading on this venue is halted; the detail says why."
    WITHDRAWALS_HALTED = "withdrawals_halted", "Withdrawals are halted; the detail says why."
    TRANSFERS_HALTED = "transfers_halted", "Transfers are halted; the detail says why."
    PRICE_OFF_TICK = "price_off_tick", "The price is not a multiple of the instrument's tick."
    PRICE_OUT_OF_RANGE = (
        "price_out_of_range",
        "The price is below the instrument's lowest or above its highest price.",
    )
    PRICE_OUTSIDE_COLLAR = (
        "price_outside_collar",
        "The price is further through the market than the account's price collar allows.",
    )
    QUANTITY_OFF_STEP = (
        "quantity_off_step",
        "The quantity is not a multiple of the instrument's step.",
    )
    QUANTITY_OUT_OF_RANGE = (
        "quantity_out_of_range",
        "The quantity is below the instrument's smallest or above its largest.",
    )
    AMOUNT_TOO_PRECISE = (
        "amount_too_precise",
        "The amount has more decimals than its asset; nothing is rounded for you.",
    )
    NOTIONAL_OUT_OF_RANGE = (
        "notional_out_of_range",
        "Price times quantity is outside what the instrument allows.",
    )
    MAX_ORDER_NOTIONAL = (
        "max_order_notional",
        "The order is worth more than the account's limit for one order.",
    )
    MAX_OPEN_ORDERS = "max_open_orders", "The account has as many open orders as it may."
    NO_MARKET_PRICE = (
        "no_market_price",
        "No fresh market price is known, and this order cannot be checked without one.",
    )
    INSUFFICIENT_FUNDS = "insufficient_funds", "What is available does not cover the amount."
    ACCOUNT_NEGATIVE = (
        "account_negative",
        "A balance of the account is below zero: no new orders until it is settled.",
    )
    GATEWAY_AWAY = (
        "gateway_away",
        "No process sends orders to the venue at the moment; try again in a few seconds.",
    )
    SEND_TOO_LATE = (
        "send_too_late",
        "The venue's rate budget would let this order out only after its send-by time.",
    )
    ACCOUNT_NOT_EMPTY = (
        "account_not_empty",
        "An account is closed only when all its balances are zero and nothing on it is open.",
    )
    TARGET_NOT_FOUND = "target_not_found", "No account has the target's id."
    TRANSFER_SAME_ACCOUNT = (
        "transfer_same_account",
        "Source and target of a transfer have to be two accounts.",
    )
    TRANSFER_CROSSES_VENUES = (
        "transfer_crosses_venues",
        "Money moves between cash accounts, or between trading accounts on one venue.",
    )
    TRANSFERS_PENDING_MAX = (
        "transfers_pending_max",
        "The account has as many pending transfers as it may.",
    )
    TRANSFER_NOT_FOUND = "transfer_not_found", "The account has no such transfer."
    TRANSFER_NOT_ALLOWED = (
        "transfer_not_allowed",
        "The source's owner posts a transfer, the target's reverses it, either voids it.",
    )
    TRANSFER_NOT_PENDING = "transfer_not_pending", "The transfer has been resolved already."
    TRANSFER_EXPIRED = "transfer_expired", "The pending transfer's time is over."
    TRANSFER_AMOUNT_EXCEEDED = (
        "transfer_amount_exceeded",
        "A pending transfer can be posted up to the amount it holds.",
    )
    TRANSFER_NOT_POSTED = "transfer_not_posted", "Only a posted transfer can be reversed."
    TRANSFER_REVERSED = "transfer_reversed", "The transfer has been reversed already."
    TRANSFER_IS_REVERSAL = "transfer_is_reversal", "A reversal cannot be reversed."
    ORDER_NOT_FOUND = "order_not_found", "The account has no such order."
    PRECONDITION_FAILED = (
        "precondition_failed",
        "It was changed since the version that If-Match names: read it again.",
    )
    ORDER_CLOSED = "order_closed", "The order has already reached a final state."
    PAYMENT_NOT_FOUND = "payment_not_found", "The account has no such payment."
    PAYMENT_STATE = "payment_state", "The payment's state does not allow this any more."
    PAYMENT_TOO_LARGE = (
        "payment_too_large",
        "The amount is above what one payment of this asset may have.",
    )
    PAYMENT_DAY_LIMIT = (
        "payment_day_limit",
        "With it, the account's payments of this asset would exceed the limit of this UTC day.",
    )
    PAYMENTS_OPEN_MAX = "payments_open_max", "The account has as many open payments as it may."
    APPROVER_IS_REQUESTER = (
        "approver_is_requester",
        "Who asked for a payment cannot approve it: a second person has to.",
    )
    WEBHOOKS_MAX = "webhooks_max", "There are as many webhooks as there may be."
    PAYMENT_CONTRADICTED = (
        "payment_contradicted",
        "What the provider says cannot be true of this payment; somebody has to look at it.",
    )


PASSING: Final = frozenset(
    {
        Reason.INSTRUMENT_HALTED,
        Reason.VENUE_HALTED,
        Reason.WITHDRAWALS_HALTED,
        Reason.TRANSFERS_HALTED,
        Reason.NO_MARKET_PRICE,
        Reason.GATEWAY_AWAY,
        Reason.SEND_TOO_LATE,
    }
)
"""Refusals that are about the moment: a repetition under the same key is decided anew."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A command that was not accepted, and why. Nothing changed.

    Attributes:
        reason: From the closed enum.
        detail: One sentence for the caller with the figures that decided.
        facts: Those figures by name, for machines; values are JSON types.
    """

    reason: Reason
    detail: str = ""
    facts: dict[str, Any] | None = None
