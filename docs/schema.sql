-- Generated from src/tbot/db/migrations by `make schema`: what they add up to.

CREATE DOMAIN public.amount AS numeric
	CONSTRAINT amount_check CHECK (((VALUE <> 'NaN'::numeric) AND (VALUE > '-100000000000000000000'::numeric) AND (VALUE < '100000000000000000000'::numeric) AND (scale(VALUE) <= 18)));

CREATE FUNCTION public.certify(ids uuid[], seqs bigint[], hashes bytea[], names text[], halts boolean[], reasons text[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
DECLARE
    seqs_now    bigint[];
    hashes_now  bytea[];
    names_now   text[];
    halts_now   boolean[];
    reasons_now text[];
BEGIN
    SELECT array_agg(h.seq), array_agg(h.hash) INTO seqs_now, hashes_now FROM (
        SELECT s.seq, s.hash FROM streams s WHERE s.account_id = ANY (ids)
        ORDER BY s.account_id FOR NO KEY UPDATE
    ) h;
    IF (seqs_now, hashes_now) IS DISTINCT FROM (seqs, hashes) THEN
        RAISE EXCEPTION 'a stream has moved on' USING ERRCODE = 'serialization_failure';
    END IF;
    SELECT coalesce(array_agg(w.name), '{}'), coalesce(array_agg(w.halted), '{}'),
           coalesce(array_agg(w.reason), '{}')
    INTO names_now, halts_now, reasons_now FROM (
        SELECT name, halted, reason FROM switches ORDER BY name FOR SHARE
    ) w;
    IF (names_now, halts_now, reasons_now) IS DISTINCT FROM (names, halts, reasons) THEN
        RAISE EXCEPTION 'a switch was turned' USING ERRCODE = 'serialization_failure';
    END IF;
END
$$;

CREATE FUNCTION public.end_session(name text, patience_ms bigint) RETURNS boolean
    LANGUAGE sql
    AS $$
    SELECT coalesce(bool_and(pg_terminate_backend(a.pid, patience_ms)), true)
    FROM pg_stat_activity a WHERE a.pid || ' ' || extract(epoch FROM a.backend_start)::text = name
$$;

CREATE FUNCTION public.note_switch_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    INSERT INTO switch_changes (name, halted, reason, changed_by, at, actor)
    VALUES (NEW.name, NEW.halted, NEW.reason, NEW.changed_by, NEW.at, NEW.actor);
    RETURN NULL;
END
$$;

CREATE FUNCTION public.refuse_change() RETURNS trigger
    LANGUAGE plpgsql
    AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only', TG_TABLE_NAME USING ERRCODE = '42501';
END
$$;

CREATE FUNCTION public.this_session() RETURNS text
    LANGUAGE sql
    AS $$
    SELECT a.pid || ' ' || extract(epoch FROM a.backend_start)::text
    FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()
$$;

CREATE TABLE public.account_members (
    account_id uuid NOT NULL,
    user_id uuid NOT NULL,
    role text NOT NULL,
    since timestamp with time zone NOT NULL,
    CONSTRAINT account_members_role_check CHECK ((role = ANY (ARRAY['viewer'::text, 'trader'::text, 'owner'::text])))
);

CREATE TABLE public.accounts (
    id uuid NOT NULL,
    owner_id uuid NOT NULL,
    name text NOT NULL,
    venue text,
    status text NOT NULL,
    limits jsonb NOT NULL,
    opened_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    kind text DEFAULT 'trading'::text NOT NULL,
    CONSTRAINT accounts_check CHECK (((kind = 'trading'::text) = (venue IS NOT NULL))),
    CONSTRAINT accounts_kind_check CHECK ((kind = ANY (ARRAY['trading'::text, 'cash'::text]))),
    CONSTRAINT accounts_status_check CHECK ((status = ANY (ARRAY['open'::text, 'frozen'::text, 'closed'::text])))
);

CREATE TABLE public.api_key_addresses (
    key_id uuid NOT NULL,
    address text NOT NULL,
    allowed boolean NOT NULL,
    first_at timestamp with time zone NOT NULL
);

CREATE TABLE public.api_keys (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    name text NOT NULL,
    hash bytea NOT NULL,
    hint text NOT NULL,
    scope text NOT NULL,
    addresses text[] NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    last_used_at timestamp with time zone,
    last_address text,
    revoked_at timestamp with time zone,
    CONSTRAINT api_keys_hash_check CHECK ((length(hash) = 32))
);

CREATE TABLE public.assets (
    code text NOT NULL,
    scale smallint NOT NULL,
    CONSTRAINT assets_scale_check CHECK (((scale >= 0) AND (scale <= 18)))
);

CREATE TABLE public.balances (
    account_id uuid NOT NULL,
    asset text NOT NULL,
    available public.amount NOT NULL,
    held public.amount NOT NULL,
    CONSTRAINT balances_held_check CHECK (((held)::numeric >= (0)::numeric))
)
WITH (fillfactor='50');

CREATE TABLE public.candle_gaps (
    id bigint NOT NULL,
    venue text NOT NULL,
    symbol text NOT NULL,
    interval_s integer NOT NULL,
    from_at timestamp with time zone NOT NULL,
    to_at timestamp with time zone NOT NULL,
    CONSTRAINT candle_gaps_check CHECK ((from_at <= to_at)),
    CONSTRAINT candle_gaps_interval_s_check CHECK ((interval_s > 0))
);

ALTER TABLE public.candle_gaps ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.candle_gaps_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.candles (
    venue text NOT NULL,
    symbol text NOT NULL,
    interval_s integer NOT NULL,
    start_at timestamp with time zone NOT NULL,
    open public.amount NOT NULL,
    high public.amount NOT NULL,
    low public.amount NOT NULL,
    close public.amount NOT NULL,
    volume public.amount NOT NULL,
    quote_volume public.amount NOT NULL,
    trades bigint NOT NULL,
    first_id bigint,
    last_id bigint,
    complete boolean NOT NULL,
    stored_at timestamp with time zone NOT NULL,
    CONSTRAINT candles_check CHECK ((((high)::numeric >= (open)::numeric) AND ((high)::numeric >= (close)::numeric))),
    CONSTRAINT candles_check1 CHECK ((((low)::numeric > (0)::numeric) AND ((low)::numeric <= (open)::numeric) AND ((low)::numeric <= (close)::numeric))),
    CONSTRAINT candles_close_check CHECK (((close)::numeric > (0)::numeric)),
    CONSTRAINT candles_interval_s_check CHECK ((interval_s > 0)),
    CONSTRAINT candles_open_check CHECK (((open)::numeric > (0)::numeric)),
    CONSTRAINT candles_quote_volume_check CHECK (((quote_volume)::numeric > (0)::numeric)),
    CONSTRAINT candles_trades_check CHECK ((trades > 0)),
    CONSTRAINT candles_volume_check CHECK (((volume)::numeric > (0)::numeric))
);

CREATE TABLE public.counters (
    name text NOT NULL,
    asset text NOT NULL,
    lane smallint NOT NULL,
    amount public.amount NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE public.fills (
    order_id uuid NOT NULL,
    trade_id text NOT NULL,
    account_id uuid NOT NULL,
    seq bigint NOT NULL,
    symbol text NOT NULL,
    side text NOT NULL,
    price public.amount NOT NULL,
    quantity public.amount NOT NULL,
    quote_quantity public.amount NOT NULL,
    fee public.amount NOT NULL,
    fee_asset text NOT NULL,
    maker boolean NOT NULL,
    at timestamp with time zone NOT NULL,
    CONSTRAINT fills_price_check CHECK (((price)::numeric > (0)::numeric)),
    CONSTRAINT fills_quantity_check CHECK (((quantity)::numeric > (0)::numeric)),
    CONSTRAINT fills_quote_quantity_check CHECK (((quote_quantity)::numeric >= (0)::numeric))
);

CREATE TABLE public.idempotency_keys (
    key uuid NOT NULL,
    content bytea NOT NULL,
    status smallint NOT NULL,
    headers bytea NOT NULL,
    body bytea NOT NULL,
    at timestamp with time zone NOT NULL,
    CONSTRAINT idempotency_keys_content_check CHECK ((length(content) = 16))
);

CREATE TABLE public.imports (
    digest bytea NOT NULL,
    name text NOT NULL,
    began_at timestamp with time zone NOT NULL,
    CONSTRAINT imports_digest_check CHECK ((length(digest) = 32))
);

CREATE TABLE public.instruments (
    venue text NOT NULL,
    symbol text NOT NULL,
    venue_symbol text NOT NULL,
    base text NOT NULL,
    quote text NOT NULL,
    base_scale smallint NOT NULL,
    quote_scale smallint NOT NULL,
    tick public.amount NOT NULL,
    price_min public.amount NOT NULL,
    price_max public.amount NOT NULL,
    step public.amount NOT NULL,
    quantity_min public.amount NOT NULL,
    quantity_max public.amount NOT NULL,
    market_step public.amount NOT NULL,
    market_quantity_max public.amount NOT NULL,
    notional_min public.amount NOT NULL,
    notional_max public.amount,
    trading boolean NOT NULL,
    updated_at timestamp with time zone NOT NULL
);

CREATE TABLE public.journal (
    account_id uuid NOT NULL,
    seq bigint NOT NULL,
    command_id uuid NOT NULL,
    kind text NOT NULL,
    at timestamp with time zone NOT NULL,
    body bytea NOT NULL,
    hash bytea NOT NULL,
    CONSTRAINT journal_hash_check CHECK ((length(hash) = 32)),
    CONSTRAINT journal_seq_check CHECK ((seq > 0))
);

CREATE TABLE public.leases (
    name text NOT NULL,
    holder text NOT NULL,
    epoch bigint NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

CREATE TABLE public.login_failures (
    key bytea NOT NULL,
    failures integer NOT NULL,
    at timestamp with time zone NOT NULL,
    CONSTRAINT login_failures_failures_check CHECK ((failures > 0)),
    CONSTRAINT login_failures_key_check CHECK ((length(key) = 16))
);

CREATE TABLE public.marks (
    account_id uuid NOT NULL,
    seq bigint NOT NULL,
    at timestamp with time zone NOT NULL,
    balances jsonb NOT NULL,
    CONSTRAINT marks_seq_check CHECK (((seq > 0) AND ((seq % (256)::bigint) = 0)))
);

CREATE TABLE public.mfa_challenges (
    hash bytea NOT NULL,
    user_id uuid NOT NULL,
    scope text NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    failures integer NOT NULL,
    CONSTRAINT mfa_challenges_hash_check CHECK ((length(hash) = 32))
);

CREATE TABLE public.orders (
    id uuid NOT NULL,
    account_id uuid NOT NULL,
    client_order_id text,
    client_key uuid,
    parent_id uuid,
    venue text NOT NULL,
    symbol text NOT NULL,
    side text NOT NULL,
    type text NOT NULL,
    time_in_force text NOT NULL,
    post_only boolean NOT NULL,
    quantity public.amount,
    quote_amount public.amount,
    limit_price public.amount,
    state text NOT NULL,
    reason text,
    filled_quantity public.amount NOT NULL,
    filled_quote public.amount NOT NULL,
    fees jsonb NOT NULL,
    held_asset text NOT NULL,
    held_amount public.amount NOT NULL,
    cancel_requested boolean NOT NULL,
    venue_order_id text,
    send_by timestamp with time zone NOT NULL,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    seq bigint NOT NULL,
    CONSTRAINT orders_check CHECK (((quantity IS NOT NULL) OR (quote_amount IS NOT NULL) OR (parent_id IS NOT NULL))),
    CONSTRAINT orders_filled_quantity_check CHECK (((filled_quantity)::numeric >= (0)::numeric)),
    CONSTRAINT orders_filled_quote_check CHECK (((filled_quote)::numeric >= (0)::numeric)),
    CONSTRAINT orders_held_amount_check CHECK (((held_amount)::numeric >= (0)::numeric)),
    CONSTRAINT orders_limit_price_check CHECK (((limit_price)::numeric > (0)::numeric)),
    CONSTRAINT orders_quantity_check CHECK (((quantity)::numeric > (0)::numeric)),
    CONSTRAINT orders_quote_amount_check CHECK (((quote_amount)::numeric > (0)::numeric)),
    CONSTRAINT orders_side_check CHECK ((side = ANY (ARRAY['buy'::text, 'sell'::text]))),
    CONSTRAINT orders_time_in_force_check CHECK ((time_in_force = ANY (ARRAY['gtc'::text, 'ioc'::text, 'fok'::text]))),
    CONSTRAINT orders_type_check CHECK ((type = ANY (ARRAY['market'::text, 'limit'::text])))
)
WITH (fillfactor='70');

CREATE TABLE public.payments (
    id uuid NOT NULL,
    account_id uuid NOT NULL,
    kind text NOT NULL,
    provider text NOT NULL,
    asset text NOT NULL,
    amount public.amount NOT NULL,
    fee public.amount NOT NULL,
    destination text,
    state text NOT NULL,
    reason text,
    instructions text,
    reference text,
    settled public.amount NOT NULL,
    held public.amount NOT NULL,
    requested_by uuid,
    decided_by uuid,
    parent_id uuid,
    metadata jsonb NOT NULL,
    expires_at timestamp with time zone,
    submitted_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    seq bigint NOT NULL,
    CONSTRAINT payments_amount_check CHECK (((amount)::numeric > (0)::numeric)),
    CONSTRAINT payments_check CHECK (((kind = 'withdrawal'::text) = (destination IS NOT NULL))),
    CONSTRAINT payments_check1 CHECK ((((held)::numeric > (0)::numeric) = ((kind = 'withdrawal'::text) AND (state = ANY (ARRAY['awaiting_approval'::text, 'approved'::text, 'submitted'::text]))))),
    CONSTRAINT payments_fee_check CHECK (((fee)::numeric >= (0)::numeric)),
    CONSTRAINT payments_held_check CHECK (((held)::numeric >= (0)::numeric)),
    CONSTRAINT payments_kind_check CHECK ((kind = ANY (ARRAY['deposit'::text, 'withdrawal'::text]))),
    CONSTRAINT payments_settled_check CHECK (((settled)::numeric >= (0)::numeric)),
    CONSTRAINT payments_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'awaiting_approval'::text, 'approved'::text, 'submitted'::text, 'succeeded'::text, 'failed'::text, 'expired'::text, 'rejected'::text, 'canceled'::text, 'returned'::text])))
)
WITH (fillfactor='70');

