-- Tickets that web pages show in place of an access token: good once, for some seconds. Only hashes:
-- whoever reads this table holds no ticket. Whoever uses one deletes its row, in whichever process.

CREATE TABLE stream_tickets (
    hash               bytea PRIMARY KEY CHECK (length(hash) = 32),
    user_id            uuid NOT NULL,
    session_id         uuid NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    scope              text NOT NULL,
    token_expires_at_s bigint NOT NULL,
    expires_at         timestamptz NOT NULL
);
CREATE INDEX stream_tickets_user ON stream_tickets (user_id);
CREATE INDEX stream_tickets_session ON stream_tickets (session_id);
CREATE INDEX stream_tickets_expiry ON stream_tickets (expires_at);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, DELETE ON stream_tickets TO tbot_app;
    END IF;
END
$$;
