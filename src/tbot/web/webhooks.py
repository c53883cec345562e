"""Webhooks: subscribing addresses to accounts' journals, and what became of deliveries."""

from __future__ import annotations

import os
from datetime import timedelta
from uuid import UUID

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from tbot.auth.flow import Principal
from tbot.core import clock
from tbot.core.errors import InsufficientAccess
from tbot.core.ids import new_id
from tbot.core.refusals import Reason, Refused
from tbot.db.pool import transaction
from tbot.journal.once import Kept, Once
from tbot.ledger import webhooks as store
from tbot.ledger.signatures import secret_text
from tbot.ledger.webhooks import Webhook
from tbot.ledger.webhooks_target import Forbidden, check_url
from tbot.web.answers import json_answer
from tbot.web.dependencies import (
    AccountReader,
    PageCursor,
    PageLimit,
    Parts,
    WebhookWriter,
    page_limit,
)
from tbot.web.deps import Deps
from tbot.web.fields import Id
from tbot.web.once import KeyHeader, carried_out, keyed, respond
from tbot.web.openapi import problems
from tbot.web.ownership import own_account
from tbot.web.pages import decode_cursor, encode_cursor, next_link
from tbot.web.preconditions import TAGGED, IfMatch, expected_versions, tag_of
from tbot.web.problems import invalid
from tbot.web.routes import SHOWS_SECRET, router
from tbot.web.webhook_forms import (
    DeliveryPage,
    NewWebhook,
    Replay,
    Rotation,
    WebhookChange,
    WebhookCreated,
    WebhookOut,
    WebhookPage,
    WebhookRotated,
    delivery_json,
    webhook_json,
)

routes = router("webhooks")

_SECRET_BYTES = 32


def _created(webhook: Webhook) -> Response:
    content = webhook_json(webhook) | {"secret": secret_text(webhook.secret)}
    headers = {"Location": f"/v1/webhooks/{webhook.id}", "ETag": _tag(webhook)}
    return json_answer(content, 201, headers)


def _rotated(webhook: Webhook) -> Response:
    content = webhook_json(webhook) | {"secret": secret_text(webhook.secret)}
    return json_answer(content, headers={"ETag": _tag(webhook)})


def _tag(webhook: Webhook) -> str:
    old = len(webhook.old_until)
    shown = (webhook.seq, webhook.enabled, webhook.disabled_reason, old)
    return tag_of(webhook.version, "-".join(map(str, shown)))


def _answer(webhook: Webhook) -> Response:
    return json_answer(webhook_json(webhook), headers={"ETag": _tag(webhook)})


def _checked(deps: Deps, url: str) -> str:
    try:
        check_url(url, deps.settings.webhooks.allow_private)
    except Forbidden as error:
        raise invalid(f"the URL {error}", pointer="/url") from None
    return url


@routes.post(
    "/webhooks",
    operation_id="create_webhook",
    openapi_extra=SHOWS_SECRET,
    status_code=201,
    response_model=WebhookCreated,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}, **TAGGED["headers"]}},
        **problems("not_found", "outcome_unknown", Reason.WEBHOOKS_MAX),
    },
)
async def create_webhook(
    request: HttpRequest,
    parts: Parts,
    principal: WebhookWriter,
    body: NewWebhook,
    _key: KeyHeader = None,
) -> Response:
    """Have an account's journal delivered to an address of yours.

    Entries come in order, each at least once, signed as Standard Webhooks has it with the secret
    in this answer.
    """
    facts = await own_account(parts, principal, body.account_id)
    if facts.owner_id != principal.user_id:
        # It would go on delivering after a member's role was taken away.
        raise InsufficientAccess("owner, by having opened it")
    url = _checked(parts, body.url)
    once = await keyed(request, parts, principal, _created)
    return respond(await _create(parts, principal, body, url, once), _created)


