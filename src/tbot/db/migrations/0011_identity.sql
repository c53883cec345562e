-- How users prove who they are (second factors, API keys), what is known of their sessions, how
-- guessing is slowed down, and with whom accounts are shared.

ALTER TABLE users DROP CONSTRAINT users_role_check;
ALTER TABLE users ADD CONSTRAINT users_role_check
    CHECK (role IN ('admin', 'trader', 'viewer', 'auditor', 'service'));

-- When this session's user last showed the password or a second factor: what sensitive calls ask.
ALTER TABLE sessions
    ADD COLUMN address      text,
    ADD COLUMN user_agent   text,
    ADD COLUMN last_used_at timestamptz,
    ADD COLUMN password_at  timestamptz,
    ADD COLUMN factor_at    timestamptz;
UPDATE sessions SET last_used_at = created_at, password_at = created_at;
ALTER TABLE sessions ALTER COLUMN last_used_at SET NOT NULL;
-- Whether somebody has logged in from an address before.
CREATE INDEX sessions_known ON sessions (user_id, address);

-- A time-based one-time password (RFC 6238). A code is good for a step after the last used one.
CREATE TABLE totp_factors (
    user_id      uuid PRIMARY KEY REFERENCES users (id),
    secret       bytea NOT NULL CHECK (length(secret) >= 20),
    created_at   timestamptz NOT NULL,
    confirmed_at timestamptz,
    last_step    bigint NOT NULL
);

CREATE TABLE recovery_codes (
    user_id uuid NOT NULL REFERENCES users (id),
    hash    bytea NOT NULL CHECK (length(hash) = 32),
    used_at timestamptz,
    PRIMARY KEY (user_id, hash)
);

-- Logins that passed the password and wait for the second factor; only hashes of their tokens.
CREATE TABLE mfa_challenges (
    hash       bytea PRIMARY KEY CHECK (length(hash) = 32),
    user_id    uuid NOT NULL REFERENCES users (id),
    scope      text NOT NULL,
    expires_at timestamptz NOT NULL,
    failures   int NOT NULL
);
CREATE INDEX mfa_challenges_user ON mfa_challenges (user_id);
CREATE INDEX mfa_challenges_expiry ON mfa_challenges (expires_at);

CREATE TABLE api_keys (
    id           uuid PRIMARY KEY,
    user_id      uuid NOT NULL REFERENCES users (id),
    name         text NOT NULL,
    hash         bytea NOT NULL UNIQUE CHECK (length(hash) = 32),
    hint         text NOT NULL,
    scope        text NOT NULL,
    addresses    text[] NOT NULL,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    last_used_at timestamptz,
    last_address text,
    revoked_at   timestamptz
);
CREATE UNIQUE INDEX api_keys_name ON api_keys (user_id, name) WHERE revoked_at IS NULL;

-- From where a key was used or tried; the first sight of an address is a security event.
CREATE TABLE api_key_addresses (
    key_id   uuid NOT NULL REFERENCES api_keys (id),
    address  text NOT NULL,
    allowed  boolean NOT NULL,
    first_at timestamptz NOT NULL,
    PRIMARY KEY (key_id, address, allowed)
);

-- Failed proofs, by a hash of whose and from where; forgotten when their time is over.
CREATE TABLE login_failures (
    key      bytea PRIMARY KEY CHECK (length(key) = 16),
    failures int NOT NULL CHECK (failures > 0),
    at       timestamptz NOT NULL
);
CREATE INDEX login_failures_at ON login_failures (at);

-- Who else may use an account; its owner is in `accounts`. Follows from the account's journal.
CREATE TABLE account_members (
    account_id uuid NOT NULL,
    user_id    uuid NOT NULL,
    role       text NOT NULL CHECK (role IN ('viewer', 'trader', 'owner')),
    since      timestamptz NOT NULL,
    PRIMARY KEY (account_id, user_id)
);
CREATE INDEX account_members_user ON account_members (user_id, account_id);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON
            totp_factors, recovery_codes, mfa_challenges, login_failures, account_members
            TO tbot_app;
        GRANT SELECT, INSERT, UPDATE ON api_keys TO tbot_app;
        GRANT SELECT, INSERT ON api_key_addresses TO tbot_app;
    END IF;
END
$$;