CREATE TABLE public.positions (
    account_id uuid NOT NULL,
    symbol text NOT NULL,
    quantity public.amount NOT NULL,
    cost public.amount NOT NULL,
    realized_pnl public.amount NOT NULL,
    CONSTRAINT positions_cost_check CHECK (((cost)::numeric >= (0)::numeric)),
    CONSTRAINT positions_quantity_check CHECK (((quantity)::numeric >= (0)::numeric))
)
WITH (fillfactor='50');

CREATE TABLE public.recovery_codes (
    user_id uuid NOT NULL,
    hash bytea NOT NULL,
    used_at timestamp with time zone,
    CONSTRAINT recovery_codes_hash_check CHECK ((length(hash) = 32))
);

CREATE TABLE public.refresh_tokens (
    hash bytea NOT NULL,
    session_id uuid NOT NULL,
    issued_at timestamp with time zone NOT NULL,
    used_at timestamp with time zone,
    CONSTRAINT refresh_tokens_hash_check CHECK ((length(hash) = 32))
);

CREATE TABLE public.schema_migration (
    version integer NOT NULL,
    name text NOT NULL,
    checksum text NOT NULL,
    applied_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.sessions (
    id uuid NOT NULL,
    user_id uuid NOT NULL,
    scope text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    ended_at timestamp with time zone,
    end_reason text,
    address text,
    user_agent text,
    last_used_at timestamp with time zone NOT NULL,
    password_at timestamp with time zone,
    factor_at timestamp with time zone,
    CONSTRAINT sessions_check CHECK (((ended_at IS NULL) = (end_reason IS NULL)))
);

CREATE TABLE public.shared_secrets (
    name text NOT NULL,
    secret bytea NOT NULL,
    CONSTRAINT shared_secrets_secret_check CHECK ((length(secret) >= 32))
);

CREATE TABLE public.signing_keys (
    kid text NOT NULL,
    seed bytea NOT NULL,
    signs_from timestamp with time zone NOT NULL,
    signs_until timestamp with time zone NOT NULL,
    retires_at timestamp with time zone NOT NULL,
    CONSTRAINT signing_keys_check CHECK (((signs_from < signs_until) AND (signs_until <= retires_at))),
    CONSTRAINT signing_keys_seed_check CHECK ((length(seed) = 32))
);

CREATE TABLE public.simulated_payments (
    id uuid NOT NULL,
    kind text NOT NULL,
    asset text NOT NULL,
    amount public.amount NOT NULL,
    destination text,
    reference text NOT NULL,
    requests integer NOT NULL,
    outcome text NOT NULL,
    due_at timestamp with time zone NOT NULL,
    told boolean NOT NULL,
    attempts integer NOT NULL,
    CONSTRAINT simulated_payments_amount_check CHECK (((amount)::numeric > (0)::numeric)),
    CONSTRAINT simulated_payments_kind_check CHECK ((kind = ANY (ARRAY['deposit'::text, 'withdrawal'::text]))),
    CONSTRAINT simulated_payments_outcome_check CHECK ((outcome = ANY (ARRAY['succeeded'::text, 'failed'::text, 'returned'::text])))
);

CREATE TABLE public.stream_tickets (
    hash bytea NOT NULL,
    user_id uuid NOT NULL,
    session_id uuid NOT NULL,
    scope text NOT NULL,
    token_expires_at_s bigint NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT stream_tickets_hash_check CHECK ((length(hash) = 32))
);

CREATE TABLE public.streams (
    account_id uuid NOT NULL,
    seq bigint NOT NULL,
    hash bytea NOT NULL,
    at timestamp with time zone NOT NULL,
    CONSTRAINT streams_seq_check CHECK ((seq >= 0))
)
WITH (fillfactor='50');

CREATE TABLE public.switch_changes (
    id bigint NOT NULL,
    name text NOT NULL,
    halted boolean NOT NULL,
    reason text NOT NULL,
    changed_by text NOT NULL,
    at timestamp with time zone NOT NULL,
    actor jsonb
);

ALTER TABLE public.switch_changes ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.switch_changes_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.switches (
    name text NOT NULL,
    halted boolean NOT NULL,
    reason text NOT NULL,
    at timestamp with time zone NOT NULL,
    changed_by text DEFAULT 'system'::text NOT NULL,
    actor jsonb
);

CREATE TABLE public.totp_factors (
    user_id uuid NOT NULL,
    secret bytea NOT NULL,
    created_at timestamp with time zone NOT NULL,
    confirmed_at timestamp with time zone,
    last_step bigint NOT NULL,
    sealed_by bytea,
    CONSTRAINT totp_factors_sealed_by_check CHECK ((length(sealed_by) = 8)),
    CONSTRAINT totp_factors_secret_check CHECK ((length(secret) >= 20))
);

CREATE TABLE public.transfers (
    id uuid NOT NULL,
    source_id uuid NOT NULL,
    target_id uuid NOT NULL,
    asset text NOT NULL,
    amount public.amount NOT NULL,
    state text NOT NULL,
    posted_amount public.amount NOT NULL,
    expires_at timestamp with time zone,
    reverses uuid,
    reversed_by uuid,
    group_id uuid,
    metadata jsonb NOT NULL,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    CONSTRAINT transfers_amount_check CHECK (((amount)::numeric > (0)::numeric)),
    CONSTRAINT transfers_check CHECK ((target_id <> source_id)),
    CONSTRAINT transfers_check1 CHECK ((((posted_amount)::numeric >= (0)::numeric) AND ((posted_amount)::numeric <= (amount)::numeric))),
    CONSTRAINT transfers_check2 CHECK (((state = 'posted'::text) = ((posted_amount)::numeric > (0)::numeric))),
    CONSTRAINT transfers_check3 CHECK (((reversed_by IS NULL) OR (state = 'posted'::text))),
    CONSTRAINT transfers_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'posted'::text, 'voided'::text, 'expired'::text])))
);

