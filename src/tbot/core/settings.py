"""Every setting, with its default, unit and meaning.

Read from the environment: `TBOT_DATA_DIR`, or `TBOT_HTTP__PORT` for a setting in a section.
`docs/settings.md` is generated from this file (`make docs`); a test fails when they differ.
"""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, SettingsConfigDict

from tbot.core.cache_settings import CacheSettings
from tbot.core.limit_settings import LimitSettings, Networks, OverloadSettings
from tbot.core.money import MoneyText
from tbot.core.payment_settings import (
    PaymentSettings,
    SimulatedProviderSettings,
    WebhookSettings,
)
from tbot.core.valkey_settings import ValkeySettings

Role = Literal["api", "gateway", "market"]

Origin = Annotated[
    str, StringConstraints(pattern=r"^[a-z][a-z0-9+.-]*://[!-)+-.0-@\[-~]+$", max_length=300)
]
"""An origin as browsers write it, to be compared character for character: no path, no upper case,
no `*`. What could never match is told at the start."""


class HttpSettings(BaseModel):
    """The HTTP and WebSocket edge."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    trusted_proxies: Networks = Field(
        default_factory=list,
        description="Addresses and networks of our own reverse proxies, a JSON list such as "
        '`["10.0.0.0/8"]`: what they say in `http.forwarded_header` of where a request comes from '
        "is believed; of anybody else it is not.",
    )
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = Field(
        "x-forwarded-for",
        description="The one header that these proxies set or append to. With the first, "
        "`X-Forwarded-Proto` is believed too.",
    )
    body_bytes_max: int = Field(262_144, ge=1024, description="Largest request body.")
    json_depth_max: int = Field(32, ge=2, description="Deepest nesting of a JSON body.")
    wait_s_max: float = Field(30.0, ge=0, description="Longest `Prefer: wait` honoured.")
    page_size: int = Field(100, ge=1, description="Items on a page when the caller names none.")
    page_size_max: int = Field(1000, ge=1, description="Most items on a page.")
    exports_max: int = Field(
        8, ge=1, description="Exports (NDJSON, CSV) that are sent at once; then 503."
    )
    export_stall_timeout_s: float = Field(
        60.0, gt=0, description="An export whose reader takes nothing for this long is ended."
    )
    shutdown_timeout_s: float = Field(
        10.0, gt=0, description="How long open requests may take to end at shutdown."
    )
    compress_bytes_min: int = Field(
        1024, ge=256, description="Smallest answer that is compressed for those who take gzip."
    )
    compress_level: int = Field(
        4, ge=1, le=9, description="How hard gzip tries: 1 is quick, 9 is small."
    )
    accounts_listed_max: int = Field(
        1000,
        ge=1,
        description="Accounts of one user that a list of orders, transfers or payments goes "
        "through; who has more names one.",
    )
    cors_origins: list[Origin] = Field(
        default_factory=list,
        description="Origins whose pages may read answers, a JSON list as "
        '`["https://app.example.com"]`; those of `auth.browser_origins` may, too.',
    )
    cors_max_age_s: int = Field(
        600, ge=0, le=86_400, description="How long browsers may remember a preflight's answer."
    )
    hsts_s: int = Field(
        366 * 86_400,
        ge=0,
        description="`max-age` of Strict-Transport-Security on answers over TLS; 0 sends none.",
    )
    public_docs: bool = Field(True, description="Serve `/docs` and `/openapi.json`.")
    access_log: Literal["all", "errors", "off"] = Field(
        "all", description="Which requests leave a log event: `errors` are statuses from 400 on."
    )

    @property
    def log_from(self) -> int:
        """The least HTTP status that leaves a log event."""
        return {"all": 0, "errors": 400, "off": 1000}[self.access_log]


class DatabaseSettings(BaseModel):
    """Postgres: embedded unless a URL is given."""

    url: SecretStr | None = Field(
        None,
        description="URL of a Postgres (18 or newer) to use instead of the embedded one, as "
        "`postgresql://user:password@host/name`. Its role should own the database.",
    )
    pool_size_max: int = Field(10, ge=2, description="Most pooled connections of one process.")
    statement_timeout_s: float = Field(10.0, gt=0, description="Longest pooled statement.")
    start_timeout_s: float = Field(
        600.0, gt=0, description="How long the embedded server may take to recover at start."
    )


class AuthSettings(BaseModel):
    """Passwords and tokens."""

    issuer: str = Field("tbot", description="`iss` of our tokens.")
    audience: str = Field("tbot-api", description="`aud` of access tokens.")
    access_ttl_s: int = Field(900, ge=10, description="Lifetime of an access token.")
    refresh_ttl_s: int = Field(
        14 * 86_400, ge=60, description="Absolute lifetime of a refresh token family."
    )
    refresh_grace_s: int = Field(
        0,
        ge=0,
        le=60,
        description="A second use of a refresh token ends its session, unless it comes within this "
        "time of the first or overlaps it: then it is only refused.",
    )
    session_cache_s: float = Field(
        5.0,
        ge=0,
        le=60,
        description="How long an ended session's access token may still work in another process.",
    )
    sessions_cached_max: int = Field(10_000, ge=1, description="Sessions remembered as live.")
    tokens_cached_max: int = Field(10_000, ge=1, description="Verified access tokens remembered.")
    signing_key_ttl_s: int = Field(
        30 * 86_400, ge=60, description="How long a signing key signs before the next one does."
    )
    keys_reload_s: float = Field(
        30.0, gt=0, description="How often signing keys are read again, and sessions swept."
    )
    hash_workers: int = Field(1, ge=1, description="Threads that hash passwords.")
    hash_queue_max: int = Field(32, ge=1, description="Logins waiting for them; then 503.")
    password_length_min: int = Field(15, ge=8, description="Shortest password.")
    password_length_max: int = Field(256, ge=64, description="Longest password.")
    step_up_s: int = Field(
        300,
        ge=10,
        description="How long after showing a password or second factor a session may withdraw, "
        "make API keys, share accounts and change its factors.",
    )
    mfa_ttl_s: int = Field(
        300, ge=30, le=3600, description="How long a login waits for its second factor."
    )
    totp_issuer: str = Field("T-Bot", description="What an authenticator app calls us.")
    factor_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Seals the secrets of second factors in the database: at least 32 random "
        "characters (`openssl rand -base64 32`), the same for every process. Without it they are "
        "stored as they are.",
    )
    factor_key_before: SecretStr | None = Field(
        None,
        min_length=32,
        description="The `factor_key` in use before: what it sealed is sealed anew at the start.",
    )
    keys_max: int = Field(50, ge=1, description="API keys of one user.")
    key_ttl_s_max: int = Field(
        366 * 86_400, ge=60, description="Longest, and default, lifetime of an API key."
    )
    keys_cached_max: int = Field(10_000, ge=1, description="API keys remembered as good or bad.")
    keys_withdraw: bool = Field(
        False, description="Whether an API key with `payments:write` may ask for withdrawals."
    )
    keys_manage: bool = Field(
        False,
        description="Whether an API key with `account:write` or `security:write` may share "
        "accounts and revoke sessions and keys. Making keys always takes a login.",
    )
    failures_free: int = Field(
        5, ge=1, description="Failed logins of one user from one address that cost no waiting."
    )
    failures_free_account: int = Field(
        20, ge=1, description="The same of one user from all addresses that are new to them."
    )
    failures_free_address: int = Field(
        20, ge=1, description="The same of one address, whoever it says it is."
    )
    failures_wait_s: float = Field(
        2.0, gt=0, description="How long the next failure blocks; each one after it twice as long."
    )
    failures_wait_s_max: float = Field(
        900.0, gt=0, description="The longest block, and how long failures are remembered."
    )
    browser_origins: list[Origin] = Field(
        default_factory=list,
        description="Origins besides our own whose pages may use the refresh cookie, a JSON list.",
    )


class CommitterSettings(BaseModel):
    """The write path."""

    queue_max: int = Field(4096, ge=1, description="Commands waiting; then 503.")
    queue_reserved: int = Field(
        1024, ge=0, description="Of those, places only venue reports and cancels may take."
    )
    queue_age_s_max: float = Field(2.0, gt=0, description="Oldest waiting new order; then 503.")
    batch_max: int = Field(256, ge=1, description="Most commands in one transaction.")
    batch_time_s_max: float = Field(
        0.05, gt=0, description="A batch takes no further command once deciding took this long."
    )
    transaction_timeout_s: float = Field(
        10.0, gt=0, description="The server ends a transaction that lasts longer."
    )
    idle_timeout_s: float = Field(
        1.0, gt=0, description="The server ends a transaction that sits idle longer."
    )
    resolve_timeout_s: float = Field(
        10.0, gt=0, description="How long an unknown COMMIT is looked into before answering 504."
    )
    accounts_cached_max: int = Field(10_000, ge=1, description="Account states kept in memory.")


class IdempotencySettings(BaseModel):
    """Answers kept under `Idempotency-Key`s."""

    keep_h: float = Field(
        72.0,
        gt=0,
        description="How long a key is remembered; a `client_order_id` is for ever.",
    )
    clean_interval_s: float = Field(300.0, gt=0, description="How often old keys are removed.")
    clean_batch: int = Field(5000, ge=1, description="Most keys removed in one transaction.")


class LedgerSettings(BaseModel):
    """Assets and transfers."""

    assets: dict[str, int] = Field(
        default_factory=lambda: {"EUR": 2, "GBP": 2, "USD": 2},
        description="Assets besides those that the venues' instruments have, a JSON map from code "
        "to number of decimals (0 to 18). An asset's decimals are never reduced.",
    )
    transfer_expiry_s_max: float = Field(
        30 * 86_400, gt=0, description="Longest `expires_in_s` of a pending transfer."
    )
    transfers_pending_max: int = Field(
        10_000, ge=1, description="Pending transfers out of one account; then refused."
    )
    bulk_transfers_max: int = Field(
        1000, ge=1, description="Transfers in one bulk request (`http.body_bytes_max` holds too)."
    )
    expiry_interval_s: float = Field(
        1.0, gt=0, description="How often pending transfers whose time is over are released."
    )
    expiry_batch: int = Field(256, ge=1, description="Of those, most released at once.")


class GatewaySettings(BaseModel):
    """Sending orders and learning what became of them."""

    send_by_s: float = Field(5.0, gt=0, description="An order not sent within this is not sent.")
    receive_window_ms: int = Field(
        3000, ge=100, le=60_000, description="Age at which a venue refuses our request."
    )
    answer_timeout_s: float = Field(
        12.0,
        gt=10,
        description="How long an order request may stay unanswered: above the "
        "venue's own ten seconds.",
    )
    absence_margin_s: float = Field(
        5.0,
        ge=1,
        description="Added to send-by + receive window + 10 s before the venue's "
        "'no such order' is believed.",
    )
    lease_ttl_s: float = Field(4.0, ge=1, description="Lifetime of a venue account's lease.")
    open_orders_interval_s: float = Field(
        30.0, gt=0, description="How often open orders are compared with the venue's."
    )
    unknown_interval_s: float = Field(1.0, gt=0, description="First delay between questions.")
    in_flight_max: int = Field(256, ge=1, description="Order requests unanswered at once.")
    requests_waiting_max: int = Field(
        4096, ge=1, description="Requests waiting for a venue's rate budget; then not sent."
    )
    events_max: int = Field(
        20_000,
        ge=1,
        description="Private events read ahead; then all are dropped for one sweep of open orders.",
    )
    reports_in_flight_max: int = Field(
        1024, ge=1, description="Reports being written down at once; then the venue is read slower."
    )
    questions_in_flight_max: int = Field(
        16, ge=1, description="Questions to a venue about single orders, at once."
    )


class PaperSettings(BaseModel):
    """The paper venue: where T-Bot finds it, and with which key."""

    enabled: bool = Field(True, description="Trade on the paper exchange.")
    url: str = Field("", description="Its address; empty takes the supervised child's.")
    api_key: str = Field("", description="API key; empty takes the supervised child's.")
    api_secret: SecretStr = Field(SecretStr(""), description="API secret, likewise.")


class ExchangeSettings(BaseModel):
    """The paper exchange process."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8100, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    source: Literal["synthetic", "replay"] = Field(
        "synthetic", description="Where its market comes from."
    )
    seed: int = Field(1, description="Seed of the synthetic market.")
    replay_files: list[Path] = Field(
        default_factory=list, description="Recordings to play, a JSON list of paths."
    )
    replay_speed: float = Field(
        1.0, ge=0, description="Times real time; 0 plays as fast as possible."
    )
    replay_wait_for: list[str] = Field(
        default_factory=list,
        description="Streams (as `btcusdt@trade`) that must be subscribed before a replay starts.",
    )
    maker_fee: MoneyText = Field(Decimal("0.001"), description="Fee rate of resting orders.")
    taker_fee: MoneyText = Field(Decimal("0.001"), description="Fee rate of aggressing orders.")
    fsync: bool = Field(
        False,
        description="Wait for the disk at each flush of its log. Without it an acknowledged order "
        "survives `kill -9` but not a power cut.",
    )
    log_bytes_max: int = Field(
        64 << 20, ge=1 << 16, description="Size of its log after which a start compacts it."
    )
    orders_kept: int = Field(100_000, ge=100, description="Closed orders kept of each account.")
    executions_kept: int = Field(200_000, ge=100, description="Executions kept of each account.")
    weight_1m_max: int = Field(
        60_000, ge=100, description="Request weight per address and minute (Binance: 6000)."
    )
    orders_10s_max: int = Field(
        10_000, ge=1, description="New orders per account in 10 s (Binance: 100)."
    )
    orders_1d_max: int = Field(
        10_000_000, ge=1, description="New orders per account and day (Binance: 200000)."
    )
    connections_max: int = Field(1024, ge=1, description="Open connections; then closed at once.")
    client_bytes_max: int = Field(
        4 << 20, ge=65_536, description="Bytes waiting for one client; then it is disconnected."
    )
    stream_messages_per_s_max: float = Field(
        20.0, gt=0, description="Inbound messages of a market stream connection (Binance: 5)."
    )
    ping_interval_s: float = Field(20.0, gt=0, description="Time between pings to a client.")
    ping_timeout_s: float = Field(
        60.0, gt=0, description="Silence after a ping that disconnects the client."
    )
    mark_interval_s: float = Field(
        5.0, gt=0, description="How often the market's position is written to its log."
    )
    faults: bool = Field(False, description="Serve `/paper/v1/faults`, for tests of clients.")