async def _create(
    deps: Deps, principal: Principal, body: NewWebhook, url: str, once: Once | None
) -> Webhook | Refused | Kept:
    async def create(connection: store.Connection) -> Webhook | Refused:
        if body.from_sequence is None:
            seq, digest = await store.head(connection, body.account_id)
        else:
            seq, digest = await _place(connection, body.account_id, body.from_sequence)
        now = clock.utc_now()
        webhook = Webhook(
            id=new_id(),
            owner_id=principal.user_id,
            account_id=body.account_id,
            url=url,
            kinds=tuple(dict.fromkeys(body.kinds)),
            secret=os.urandom(_SECRET_BYTES),
            enabled=True,
            disabled_reason=None,
            seq=seq,
            hash=digest,
            failures=0,
            version=1,
            created_at=now,
            updated_at=now,
        )
        return await store.create(connection, webhook, deps.settings.webhooks)

    return await carried_out(deps, once, create)


async def _place(
    connection: store.Connection, account_id: UUID, from_sequence: int
) -> tuple[int, bytes]:
    """The place right before an entry, which need not exist yet."""
    seq = from_sequence - 1
    digest = await store.place(connection, account_id, seq)
    if digest is None:
        raise invalid("the journal does not reach that far", pointer="/from_sequence")
    return seq, digest


async def _own(deps: Deps, principal: Principal, webhook_id: UUID) -> Webhook:
    async with deps.pool.acquire() as connection:
        return await store.get(connection, webhook_id, principal.user_id)