CREATE TABLE public.users (
    id uuid NOT NULL,
    username text NOT NULL,
    password_hash text NOT NULL,
    role text NOT NULL,
    status text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    password_changed_at timestamp with time zone NOT NULL,
    CONSTRAINT users_role_check CHECK ((role = ANY (ARRAY['admin'::text, 'trader'::text, 'viewer'::text, 'auditor'::text, 'service'::text]))),
    CONSTRAINT users_status_check CHECK ((status = ANY (ARRAY['active'::text, 'disabled'::text]))),
    CONSTRAINT users_username_check CHECK ((username ~ '^[a-z0-9][a-z0-9._-]{2,31}$'::text))
);

CREATE TABLE public.venue_sessions (
    venue text NOT NULL,
    session_id text NOT NULL,
    since timestamp with time zone NOT NULL,
    found_id text
);

CREATE TABLE public.webhook_deliveries (
    webhook_id uuid NOT NULL,
    seq bigint NOT NULL,
    kind text NOT NULL,
    state text NOT NULL,
    attempts integer NOT NULL,
    status smallint,
    error text,
    at timestamp with time zone NOT NULL,
    next_at timestamp with time zone,
    CONSTRAINT webhook_deliveries_attempts_check CHECK ((attempts > 0)),
    CONSTRAINT webhook_deliveries_check CHECK (((state = 'retrying'::text) = (next_at IS NOT NULL))),
    CONSTRAINT webhook_deliveries_state_check CHECK ((state = ANY (ARRAY['retrying'::text, 'delivered'::text, 'dead'::text])))
);

