"""The settings of payments and webhooks: a part of `tbot.core.settings`."""

from __future__ import annotations

from decimal import Decimal
from typing import Literal

from pydantic import BaseModel, Field

from tbot.core.money import MoneyText

PerAsset = dict[str, MoneyText]
"""Asset → amount; `*` stands for every asset that is not named."""


class PaymentSettings(BaseModel):
    """Deposits and withdrawals of cash accounts.

    Amounts are JSON objects from asset to amount, such as `{"EUR": "10000", "*": "1000"}`; an
    asset that neither its name nor `*` covers has no such limit (for fees: no fee).
    """

    provider: Literal["simulated", "none"] = Field(
        "simulated", description="Who moves the money; `none` takes no payments."
    )
    deposit_max: PerAsset = Field(
        default_factory=lambda: {"*": Decimal(1_000_000)}, description="Largest deposit."
    )
    deposit_day_max: PerAsset = Field(
        default_factory=lambda: {"*": Decimal(10_000_000)},
        description="Largest sum of an account's deposits in one UTC day.",
    )
    withdrawal_max: PerAsset = Field(
        default_factory=lambda: {"*": Decimal(100_000)}, description="Largest withdrawal."
    )
    withdrawal_day_max: PerAsset = Field(
        default_factory=lambda: {"*": Decimal(500_000)},
        description="Largest sum of an account's withdrawals in one UTC day.",
    )
    approval_above: PerAsset = Field(
        default_factory=lambda: {"*": Decimal(10_000)},
        description="A withdrawal above this needs a second person's approval.",
    )
    approval_day_above: PerAsset = Field(
        default_factory=lambda: {"*": Decimal(25_000)},
        description="A withdrawal that takes an account's sum of 24 hours, without those that a "
        "second person approved, above this needs approval too.",
    )
    withdrawal_fee: PerAsset = Field(
        default_factory=dict, description="Fee of one withdrawal, on top of its amount."
    )
    open_max: int = Field(1000, ge=1, description="Most open payments of one account.")
    deposit_ttl_s: float = Field(
        86_400.0, gt=0, description="A deposit whose money has not come by then expires."
    )
    scan_interval_s: float = Field(
        1.0, gt=0, description="How often due payments are looked for without being told."
    )
    in_flight_max: int = Field(64, ge=1, description="Calls to the provider at once.")
    call_timeout_s: float = Field(5.0, gt=0, description="Longest call to the provider.")
    ask_after_s: float = Field(
        5.0, gt=0, description="Silence about a payment after which the provider is asked."
    )
    ask_interval_s_max: float = Field(
        600.0, gt=0, description="Longest time between two questions about one payment."
    )
    absence_s: float = Field(
        900.0,
        gt=0,
        description="Age of a submission before the provider's 'no such payment', together with "
        "its refusal to take it, is believed.",
    )
    breaker_failures: int = Field(
        5, ge=1, description="Failed calls in a row after which the provider is left alone."
    )
    breaker_open_s: float = Field(5.0, gt=0, description="For how long it is left alone.")
    callback_tolerance_s: float = Field(
        300.0, gt=0, description="How far a callback's timestamp may be from our clock."
    )


class SimulatedProviderSettings(BaseModel):
    """The built-in payment provider, for paper money; shares are from 0 to 1."""

    seed: int = Field(1, description="Seed of everything that is left to chance.")
    delay_s: float = Field(0.5, ge=0, description="Mean time until it settles a payment.")
    failure_share: float = Field(0.0, ge=0, le=1, description="Payments that fail.")
    return_share: float = Field(
        0.0, ge=0, le=1, description="Withdrawals that succeed and are then returned."
    )
    refusal_share: float = Field(0.0, ge=0, le=1, description="Requests refused outright.")
    timeout_share: float = Field(
        0.0, ge=0, le=1, description="Requests never answered; half of them are carried out."
    )
    duplicate_share: float = Field(0.0, ge=0, le=1, description="Callbacks sent twice.")
    shuffle_share: float = Field(
        0.0, ge=0, le=1, description="Payments whose callbacks come out of order."
    )
    callbacks_at_once: int = Field(64, ge=1, description="Callbacks under way at once.")
    callback_url: str = Field(
        "", description="Base URL for its callbacks; empty takes this server's own."
    )


class WebhookSettings(BaseModel):
    """Webhooks: entries of the journal, sent to addresses that users name."""

    enabled: bool = Field(True, description="Deliver them from this process, in its turn.")
    per_user_max: int = Field(20, ge=1, description="Most subscriptions of one user.")
    subscriptions_max: int = Field(1000, ge=1, description="Most subscriptions in all.")
    allow_private: bool = Field(
        False,
        description="Also deliver to private, loopback and link-local addresses: for tests, or "
        "where everybody with an account may reach the inner network anyway.",
    )
    in_flight_max: int = Field(64, ge=1, description="Requests under way at once.")
    timeout_s: float = Field(10.0, gt=0, description="Longest delivery attempt.")
    attempts_max: int = Field(
        100,
        ge=1,
        description="Attempts after which an entry is a dead letter, and the next follows; with "
        "the delays below, about three days.",
    )
    retry_base_s: float = Field(5.0, gt=0, description="First delay; it doubles, with jitter.")
    retry_max_s: float = Field(3600.0, gt=0, description="Longest delay between two attempts.")
    dead_letters_max: int = Field(
        2, ge=1, description="Dead letters in a row that disable a subscription."
    )
    secret_overlap_s: int = Field(
        86_400,
        ge=0,
        le=31_536_000,
        description="How long, at most and by default, messages are signed with a secret that was "
        "replaced, too.",
    )
    deliveries_kept: int = Field(1000, ge=1, description="Deliveries listed per subscription.")
    scan_interval_s: float = Field(
        5.0, gt=0, description="How often subscriptions are read again without being told."
    )
