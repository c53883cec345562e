-- The journal, the ledger and the orders.
--
-- `streams` holds the only rows that the write path locks: one per account, with the head of its
-- chain. Everything else about an account changes only while its stream row is locked, in the
-- transaction that appends the journal entry which says so.

-- NUMERIC accepts NaN and infinities, NaN sorts above every number (so CHECK (x > 0) lets it
-- through), and a scale in the type would round silently. Hence a domain.
CREATE DOMAIN amount AS numeric
    CHECK (VALUE <> 'NaN' AND VALUE > -1e20 AND VALUE < 1e20 AND scale(VALUE) <= 18);

CREATE TABLE streams (
    account_id uuid PRIMARY KEY,
    seq        bigint NOT NULL CHECK (seq >= 0),
    hash       bytea NOT NULL,
    at         timestamptz NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE journal (
    account_id uuid NOT NULL,
    seq        bigint NOT NULL CHECK (seq > 0),
    command_id uuid NOT NULL,
    kind       text NOT NULL,
    at         timestamptz NOT NULL,
    body       bytea NOT NULL,
    hash       bytea NOT NULL CHECK (length(hash) = 32),
    PRIMARY KEY (account_id, seq)
);

-- Balances of what no customer owns: what the venues hold for us, the outside world. Striped by
-- lane (one per running committer), so that committers never wait for each other here; a balance
-- is the sum over its lanes.
CREATE TABLE counters (
    name   text NOT NULL,
    asset  text NOT NULL,
    lane   smallint NOT NULL,
    amount amount NOT NULL,
    PRIMARY KEY (name, asset, lane)
) WITH (fillfactor = 50);

-- Switches that every decision reads: FOR SHARE, once per batch.
CREATE TABLE switches (
    name   text PRIMARY KEY,
    halted boolean NOT NULL,
    reason text NOT NULL,
    at     timestamptz NOT NULL
);

CREATE TABLE accounts (
    id         uuid PRIMARY KEY,
    owner_id   uuid NOT NULL,
    name       text NOT NULL,
    venue      text NOT NULL,
    status     text NOT NULL CHECK (status IN ('open', 'frozen', 'closed')),
    limits     jsonb NOT NULL,
    opened_at  timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX accounts_owner ON accounts (owner_id, id);

CREATE TABLE balances (
    account_id uuid NOT NULL,
    asset      text NOT NULL,
    available  amount NOT NULL,
    held       amount NOT NULL CHECK (held >= 0),
    PRIMARY KEY (account_id, asset)
) WITH (fillfactor = 50);

CREATE TABLE positions (
    account_id   uuid NOT NULL,
    symbol       text NOT NULL,
    quantity     amount NOT NULL CHECK (quantity >= 0),
    cost         amount NOT NULL CHECK (cost >= 0),
    realized_pnl amount NOT NULL,
    PRIMARY KEY (account_id, symbol)
) WITH (fillfactor = 50);

CREATE TABLE orders (
    id               uuid PRIMARY KEY,
    account_id       uuid NOT NULL,
    client_order_id  text,
    client_key       uuid,
    parent_id        uuid,
    venue            text NOT NULL,
    symbol           text NOT NULL,
    side             text NOT NULL CHECK (side IN ('buy', 'sell')),
    type             text NOT NULL CHECK (type IN ('market', 'limit')),
    time_in_force    text NOT NULL CHECK (time_in_force IN ('gtc', 'ioc', 'fok')),
    post_only        boolean NOT NULL,
    quantity         amount CHECK (quantity > 0),
    quote_amount     amount CHECK (quote_amount > 0),
    limit_price      amount CHECK (limit_price > 0),
    state            text NOT NULL,
    reason           text,
    filled_quantity  amount NOT NULL CHECK (filled_quantity >= 0),
    filled_quote     amount NOT NULL CHECK (filled_quote >= 0),
    fees             jsonb NOT NULL,
    held_asset       text NOT NULL,
    held_amount      amount NOT NULL CHECK (held_amount >= 0),
    cancel_requested boolean NOT NULL,
    venue_order_id   text,
    send_by          timestamptz NOT NULL,
    created_at       timestamptz NOT NULL,
    updated_at       timestamptz NOT NULL,
    seq              bigint NOT NULL,
    CHECK (quantity IS NOT NULL OR quote_amount IS NOT NULL OR parent_id IS NOT NULL)
) WITH (fillfactor = 70);
-- A client_order_id names one order of its account for ever. The key is a hash of both: half the
-- index, and no other index that a planner without statistics could take for as good.
CREATE UNIQUE INDEX orders_client_key ON orders (client_key);
CREATE INDEX orders_account ON orders (account_id, id);
CREATE INDEX orders_parent ON orders (parent_id) WHERE parent_id IS NOT NULL;
-- What the gateway still has to care about; small, however many orders there ever were.
CREATE INDEX orders_open ON orders (account_id, id)
    WHERE state NOT IN ('filled', 'canceled', 'rejected', 'expired');

CREATE TABLE fills (
    order_id       uuid NOT NULL,
    trade_id       text NOT NULL,
    account_id     uuid NOT NULL,
    seq            bigint NOT NULL,
    symbol         text NOT NULL,
    side           text NOT NULL,
    price          amount NOT NULL CHECK (price > 0),
    quantity       amount NOT NULL CHECK (quantity > 0),
    quote_quantity amount NOT NULL CHECK (quote_quantity >= 0),
    fee            amount NOT NULL,
    fee_asset      text NOT NULL,
    maker          boolean NOT NULL,
    at             timestamptz NOT NULL,
    -- Two of our own orders that meet share the venue's trade id: hence not the id alone.
    PRIMARY KEY (order_id, trade_id)
);
CREATE INDEX fills_account ON fills (account_id, seq);

CREATE TABLE assets (
    code  text PRIMARY KEY,
    scale smallint NOT NULL CHECK (scale BETWEEN 0 AND 18)
);

CREATE TABLE instruments (
    venue               text NOT NULL,
    symbol              text NOT NULL,
    venue_symbol        text NOT NULL,
    base                text NOT NULL,
    quote               text NOT NULL,
    base_scale          smallint NOT NULL,
    quote_scale         smallint NOT NULL,
    tick                amount NOT NULL,
    price_min           amount NOT NULL,
    price_max           amount NOT NULL,
    step                amount NOT NULL,
    quantity_min        amount NOT NULL,
    quantity_max        amount NOT NULL,
    market_step         amount NOT NULL,
    market_quantity_max amount NOT NULL,
    notional_min        amount NOT NULL,
    notional_max        amount,
    trading             boolean NOT NULL,
    updated_at          timestamptz NOT NULL,
    PRIMARY KEY (venue, symbol)
);

-- Who may speak for a venue account: see docs/architecture.md, "Leases".
CREATE TABLE leases (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    epoch      bigint NOT NULL,
    expires_at timestamptz NOT NULL
);

-- What T-Bot knows of a venue account between runs: the session whose loss must halt trading.
CREATE TABLE venue_sessions (
    venue      text PRIMARY KEY,
    session_id text NOT NULL,
    since      timestamptz NOT NULL
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, UPDATE ON
            streams, counters, switches, accounts, balances, positions, orders,
            assets, instruments, leases, venue_sessions TO tbot_app;
        GRANT DELETE ON leases TO tbot_app;
        -- The past is append-only for the server itself.
        GRANT SELECT, INSERT ON journal, fills TO tbot_app;
    END IF;
END
$$;