CREATE TABLE public.webhooks (
    id uuid NOT NULL,
    owner_id uuid NOT NULL,
    account_id uuid NOT NULL,
    url text NOT NULL,
    kinds text[] NOT NULL,
    secret bytea NOT NULL,
    enabled boolean NOT NULL,
    disabled_reason text,
    seq bigint NOT NULL,
    hash bytea NOT NULL,
    failures integer NOT NULL,
    version integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    old_secrets bytea[] DEFAULT '{}'::bytea[] NOT NULL,
    old_until timestamp with time zone[] DEFAULT '{}'::timestamp with time zone[] NOT NULL,
    CONSTRAINT webhooks_check CHECK ((enabled OR (disabled_reason IS NOT NULL))),
    CONSTRAINT webhooks_failures_check CHECK ((failures >= 0)),
    CONSTRAINT webhooks_hash_check CHECK ((length(hash) = 32)),
    CONSTRAINT webhooks_old_secrets CHECK ((cardinality(old_secrets) = cardinality(old_until))),
    CONSTRAINT webhooks_secret_check CHECK ((length(secret) >= 24)),
    CONSTRAINT webhooks_seq_check CHECK ((seq >= 0))
)
WITH (fillfactor='70');

ALTER TABLE ONLY public.account_members
    ADD CONSTRAINT account_members_pkey PRIMARY KEY (account_id, user_id);

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.api_key_addresses
    ADD CONSTRAINT api_key_addresses_pkey PRIMARY KEY (key_id, address, allowed);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_hash_key UNIQUE (hash);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.assets
    ADD CONSTRAINT assets_pkey PRIMARY KEY (code);

