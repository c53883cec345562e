"""Who asks, and from where: what the rest of the program knows of authentication."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import UUID

import msgspec

from tbot.auth.scopes import Scope
from tbot.core.errors import InsufficientScope
from tbot.journal.commands import Actor


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a request came from.

    Attributes:
        address: As the edge determined it.
        user_agent: What the client calls itself; shown to its user, never believed.
        request: The request's id.
    """

    address: str | None = None
    user_agent: str | None = None
    request: str | None = None


NOWHERE = Peer()


class Principal(msgspec.Struct, frozen=True, gc=False):
    """Who asks, as a checked access token or API key says it.

    Attributes:
        session_id: The login session, or the API key: what ends when it is revoked.
        expires_at_s: When the token ends, in seconds since the epoch.
        key: The API key's name; None for somebody who logged in.
    """

    user_id: UUID
    session_id: UUID
    scopes: frozenset[Scope]
    expires_at_s: int
    key: str | None = None

    def require(self, *scopes: str) -> None:
        """Check that the token covers these scopes.

        Raises:
            InsufficientScope: It lacks one.
        """
        for scope in scopes:
            if scope not in self.scopes:
                raise InsufficientScope(scope)

    def actor(self, peer: Peer) -> Actor:
        """The asker as the journal records them."""
        return Actor(
            kind="user",
            user_id=self.user_id,
            session=str(self.session_id),
            address=peer.address,
            request=peer.request,
            name=self.key,
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """What a login or a refresh gives."""

    access_token: str = field(repr=False)
    expires_in_s: int
    refresh_token: str = field(repr=False)
    scopes: frozenset[Scope]
    user_id: UUID
    session_id: UUID
    session_expires_in_s: int = 0
