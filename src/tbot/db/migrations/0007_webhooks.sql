-- Outbound webhooks: cursors over the journal that deliver to an address of their owner's.

CREATE TABLE webhooks (
    id              uuid PRIMARY KEY,
    owner_id        uuid NOT NULL,
    account_id      uuid NOT NULL,
    url             text NOT NULL,
    -- Kinds of entries, as `order.*` or `payment.succeeded`; empty for all.
    kinds           text[] NOT NULL,
    secret          bytea NOT NULL CHECK (length(secret) >= 24),
    enabled         boolean NOT NULL,
    disabled_reason text,
    -- The place of the cursor: the last entry that is done with, one way or the other.
    seq             bigint NOT NULL CHECK (seq >= 0),
    hash            bytea NOT NULL CHECK (length(hash) = 32),
    -- Dead letters in a row.
    failures        integer NOT NULL CHECK (failures >= 0),
    -- Grows with every change by the owner: who delivers by an older one moves nothing any more.
    version         integer NOT NULL,
    created_at      timestamptz NOT NULL,
    updated_at      timestamptz NOT NULL,
    CHECK (enabled OR disabled_reason IS NOT NULL)
) WITH (fillfactor = 70);
CREATE INDEX webhooks_owner ON webhooks (owner_id, id);

CREATE TABLE webhook_deliveries (
    webhook_id uuid NOT NULL REFERENCES webhooks (id) ON DELETE CASCADE,
    seq        bigint NOT NULL,
    kind       text NOT NULL,
    state      text NOT NULL CHECK (state IN ('retrying', 'delivered', 'dead')),
    attempts   integer NOT NULL CHECK (attempts > 0),
    status     smallint,
    error      text,
    at         timestamptz NOT NULL,
    next_at    timestamptz,
    PRIMARY KEY (webhook_id, seq),
    CHECK ((state = 'retrying') = (next_at IS NOT NULL))
);
CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (webhook_id, seq) WHERE state = 'dead';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON webhooks, webhook_deliveries TO tbot_app;
    END IF;
END
$$;