ALTER TABLE ONLY public.balances
    ADD CONSTRAINT balances_pkey PRIMARY KEY (account_id, asset);

ALTER TABLE ONLY public.candle_gaps
    ADD CONSTRAINT candle_gaps_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.candle_gaps
    ADD CONSTRAINT candle_gaps_venue_symbol_interval_s_from_at_to_at_key UNIQUE (venue, symbol, interval_s, from_at, to_at);

ALTER TABLE ONLY public.candles
    ADD CONSTRAINT candles_pkey PRIMARY KEY (venue, symbol, interval_s, start_at);

ALTER TABLE ONLY public.counters
    ADD CONSTRAINT counters_pkey PRIMARY KEY (name, asset, lane);

ALTER TABLE ONLY public.fills
    ADD CONSTRAINT fills_pkey PRIMARY KEY (order_id, trade_id);

ALTER TABLE ONLY public.idempotency_keys
    ADD CONSTRAINT idempotency_keys_pkey PRIMARY KEY (key);

ALTER TABLE ONLY public.imports
    ADD CONSTRAINT imports_pkey PRIMARY KEY (digest);

ALTER TABLE ONLY public.instruments
    ADD CONSTRAINT instruments_pkey PRIMARY KEY (venue, symbol);

ALTER TABLE ONLY public.journal
    ADD CONSTRAINT journal_pkey PRIMARY KEY (account_id, seq);

ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.login_failures
    ADD CONSTRAINT login_failures_pkey PRIMARY KEY (key);

