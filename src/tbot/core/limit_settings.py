"""The settings of rate limits, overload and connections: a part of `tbot.core.settings`."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from tbot.core.ratelimit import Quota


def _checked(text: str) -> str:
    if text != "off":
        Quota.parse(text)
    return text


QuotaText = Annotated[str, AfterValidator(_checked)]
"""An amount per seconds such as `100/10s`, all of which may come at once; or `off`."""


def _network(text: str) -> str:
    ipaddress.ip_network(text)
    return text


Networks = list[Annotated[str, AfterValidator(_network)]]
"""Addresses and networks, IPv4 and IPv6."""


class LimitSettings(BaseModel):
    """Rate limits: an amount per seconds such as `100/10s`; all of it may come at once. Or `off`.

    Every request counts under several at once, and is refused with 429 when one of them is used
    up. An IPv6 address counts as its /64 network.
    """

    store: Literal["auto", "local"] = Field(
        "auto",
        description="`auto` counts in Valkey where there is one (`TBOT_VALKEY__URL`), so that all "
        "processes count together; `local` in each process by itself.",
    )
    address: QuotaText = Field("20000/10s", description="Everything from one address.")
    strangers: QuotaText = Field(
        "1200/60s", description="From one address, requests without a good token."
    )
    logins: QuotaText = Field(
        "120/60s", description="From one address, requests that check a password or a code."
    )
    streams: QuotaText = Field(
        "3000/60s", description="From one address, new streams and tickets for them."
    )
    user: QuotaText = Field("20000/10s", description="Everything of one user.")
    key: QuotaText = Field("20000/10s", description="Everything with one API key.")
    reads: QuotaText = Field("5000/10s", description="Of one user, requests that change nothing.")
    writes: QuotaText = Field(
        "2000/10s", description="Of one user, requests that change something, except orders."
    )
    orders: QuotaText = Field(
        "5000/10s", description="Of one user, new orders, on the stream and over HTTP."
    )
    cancels: QuotaText = Field(
        "20000/10s",
        description="Of one user, cancels. They count under nothing else, so that whoever used up "
        "everything can still cancel.",
    )
    exports: QuotaText = Field("60/60s", description="Of one user, lists as files (NDJSON, CSV).")
    subjects_max: int = Field(
        100_000,
        ge=100,
        description="Addresses, users and keys remembered under each limit; then one whose quota "
        "is whole is forgotten, or else one of the oldest.",
    )
    waiting_max: int = Field(
        4096, ge=1, description="Requests waiting for Valkey's word; the next is counted locally."
    )


class OverloadSettings(BaseModel):
    """What one process takes on at once, and how long anything may take."""

    connections_max: int = Field(
        4096,
        ge=1,
        description="Open HTTP connections; then idle ones are closed, or newcomers get 503. "
        "Streams are counted by `stream.clients_max`.",
    )
    connections_per_address_max: int = Field(
        1024, ge=1, description="Of those, from one address; then 429. Trusted proxies have no cap."
    )
    headers_bytes_max: int = Field(
        32_768, ge=8192, description="Largest request head, target and headers; then 431."
    )
    headers_timeout_s: float = Field(
        10.0, gt=0, description="How long a request's head may take to arrive; then 408."
    )
    body_timeout_s: float = Field(
        20.0, gt=0, description="How long a request's body may take to arrive; then 408."
    )
    keep_alive_s: float = Field(65.0, gt=0, description="How long an idle connection stays open.")
    write_timeout_s: float = Field(
        60.0, gt=0, description="How long a client may take no byte of its answer; then it is cut."
    )
    request_timeout_s: float = Field(
        60.0,
        gt=0,
        description="How long an answer may take to begin; then 503, or 504 `outcome_unknown` for "
        "what may have been done. Above `http.wait_s_max`.",
    )
    requests_max: int = Field(
        2048,
        ge=1,
        description="Requests under way; then new work gets 503, and at a quarter more reads do. "
        "Cancels never do.",
    )
    lag_ms_max: float = Field(
        250.0,
        gt=0,
        description="How late the server's own timers may be; then new work gets 503, and at twice "
        "as late reads do. Cancels never do.",
    )
