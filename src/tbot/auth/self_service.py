"""What users do about their sessions and API keys."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import structlog

from tbot.auth import api_keys, events, session_store, store
from tbot.auth.api_keys import ApiKey
from tbot.auth.principal import Peer, Principal
from tbot.auth.proofs import require_fresh
from tbot.auth.scopes import SCOPES_OF, Role, Scope
from tbot.auth.state import Auth, sessions_ended
from tbot.core.errors import Conflict, InsufficientScope, KeyNotAllowed, NotFound
from tbot.core.ids import new_id
from tbot.db.pool import transaction
from tbot.journal.commands import Actor

_log = structlog.get_logger(__name__)


def may_manage(auth: Auth, principal: Principal) -> None:
    """Check that an API key, if it is one that asks, may manage sessions, keys and sharing.

    Raises:
        KeyNotAllowed: The setting `auth.keys_manage` is off.
    """
    if principal.key is not None and not auth.settings.keys_manage:
        raise KeyNotAllowed("an API key may not do this (see auth.keys_manage): log in")


# Sessions


async def end_session(auth: Auth, principal: Principal, peer: Peer, session_id: UUID) -> None:
    """End one of the asker's sessions; its access tokens and streams end with it.

    Raises:
        NotFound: It is not theirs, or over.
        KeyNotAllowed: See `may_manage`.
    """
    may_manage(auth, principal)
    user_id = principal.user_id
    async with transaction(auth.pool) as connection:
        if not await session_store.end_own(connection, user_id, session_id, "revoked"):
            raise NotFound("no such session")
        told = str(session_id)
        actor = principal.actor(peer)
        await events.record(connection, user_id, events.SESSIONS_ENDED, actor, session=told)
    sessions_ended(auth, user_id)


async def end_sessions(
    auth: Auth, principal: Principal, peer: Peer, *, keep_this: bool = False
) -> int:
    """End all of the asker's sessions, or all others; how many there were.

    Raises:
        KeyNotAllowed: See `may_manage`.
    """
    may_manage(auth, principal)
    user_id = principal.user_id
    async with transaction(auth.pool) as connection:
        if keep_this:
            ended = await session_store.end_others(
                connection, user_id, principal.session_id, "logout_everywhere"
            )
        else:
            ended = await store.end_sessions_of(connection, user_id, "logout_everywhere")
        actor = principal.actor(peer)
        await events.record(connection, user_id, events.SESSIONS_ENDED, actor, sessions=ended)
    sessions_ended(auth, user_id)
    return ended


# API keys


async def create_key(
    auth: Auth,
    principal: Principal,
    peer: Peer,
    name: str,
    scopes: frozenset[Scope],
    addresses: Sequence[str],
    ttl_s: int,
    owner_id: UUID | None = None,
) -> tuple[ApiKey, str]:
    """Make an API key; with it the key's text, which is never shown again.

    Args:
        scopes: At least one.
        addresses: Networks it is good from, in canonical form; empty for everywhere.
        owner_id: A program, for an administrator.

    Raises:
        InsufficientScope: The asker's own token, or the owner's role, lacks one of the scopes.
        Conflict: The owner has a key of this name, or as many as there may be.
        NotFound: No such owner.
        StepUpRequired, KeyNotAllowed: See `tbot.auth.proofs.require_fresh`.
    """
    await require_fresh(auth, principal)
    actor = principal.actor(peer)
    if owner_id is None:
        owner_id = principal.user_id
        principal.require(*scopes)
    else:
        # A key acts as its owner: nobody makes one of another person's.
        async with auth.pool.acquire() as connection:
            owner = await store.user_by_id(connection, owner_id)
        if owner is None or owner.role is not Role.SERVICE:
            raise NotFound("no such program")
    most = auth.settings.keys_max
    made = await issue_key(auth.pool, actor, owner_id, name, scopes, addresses, ttl_s, most)
    _log.info("api_key_created", user_id=str(owner_id), key_id=str(made[0].id))
    return made


async def issue_key(
    pool: store.Pool,
    actor: Actor,
    owner_id: UUID,
    name: str,
    scopes: frozenset[Scope],
    addresses: Sequence[str],
    ttl_s: int,
    keys_max: int,
) -> tuple[ApiKey, str]:
    """Make an API key for a user, whoever asks: the caller has checked that they may.

    Raises:
        InsufficientScope, Conflict, NotFound: See `create_key`.
    """
    key, key_id = api_keys.new_key(), new_id()
    async with transaction(pool) as connection:
        # Locked, so that keys made at the same time are counted.
        if await session_store.lock_user(connection, owner_id) is None:
            raise NotFound("no such user")
        owner = await store.user_by_id(connection, owner_id)
        assert owner is not None
        for scope in sorted(scopes - SCOPES_OF[owner.role]):
            raise InsufficientScope(scope)
        if await api_keys.count(connection, owner_id) >= keys_max:
            raise Conflict("keys_max", f"there are {keys_max} keys already: revoke one")
        made = await api_keys.insert(
            connection, key_id, owner_id, name, key, scopes, addresses, ttl_s
        )
        if made is None:
            raise Conflict("key_exists", f"there is a key {name!r} already")
        await events.record(
            connection,
            owner_id,
            events.KEY_CREATED,
            actor,
            key=name,
            key_id=str(key_id),
            scope=sorted(scopes),
            addresses=list(addresses),
        )
    return made, key


async def revoke_key(
    auth: Auth, principal: Principal, peer: Peer, key_id: UUID, owner_id: UUID | None = None
) -> None:
    """Revoke a key; connections that it opened end with it.

    Raises:
        NotFound: No such key of this owner.
        KeyNotAllowed: See `may_manage`; a key may always revoke itself.
    """
    if principal.session_id != key_id:
        may_manage(auth, principal)
    owner_id = owner_id or principal.user_id
    async with transaction(auth.pool) as connection:
        name = await api_keys.revoke(connection, key_id, owner_id)
        if name is None:
            raise NotFound("no such key")
        told = str(key_id)
        actor = principal.actor(peer)
        await events.record(connection, owner_id, events.KEY_REVOKED, actor, key=name, key_id=told)
    sessions_ended(auth, owner_id)