ALTER TABLE ONLY public.marks
    ADD CONSTRAINT marks_pkey PRIMARY KEY (account_id, seq);

ALTER TABLE ONLY public.mfa_challenges
    ADD CONSTRAINT mfa_challenges_pkey PRIMARY KEY (hash);

ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.payments
    ADD CONSTRAINT payments_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.positions
    ADD CONSTRAINT positions_pkey PRIMARY KEY (account_id, symbol);

ALTER TABLE ONLY public.recovery_codes
    ADD CONSTRAINT recovery_codes_pkey PRIMARY KEY (user_id, hash);

ALTER TABLE ONLY public.refresh_tokens
    ADD CONSTRAINT refresh_tokens_pkey PRIMARY KEY (hash);

ALTER TABLE ONLY public.schema_migration
    ADD CONSTRAINT schema_migration_pkey PRIMARY KEY (version);

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.shared_secrets
    ADD CONSTRAINT shared_secrets_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.signing_keys
    ADD CONSTRAINT signing_keys_pkey PRIMARY KEY (kid);

ALTER TABLE ONLY public.simulated_payments
    ADD CONSTRAINT simulated_payments_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.simulated_payments
    ADD CONSTRAINT simulated_payments_reference_key UNIQUE (reference);

ALTER TABLE ONLY public.stream_tickets
    ADD CONSTRAINT stream_tickets_pkey PRIMARY KEY (hash);