class MarketSettings(BaseModel):
    """Market data inside T-Bot."""

    stale_after_s: float = Field(
        10.0, gt=0, description="Silence after which a market is marked stale."
    )
    trades_kept: int = Field(1000, ge=1, description="Recent trades kept per instrument.")
    status_interval_s: float = Field(
        1.0, gt=0, description="How often halts are looked at for the channel `status`."
    )
    snapshots_in_flight_max: int = Field(4, ge=1, description="Book snapshots fetched at once.")
    changes_buffered_max: int = Field(
        10_000,
        ge=100,
        description="Book changes kept while a snapshot is awaited; then the older half goes.",
    )


class CandleSettings(BaseModel):
    """Candles: built from every trade, stored, and completed from the venue."""

    pending_trades_max: int = Field(
        10_000,
        ge=1,
        description="Trades of a market kept while missing ones are fetched; then those are given "
        "up, and the candles around them are completed from the venue's own.",
    )
    backfill_trades_max: int = Field(
        20_000,
        ge=0,
        description="Most missing trades fetched one by one; more are left to the venue's candles.",
    )
    backfill_timeout_s: float = Field(
        10.0, gt=0, description="How long missing trades are tried to be fetched."
    )
    recent: int = Field(
        100, ge=1, description="Newest closed candles of each market and interval in memory."
    )
    history: int = Field(
        1000,
        ge=0,
        description="Past candles of each market and interval fetched when none are stored yet.",
    )
    queue_max: int = Field(
        20_000,
        ge=1,
        description="Closed candles waiting to be stored; then the oldest are fetched again later.",
    )
    store_interval_s: float = Field(1.0, gt=0, description="How often closed candles are stored.")
    repair_interval_s: float = Field(
        5.0, gt=0, description="How often incomplete candles are asked for at the venue."
    )
    prune_interval_s: float = Field(
        300.0, gt=0, description="How often candles beyond their days are deleted."
    )
    keep_1s_days: float = Field(2.0, ge=0, description="Days 1s candles are kept; 0 for ever.")
    keep_1m_days: float = Field(90.0, ge=0, description="Days 1m candles are kept; 0 for ever.")
    keep_5m_days: float = Field(365.0, ge=0, description="Days 5m candles are kept; 0 for ever.")
    keep_15m_days: float = Field(0.0, ge=0, description="Days 15m candles are kept; 0 for ever.")
    keep_1h_days: float = Field(0.0, ge=0, description="Days 1h candles are kept; 0 for ever.")
    keep_4h_days: float = Field(0.0, ge=0, description="Days 4h candles are kept; 0 for ever.")
    keep_1d_days: float = Field(0.0, ge=0, description="Days 1d candles are kept; 0 for ever.")


