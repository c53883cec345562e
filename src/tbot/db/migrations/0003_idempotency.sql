-- Answers kept under the callers' idempotency keys, written in the transaction of their commands.
-- Headers are JSON text; like the body they are sent again byte for byte.

CREATE TABLE idempotency_keys (
    key     uuid PRIMARY KEY,
    content bytea NOT NULL CHECK (length(content) = 16),
    status  smallint NOT NULL,
    headers bytea NOT NULL,
    body    bytea NOT NULL,
    at      timestamptz NOT NULL
);
-- For the cleaner.
CREATE INDEX idempotency_keys_at ON idempotency_keys (at);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, DELETE ON idempotency_keys TO tbot_app;
    END IF;
END
$$;