ALTER TABLE ONLY public.streams
    ADD CONSTRAINT streams_pkey PRIMARY KEY (account_id);

ALTER TABLE ONLY public.switch_changes
    ADD CONSTRAINT switch_changes_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.switches
    ADD CONSTRAINT switches_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.totp_factors
    ADD CONSTRAINT totp_factors_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY public.transfers
    ADD CONSTRAINT transfers_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_username_key UNIQUE (username);

ALTER TABLE ONLY public.venue_sessions
    ADD CONSTRAINT venue_sessions_pkey PRIMARY KEY (venue);

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (webhook_id, seq);

ALTER TABLE ONLY public.webhooks
    ADD CONSTRAINT webhooks_pkey PRIMARY KEY (id);

CREATE INDEX account_members_user ON public.account_members USING btree (user_id, account_id);

CREATE INDEX accounts_opened ON public.accounts USING btree (owner_id, opened_at, id);

CREATE UNIQUE INDEX api_keys_name ON public.api_keys USING btree (user_id, name) WHERE (revoked_at IS NULL);

CREATE INDEX fills_account ON public.fills USING btree (account_id, seq);

CREATE INDEX idempotency_keys_at ON public.idempotency_keys USING btree (at);

CREATE INDEX login_failures_at ON public.login_failures USING btree (at);

CREATE INDEX marks_at ON public.marks USING btree (account_id, at, seq);

CREATE INDEX mfa_challenges_expiry ON public.mfa_challenges USING btree (expires_at);

CREATE INDEX mfa_challenges_user ON public.mfa_challenges USING btree (user_id);

CREATE INDEX orders_account ON public.orders USING btree (account_id, id);

CREATE UNIQUE INDEX orders_client_key ON public.orders USING btree (client_key);

CREATE INDEX orders_open ON public.orders USING btree (account_id, id) WHERE (state <> ALL (ARRAY['filled'::text, 'canceled'::text, 'rejected'::text, 'expired'::text]));

CREATE INDEX orders_parent ON public.orders USING btree (parent_id) WHERE (parent_id IS NOT NULL);

CREATE INDEX payments_account ON public.payments USING btree (account_id, id);

CREATE INDEX payments_approvals ON public.payments USING btree (id) WHERE (state = 'awaiting_approval'::text);

CREATE UNIQUE INDEX payments_credited ON public.payments USING btree (provider, reference) WHERE ((kind = 'deposit'::text) AND (reference IS NOT NULL));

CREATE INDEX payments_day ON public.payments USING btree (account_id, created_at);

CREATE INDEX payments_due ON public.payments USING btree (id) WHERE ((state = 'approved'::text) OR ((state = 'pending'::text) AND (instructions IS NULL)));

CREATE INDEX payments_expiring ON public.payments USING btree (expires_at) WHERE (state = 'pending'::text);

CREATE INDEX payments_open ON public.payments USING btree (account_id, id) WHERE (state = ANY (ARRAY['pending'::text, 'awaiting_approval'::text, 'approved'::text, 'submitted'::text]));