class StreamSettings(BaseModel):
    """Clients of the stream: WebSockets and server-sent events."""

    clients_max: int = Field(10_000, ge=1, description="Connections; then 503.")
    newcomers_max: int = Field(
        1000, ge=1, description="Connections that have not logged in yet; then 503."
    )
    admission_lag_ms_max: float = Field(
        500.0,
        gt=0,
        description="How late the server's own timers may be, four times in a row; then newcomers "
        "get 503, and those who are connected are served.",
    )
    ticket_ttl_s: float = Field(
        30.0, gt=0, le=300, description="How long a ticket of `/v1/stream/tickets` is good."
    )
    tickets_max: int = Field(100, ge=1, description="Unused tickets of one user; then 503.")
    auth_timeout_s: float = Field(5.0, gt=0, description="First message must log in within this.")
    subscriptions_max: int = Field(256, ge=1, description="Subscriptions of one connection.")
    message_bytes_max: int = Field(65_536, ge=1024, description="Largest inbound message.")
    messages_per_s_max: float = Field(20.0, gt=0, description="Inbound messages, sustained.")
    orders_per_s_max: float = Field(
        1000.0, gt=0, description="Orders placed and canceled on one connection, sustained."
    )
    orders_per_message_max: int = Field(50, ge=1, description="Orders in one message.")
    orders_in_flight_max: int = Field(
        256, ge=1, description="Orders of one connection whose answer is under way."
    )
    queue_bytes_max: int = Field(
        262_144,
        ge=4096,
        description="Bytes waiting for one client; then the channel's slow policy.",
    )
    heartbeat_s: float = Field(15.0, gt=0, description="Silence after which we ping.")
    heartbeat_timeout_s: float = Field(8.0, gt=0, description="Then silence that closes.")
    clients_per_address_max: int = Field(
        1024,
        ge=1,
        description="Connections from one address (of IPv6, one /64 network); then 429.",
    )
    clients_per_user_max: int = Field(
        256, ge=1, description="Authenticated connections of one user; then close 4105."
    )
    origins: list[Origin] = Field(
        default_factory=list,
        description="Origins of web pages that may connect besides our own, a JSON list such as "
        '`["https://desk.example"]`.',
    )
    flush_interval_ms: float = Field(
        5.0, ge=0, description="Shortest time between two flushes; what comes within is joined."
    )
    stall_timeout_s: float = Field(
        10.0, gt=0, description="How long a client may take no byte before it is closed as slow."
    )
    linger_s: float = Field(
        60.0, ge=0, description="How long a channel nobody reads is kept for those who come back."
    )
    sweep_interval_s: float = Field(
        1.0, gt=0, description="How often private streams look for entries whose wake-up was lost."
    )
    page_entries: int = Field(256, ge=1, description="Journal entries read at once.")
    recent_entries: int = Field(
        256, ge=1, description="Newest entries of each watched account kept in memory."
    )
    drain_s: float = Field(
        2.0, ge=0, description="Over how long clients are told to reconnect at shutdown."
    )


