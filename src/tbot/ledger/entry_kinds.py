"""The kinds of entries that an account's journal may hold: a closed list, part of the public API.

Entry points: `KINDS`; `WANTED`, what a webhook may ask for. What writes entries names their kinds
where it writes them; a test holds this list against that.
"""

from __future__ import annotations

from typing import Final

KINDS: Final = (
    "account.deposited",
    "account.limits_changed",
    "account.opened",
    "account.renamed",
    "account.shared",
    "account.status_changed",
    "account.unshared",
    "order.accepted",
    "order.acknowledged",
    "order.adopted",
    "order.cancel_refused",
    "order.cancel_requested",
    "order.canceled",
    "order.expired",
    "order.filled",
    "order.rejected",
    "order.unknown",
    "payment.announced",
    "payment.approved",
    "payment.canceled",
    "payment.expired",
    "payment.failed",
    "payment.received",
    "payment.rejected",
    "payment.requested",
    "payment.returned",
    "payment.submitted",
    "payment.succeeded",
    "transfer.created",
    "transfer.expired",
    "transfer.posted",
    "transfer.received",
    "transfer.voided",
)
GROUPS: Final = tuple(dict.fromkeys(kind.partition(".")[0] for kind in KINDS))
WANTED: Final = ("*", *(f"{group}.*" for group in GROUPS), *KINDS)
"""A kind, all of a group (`order.*`), or all there are."""
