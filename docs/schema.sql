-- Generated from src/tbot/db/migrations by `make schema`: what they add up to.

CREATE DOMAIN public.amount AS numeric
	CONSTRAINT amount_check CHECK (((VALUE <> 'NaN'::numeric) AND (VALUE > '-100000000000000000000'::numeric) AND (VALUE < '100000000000000000000'::numeric) AND (scale(VALUE) <= 18)));

CREATE TABLE public.accounts (
    id uuid NOT NULL,
    owner_id uuid NOT NULL,
    name text NOT NULL,
    venue text NOT NULL,
    status text NOT NULL,
    limits jsonb NOT NULL,
    opened_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    CONSTRAINT accounts_status_check CHECK ((status = ANY (ARRAY['open'::text, 'frozen'::text, 'closed'::text])))
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

CREATE TABLE public.streams (
    account_id uuid NOT NULL,
    seq bigint NOT NULL,
    hash bytea NOT NULL,
    at timestamp with time zone NOT NULL,
    CONSTRAINT streams_seq_check CHECK ((seq >= 0))
)
WITH (fillfactor='50');

CREATE TABLE public.switches (
    name text NOT NULL,
    halted boolean NOT NULL,
    reason text NOT NULL,
    at timestamp with time zone NOT NULL
);

CREATE TABLE public.users (
    id uuid NOT NULL,
    username text NOT NULL,
    password_hash text NOT NULL,
    role text NOT NULL,
    status text NOT NULL,
    created_at timestamp with time zone NOT NULL,
    password_changed_at timestamp with time zone NOT NULL,
    CONSTRAINT users_role_check CHECK ((role = ANY (ARRAY['admin'::text, 'trader'::text]))),
    CONSTRAINT users_status_check CHECK ((status = ANY (ARRAY['active'::text, 'disabled'::text]))),
    CONSTRAINT users_username_check CHECK ((username ~ '^[a-z0-9][a-z0-9._-]{2,31}$'::text))
);

CREATE TABLE public.venue_sessions (
    venue text NOT NULL,
    session_id text NOT NULL,
    since timestamp with time zone NOT NULL
);

ALTER TABLE ONLY public.accounts
    ADD CONSTRAINT accounts_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.assets
    ADD CONSTRAINT assets_pkey PRIMARY KEY (code);

ALTER TABLE ONLY public.balances
    ADD CONSTRAINT balances_pkey PRIMARY KEY (account_id, asset);

ALTER TABLE ONLY public.counters
    ADD CONSTRAINT counters_pkey PRIMARY KEY (name, asset, lane);

ALTER TABLE ONLY public.fills
    ADD CONSTRAINT fills_pkey PRIMARY KEY (order_id, trade_id);

ALTER TABLE ONLY public.instruments
    ADD CONSTRAINT instruments_pkey PRIMARY KEY (venue, symbol);

ALTER TABLE ONLY public.journal
    ADD CONSTRAINT journal_pkey PRIMARY KEY (account_id, seq);

ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.positions
    ADD CONSTRAINT positions_pkey PRIMARY KEY (account_id, symbol);

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

ALTER TABLE ONLY public.streams
    ADD CONSTRAINT streams_pkey PRIMARY KEY (account_id);

ALTER TABLE ONLY public.switches
    ADD CONSTRAINT switches_pkey PRIMARY KEY (name);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_pkey PRIMARY KEY (id);

ALTER TABLE ONLY public.users
    ADD CONSTRAINT users_username_key UNIQUE (username);

ALTER TABLE ONLY public.venue_sessions
    ADD CONSTRAINT venue_sessions_pkey PRIMARY KEY (venue);

CREATE INDEX accounts_owner ON public.accounts USING btree (owner_id, id);

CREATE INDEX fills_account ON public.fills USING btree (account_id, seq);

CREATE INDEX orders_account ON public.orders USING btree (account_id, id);

CREATE UNIQUE INDEX orders_client_key ON public.orders USING btree (client_key);

CREATE INDEX orders_open ON public.orders USING btree (account_id, id) WHERE (state <> ALL (ARRAY['filled'::text, 'canceled'::text, 'rejected'::text, 'expired'::text]));

CREATE INDEX orders_parent ON public.orders USING btree (parent_id) WHERE (parent_id IS NOT NULL);

CREATE INDEX refresh_tokens_session ON public.refresh_tokens USING btree (session_id);

CREATE INDEX sessions_expiry ON public.sessions USING btree (expires_at);

CREATE INDEX sessions_user ON public.sessions USING btree (user_id) WHERE (ended_at IS NULL);

ALTER TABLE ONLY public.refresh_tokens
    ADD CONSTRAINT refresh_tokens_session_id_fkey FOREIGN KEY (session_id) REFERENCES public.sessions(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.sessions
    ADD CONSTRAINT sessions_user_id_fkey FOREIGN KEY (user_id) REFERENCES public.users(id);

GRANT SELECT,INSERT,UPDATE ON TABLE public.accounts TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.assets TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.balances TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.counters TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.fills TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.instruments TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.journal TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.leases TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.orders TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.positions TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.refresh_tokens TO tbot_app;

GRANT SELECT ON TABLE public.schema_migration TO PUBLIC;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.sessions TO tbot_app;

GRANT SELECT,INSERT ON TABLE public.shared_secrets TO tbot_app;

GRANT SELECT,INSERT,DELETE,UPDATE ON TABLE public.signing_keys TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.streams TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.switches TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.users TO tbot_app;

GRANT SELECT,INSERT,UPDATE ON TABLE public.venue_sessions TO tbot_app;