class RiskSettings(BaseModel):
    """Limits that a new account starts with; each account's can be changed."""

    max_order_notional: MoneyText = Field(
        Decimal(100000), description="Largest order, in the quote asset."
    )
    max_open_orders: int = Field(200, ge=0, description="Most open orders.")
    price_collar: MoneyText = Field(
        Decimal("0.05"), description="How far through the market a price may be (0.05 = 5 %)."
    )
    price_age_s_max: float = Field(10.0, gt=0, description="Oldest market price for a check.")


class AuditSettings(BaseModel):
    """Anchors: signed heads of the journal, outside the database."""

    directory: Path | None = Field(
        None,
        description="Where the audit key and the anchors are; by default beside the data "
        "directory, with `.audit` added to its name. Best on a disk of others than the "
        "database's administrators.",
    )
    anchor_interval_s: float = Field(
        0.0,
        ge=0,
        description="How often a running server anchors what moved; 0 leaves it to "
        "`tbot audit anchor`.",
    )


class Settings(BaseSettings):
    """All settings of a T-Bot process."""

    model_config = SettingsConfigDict(
        env_prefix="TBOT_", env_nested_delimiter="__", extra="forbid", validate_default=True
    )

    data_dir: Path = Field(Path("data"), description="Where everything that must survive lives.")
    roles: list[Role] = Field(
        default=["api", "gateway", "market"],
        description="What this process does, a JSON list.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe event that is logged."
    )
    log_form: Literal["auto", "json", "text"] = Field(
        "auto", description="`json`, `text`, or by whether stderr is a terminal."
    )
    http: HttpSettings = Field(default_factory=HttpSettings)
    limits: LimitSettings = Field(default_factory=LimitSettings)
    overload: OverloadSettings = Field(default_factory=OverloadSettings)
    database: DatabaseSettings = Field(default_factory=DatabaseSettings)
    auth: AuthSettings = Field(default_factory=AuthSettings)
    committer: CommitterSettings = Field(default_factory=CommitterSettings)
    idempotency: IdempotencySettings = Field(default_factory=IdempotencySettings)
    ledger: LedgerSettings = Field(default_factory=LedgerSettings)
    gateway: GatewaySettings = Field(default_factory=GatewaySettings)
    paper: PaperSettings = Field(default_factory=PaperSettings)
    exchange: ExchangeSettings = Field(default_factory=ExchangeSettings)
    market: MarketSettings = Field(default_factory=MarketSettings)
    candles: CandleSettings = Field(default_factory=CandleSettings)
    stream: StreamSettings = Field(default_factory=StreamSettings)
    risk: RiskSettings = Field(default_factory=RiskSettings)
    audit: AuditSettings = Field(default_factory=AuditSettings)
    payments: PaymentSettings = Field(default_factory=PaymentSettings)
    simulated_provider: SimulatedProviderSettings = Field(default_factory=SimulatedProviderSettings)
    webhooks: WebhookSettings = Field(default_factory=WebhookSettings)
    valkey: ValkeySettings = Field(default_factory=ValkeySettings)
    cache: CacheSettings = Field(default_factory=CacheSettings)
