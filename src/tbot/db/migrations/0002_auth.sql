-- Who may use T-Bot: users, their login sessions, and the keys that sign access tokens.

CREATE TABLE users (
    id                  uuid PRIMARY KEY,
    username            text NOT NULL UNIQUE CHECK (username ~ '^[a-z0-9][a-z0-9._-]{2,31}$'),
    password_hash       text NOT NULL,
    role                text NOT NULL CHECK (role IN ('admin', 'trader')),
    status              text NOT NULL CHECK (status IN ('active', 'disabled')),
    created_at          timestamptz NOT NULL,
    password_changed_at timestamptz NOT NULL
);

-- One login and everything that was refreshed from it: a family of refresh tokens. Every access
-- token names its session, so ending the session ends them all.
CREATE TABLE sessions (
    id         uuid PRIMARY KEY,
    user_id    uuid NOT NULL REFERENCES users (id),
    scope      text NOT NULL,
    created_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    ended_at   timestamptz,
    end_reason text,
    CHECK ((ended_at IS NULL) = (end_reason IS NULL))
);
CREATE INDEX sessions_user ON sessions (user_id) WHERE ended_at IS NULL;
CREATE INDEX sessions_expiry ON sessions (expires_at);

-- Only hashes: whoever reads this table holds no token. A used token stays until its session is
-- swept, because its second use is how a theft shows.
CREATE TABLE refresh_tokens (
    hash       bytea PRIMARY KEY CHECK (length(hash) = 32),
    session_id uuid NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    issued_at  timestamptz NOT NULL,
    used_at    timestamptz
);
CREATE INDEX refresh_tokens_session ON refresh_tokens (session_id);

-- Ed25519 seeds, shared by every process on this database: a backup of it is a secret.
-- A key signs in [signs_from, signs_until) and verifies until retires_at.
CREATE TABLE signing_keys (
    kid         text PRIMARY KEY,
    seed        bytea NOT NULL CHECK (length(seed) = 32),
    signs_from  timestamptz NOT NULL,
    signs_until timestamptz NOT NULL,
    retires_at  timestamptz NOT NULL,
    CHECK (signs_from < signs_until AND signs_until <= retires_at)
);

-- Keys of other kinds that all processes must share, by name (`cursors`: signs page cursors).
CREATE TABLE shared_secrets (
    name   text PRIMARY KEY,
    secret bytea NOT NULL CHECK (length(secret) >= 32)
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, UPDATE ON users, sessions, refresh_tokens, signing_keys TO tbot_app;
        GRANT DELETE ON sessions, refresh_tokens, signing_keys TO tbot_app;
        GRANT SELECT, INSERT ON shared_secrets TO tbot_app;
    END IF;
END
$$;
