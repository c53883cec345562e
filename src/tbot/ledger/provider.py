"""What a payment provider is to T-Bot: the words both sides use, and nothing that moves bytes.

A provider takes payments under *our* ids, and an id once and for all: what is submitted again
under the same id is the same payment. What it says of a payment is a `Report`: a fact, which may
come late, twice or in the wrong order, by callback or as an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Protocol
from uuid import UUID


class Said(StrEnum):
    """What a provider says became of a payment."""

    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    RETURNED = "returned"
    """A withdrawal came back: the money is with us again."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a provider is asked to pay out, or to expect.

    Attributes:
        payment_id: Our id: the provider never carries out two payments of one id.
        destination: Where to; None for a deposit.
    """

    payment_id: UUID
    asset: str
    amount: Decimal
    destination: str | None


@dataclass(frozen=True, slots=True)
class Report:
    """What a provider says of one payment.

    Attributes:
        payment_id: Ours.
        amount: What moved; of a deposit it need not be what was asked for.
        reference: The provider's own id of that movement of money. Never used twice.
        reason: Why it failed or was returned.
    """

    payment_id: UUID
    said: Said
    asset: str
    amount: Decimal
    reference: str
    reason: str | None = None


class Provider(Protocol):
    """A payment provider, as the dispatcher and the callback route use it.

    Every call may raise `ProviderNotSent` (nothing happened) and `ProviderAmbiguous` (anything may
    have happened); `submit` and `announce` also `ProviderRefused`.
    """

    name: str
    """Part of the counter-account `outside:<name>` and of the callbacks' path."""
    repeatable_s: float
    """How long our ids are remembered: a submission older than this is never repeated."""

    async def submit(self, order: Order) -> Report:
        """Have a withdrawal paid out; repeating it is the same payout."""

    async def announce(self, order: Order) -> str:
        """Have a deposit expected; how the customer is to pay it. Repeating it is harmless."""

    async def look_up(self, payment_id: UUID) -> Report | None:
        """What became of a payment; None when there is none of this id."""

    def verify(self, message_id: str, timestamp: str, signatures: str, body: bytes) -> None:
        """Check that a callback comes from the provider, before anything of it is believed.

        Raises:
            InvalidSignature: It does not, or it is too old.
        """

    def read(self, body: bytes) -> Report:
        """The report in a verified callback's body.

        Raises:
            ProviderError: It is not understood.
        """