@routes.get(
    "/webhooks",
    operation_id="list_webhooks",
    response_model=WebhookPage,
    responses=problems("invalid_cursor"),
)
async def list_webhooks(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List your webhooks, oldest first."""
    size = page_limit(limit, parts)
    secret, reader = parts.auth.keys.cursor_secret, principal.user_id
    after = None
    if cursor is not None:
        after = UUID(str(decode_cursor(secret, reader, "webhooks", {}, cursor)[0]))
    async with parts.pool.acquire() as connection:
        found = await store.list_of(connection, reader, after, size + 1)
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, "webhooks", {}, [str(found[size - 1].id)])
        headers["Link"] = next_link(request, {}, size, following)
    page = {"items": [webhook_json(webhook) for webhook in found[:size]], "next": following}
    return json_answer(page, headers=headers)


@routes.get("/webhooks/{webhook_id}", operation_id="get_webhook", response_model=WebhookOut)
async def get_webhook(parts: Parts, principal: AccountReader, webhook_id: Id) -> Response:
    """Get one webhook as it is now."""
    return _answer(await _own(parts, principal, webhook_id))


@routes.patch(
    "/webhooks/{webhook_id}",
    operation_id="change_webhook",
    response_model=WebhookOut,
    responses={
        200: TAGGED,
        **problems("outcome_unknown", "precondition_required", Reason.PRECONDITION_FAILED),
    },
)
async def change_webhook(
    request: HttpRequest,
    parts: Parts,
    principal: WebhookWriter,
    webhook_id: Id,
    body: WebhookChange,
    _match: IfMatch = None,
    _key: KeyHeader = None,
) -> Response:
    """Change a webhook, pause it, or let it go on. Deliveries meanwhile do not matter."""
    webhook = await _own(parts, principal, webhook_id)
    versions = expected_versions(request)
    url = None if body.url is None else _checked(parts, body.url)

    async def change(connection: store.Connection) -> Webhook | Refused:
        changed = await store.change(
            connection,
            webhook.id,
            url=url,
            kinds=body.kinds,
            enabled=body.enabled,
            versions=versions,
        )
        return Refused(Reason.PRECONDITION_FAILED) if changed is None else changed

    once = await keyed(request, parts, principal, _answer)
    return respond(await carried_out(parts, once, change), _answer)


@routes.delete(
    "/webhooks/{webhook_id}",
    operation_id="delete_webhook",
    status_code=204,
    response_class=Response,
    responses={
        204: {"description": "It is gone, with its deliveries."},
        **problems("outcome_unknown"),
    },
)
async def delete_webhook(parts: Parts, principal: WebhookWriter, webhook_id: Id) -> Response:
    """Delete a webhook."""
    webhook = await _own(parts, principal, webhook_id)
    async with transaction(parts.pool) as connection:
        await store.delete(connection, webhook)
    return Response(status_code=204)


@routes.post(
    "/webhooks/{webhook_id}/replay",
    operation_id="replay_webhook",
    response_model=WebhookOut,
    responses={200: TAGGED, **problems("outcome_unknown")},
)
async def replay_webhook(
    request: HttpRequest,
    parts: Parts,
    principal: WebhookWriter,
    webhook_id: Id,
    body: Replay,
    _key: KeyHeader = None,
) -> Response:
    """Deliver again from an entry on: after an outage of yours, or for its dead letters.

    The ids of the messages stay the same, so what was taken before can be told apart.
    """
    webhook = await _own(parts, principal, webhook_id)

    async def replay(connection: store.Connection) -> Webhook:
        seq, digest = await _place(connection, webhook.account_id, body.from_sequence)
        return await store.replay(connection, webhook, seq, digest)

    once = await keyed(request, parts, principal, _answer)
    return respond(await carried_out(parts, once, replay), _answer)


@routes.post(
    "/webhooks/{webhook_id}/rotate-secret",
    operation_id="rotate_webhook_secret",
    openapi_extra=SHOWS_SECRET,
    response_model=WebhookRotated,
    responses={200: TAGGED, **problems("outcome_unknown")},
)
async def rotate_secret(
    request: HttpRequest,
    parts: Parts,
    principal: WebhookWriter,
    webhook_id: Id,
    body: Rotation | None = None,
    _key: KeyHeader = None,
) -> Response:
    """Give a webhook a new secret. For a while, messages are signed with the old one, too.

    So the receiver loses nothing: it takes messages by either secret while it changes over.
    """
    most_s = parts.settings.webhooks.secret_overlap_s
    overlap_s = most_s if body is None or body.overlap_s is None else body.overlap_s
    if overlap_s > most_s:
        raise invalid(f"an old secret signs for at most {most_s} s", pointer="/overlap_s")
    webhook = await _own(parts, principal, webhook_id)

    async def rotate(connection: store.Connection) -> Webhook:
        secret, overlap = os.urandom(_SECRET_BYTES), timedelta(seconds=overlap_s)
        return await store.rotate(connection, webhook.id, secret, overlap)

    once = await keyed(request, parts, principal, _rotated)
    return respond(await carried_out(parts, once, rotate), _rotated)


@routes.get(
    "/webhooks/{webhook_id}/deliveries",
    operation_id="list_deliveries",
    response_model=DeliveryPage,
    responses=problems("invalid_cursor"),
)
async def list_deliveries(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    webhook_id: Id,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List a webhook's recent deliveries, newest entry first."""
    return await _deliveries(request, parts, principal, webhook_id, limit, cursor, dead=False)


@routes.get(
    "/webhooks/{webhook_id}/dead-letters",
    operation_id="list_dead_letters",
    response_model=DeliveryPage,
    responses=problems("invalid_cursor"),
)
async def list_dead_letters(
    request: HttpRequest,
    parts: Parts,
    principal: AccountReader,
    webhook_id: Id,
    limit: PageLimit = None,
    cursor: PageCursor = None,
) -> Response:
    """List the entries that could not be delivered; a replay tries them again."""
    return await _deliveries(request, parts, principal, webhook_id, limit, cursor, dead=True)


async def _deliveries(
    request: HttpRequest,
    deps: Deps,
    principal: Principal,
    webhook_id: UUID,
    limit: int | None,
    cursor: str | None,
    *,
    dead: bool,
) -> Response:
    size = page_limit(limit, deps)
    secret, reader = deps.auth.keys.cursor_secret, principal.user_id
    name = f"deliveries:{webhook_id}:{dead}"
    before = None
    if cursor is not None:
        before = int(decode_cursor(secret, reader, name, {}, cursor)[0])
    await _own(deps, principal, webhook_id)
    async with deps.pool.acquire() as connection:
        found = await store.list_deliveries(
            connection, webhook_id, dead=dead, before_seq=before, limit=size + 1
        )
    headers = {}
    following = None
    if len(found) > size:
        following = encode_cursor(secret, reader, name, {}, [found[size - 1].seq])
        headers["Link"] = next_link(request, {}, size, following)
    items = [delivery_json(delivery) for delivery in found[:size]]
    return json_answer({"items": items, "next": following}, headers=headers)
