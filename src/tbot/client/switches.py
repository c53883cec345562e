"""Kill switches: `client.switches`.

    await client.switches.halt("trading", "prices look wrong")      # no order gets in from here on

    async for switch in client.switches.list(halted=True):
        print(switch.name, switch.since, switch.who, switch.reason)

    halted = await client.switches.get("trading")
    await client.switches.resume("trading", "the feed is back", if_match=halted.etag)

Names are `trading`, `withdrawals`, `transfers`, `venue:NAME` and `instrument:VENUE:SYMBOL`. Halting
takes the scope `switches:operate`. Resuming also takes a fresh proof, which the client gives by
itself where it was given a password or `second_factor`; an API key can halt and not resume.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from tbot.client.http import ANY, Api


@dataclass(frozen=True, slots=True)
class Switch:
    """A switch as it is now.

    Attributes:
        reason, since, who: Of its last turn; None where nobody ever turned it.
        by: The same as `who` in parts: `kind`, and where known `user`, `session`, `address`,
            `request` and `name`.
        etag: For `if_match` of a resumption; None in lists.
    """

    name: str
    halted: bool
    reason: str | None = None
    since: datetime | None = None
    who: str | None = None
    by: dict[str, str] | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class SwitchTurn:
    """A switch as it was turned at one time; `who` and `by` as in `Switch`."""

    halted: bool
    reason: str
    at: datetime
    who: str
    by: dict[str, str]


class Switches:
    """The kill switches of a server; `TBotClient.switches` is one.

    Writes raise `Refused` with the `code` of why nothing was done, `NotFound` for what cannot be
    halted, `AuthError`, `Unavailable` (nothing was done), or `OutcomeUnknown`: call again with the
    same `key`.
    """

    def __init__(self, api: Api) -> None:
        self._api = api

    def list(self, *, halted: bool | None = None) -> AsyncIterator[Switch]:
        """Switches by name: those of the whole and of venues, and all that were ever turned.

        Args:
            halted: Only those that are, or are not.
        """
        word = None if halted is None else str(halted).lower()
        return self._api.pages(Switch, "/v1/switches", {"halted": word})

    async def get(self, name: str) -> Switch:
        """A switch as it is now."""
        return await self._api.request(Switch, "GET", f"/v1/switches/{name}")

    def turns(self, name: str) -> AsyncIterator[SwitchTurn]:
        """How a switch was turned, newest first."""
        return self._api.pages(SwitchTurn, f"/v1/switches/{name}/turns", {})

    async def halt(
        self, name: str, reason: str, *, to_come: bool = False, key: str | None = None
    ) -> Switch:
        """Halt: nothing that comes after this has returned is accepted.

        Args:
            reason: Kept, and told to whoever is refused.
            to_come: Also a venue or instrument that is not known there yet; else that is refused
                as `switch_unknown`, because it would halt nothing.
            key: An `Idempotency-Key` of your own, to be able to call again after a crash.
        """
        body = {"reason": reason, "to_come": to_come}
        return await self._api.request(
            Switch, "POST", f"/v1/switches/{name}/halt", json=body, key=key
        )

    async def resume(
        self, name: str, reason: str, *, if_match: str | None = None, key: str | None = None
    ) -> Switch:
        """Resume what is halted.

        Args:
            reason: Kept.
            if_match: The `etag` of the halt that you mean; None for whichever it is.
            key: As for `halt`.

        Raises:
            Refused: `not_halted`; `precondition_failed`: it was turned since, look again;
                `venue_reset`: only `tbot switches resume`, where T-Bot runs, can do that.
        """
        return await self._api.request(
            Switch,
            "POST",
            f"/v1/switches/{name}/resume",
            json={"reason": reason},
            key=key,
            if_match=if_match or ANY,
        )