CREATE INDEX payments_silent ON public.payments USING btree (updated_at) WHERE ((state = 'submitted'::text) OR ((state = 'pending'::text) AND (instructions IS NOT NULL)));

CREATE INDEX refresh_tokens_session ON public.refresh_tokens USING btree (session_id);

CREATE INDEX sessions_expiry ON public.sessions USING btree (expires_at);

CREATE INDEX sessions_known ON public.sessions USING btree (user_id, address);

CREATE INDEX sessions_user ON public.sessions USING btree (user_id) WHERE (ended_at IS NULL);

CREATE INDEX simulated_payments_due ON public.simulated_payments USING btree (due_at) WHERE (NOT told);

CREATE INDEX stream_tickets_expiry ON public.stream_tickets USING btree (expires_at);

CREATE INDEX stream_tickets_session ON public.stream_tickets USING btree (session_id);

CREATE INDEX stream_tickets_user ON public.stream_tickets USING btree (user_id);

CREATE INDEX switch_changes_name ON public.switch_changes USING btree (name, id);

CREATE INDEX transfers_expiring ON public.transfers USING btree (expires_at) WHERE ((state = 'pending'::text) AND (expires_at IS NOT NULL));

CREATE INDEX transfers_pending ON public.transfers USING btree (source_id, id) WHERE (state = 'pending'::text);

CREATE UNIQUE INDEX transfers_reverses ON public.transfers USING btree (reverses) WHERE (reverses IS NOT NULL);

CREATE INDEX transfers_source ON public.transfers USING btree (source_id, id);

CREATE INDEX transfers_target ON public.transfers USING btree (target_id, id);

CREATE INDEX webhook_deliveries_dead ON public.webhook_deliveries USING btree (webhook_id, seq) WHERE (state = 'dead'::text);

CREATE INDEX webhooks_owner ON public.webhooks USING btree (owner_id, id);

CREATE TRIGGER fills_are_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.fills FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER journal_is_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.journal FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER switch_changes_are_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON public.switch_changes FOR EACH STATEMENT EXECUTE FUNCTION public.refuse_change();

CREATE TRIGGER switches_are_noted AFTER INSERT OR UPDATE ON public.switches FOR EACH ROW EXECUTE FUNCTION public.note_switch_change();

ALTER TABLE ONLY public.api_key_addresses
    ADD CONSTRAINT api_key_addresses_key_id_fkey FOREIGN KEY (key_id) REFERENCES public.api_keys(id);

ALTER TABLE ONLY public.api_keys
    ADD CONSTRAINT api_keys_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);

ALTER TABLE ONLY public.mfa_challenges
    ADD CONSTRAINT mfa_challenges_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);

ALTER TABLE ONLY public.recovery_codes
    ADD CONSTRAINT recovery_codes_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);

ALTER TABLE ONLY public.refresh_tokens
    ADD CONSTRAINT refresh_tokens_session_id_fkey FOREIGN KEY (session_id) REFERENCES public.sessions(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);

ALTER TABLE ONLY public.stream_tickets
    ADD CONSTRAINT stream_tickets_session_id_fkey FOREIGN KEY (session_id) REFERENCES public.sessions(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.totp_factors
    ADD CONSTRAINT totp_factors_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);

ALTER TABLE ONLY public.webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_webhook_id_fkey FOREIGN KEY (webhook_id) REFERENCES public.webhooks(id) ON DELETE CASCADE;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.account_members TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.accounts TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.api_key_addresses TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.api_keys TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.assets TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.balances TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.candle_gaps TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.candles TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.counters TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.fills TO tbot_app;

GRANT SELECT,INSERT,DELETE ON TABLE public.idempotency_keys TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.imports TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.instruments TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.journal TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.leases TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.login_failures TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.marks TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.mfa_challenges TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.orders TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.payments TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.positions TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.recovery_codes TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.refresh_tokens TO tbot_app;

GRANT SELECT ON TABLE public.schema_migration TO PUBLIC;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.sessions TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.shared_secrets TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.signing_keys TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.simulated_payments TO tbot_app;

GRANT SELECT,INSERT,DELETE ON TABLE public.stream_tickets TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.streams TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.switch_changes TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.switches TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.totp_factors TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.transfers TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.users TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.venue_sessions TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.webhook_deliveries TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.webhooks TO tbot_app;
