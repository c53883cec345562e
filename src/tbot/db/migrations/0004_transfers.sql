-- Account kinds and two-phase transfers.

-- A trading account's money is at its venue; a cash account is for payments and has none.
ALTER TABLE accounts
    ADD COLUMN kind text NOT NULL DEFAULT 'trading' CHECK (kind IN ('trading', 'cash')),
    ALTER COLUMN venue DROP NOT NULL,
    ADD CHECK ((kind = 'trading') = (venue IS NOT NULL));

-- Each row follows from its source's stream alone.
CREATE TABLE transfers (
    id            uuid PRIMARY KEY,
    source_id     uuid NOT NULL,
    target_id     uuid NOT NULL CHECK (target_id <> source_id),
    asset         text NOT NULL,
    amount        amount NOT NULL CHECK (amount > 0),
    state         text NOT NULL CHECK (state IN ('pending', 'posted', 'voided', 'expired')),
    posted_amount amount NOT NULL CHECK (posted_amount >= 0 AND posted_amount <= amount),
    expires_at    timestamptz,
    reverses      uuid,
    reversed_by   uuid,
    group_id      uuid,
    metadata      jsonb NOT NULL,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL,
    CHECK ((state = 'posted') = (posted_amount > 0)),
    CHECK (reversed_by IS NULL OR state = 'posted')
);
CREATE INDEX transfers_source ON transfers (source_id, id);
CREATE INDEX transfers_target ON transfers (target_id, id);
-- What still holds funds; small, however many transfers there ever were.
CREATE INDEX transfers_pending ON transfers (source_id, id) WHERE state = 'pending';
CREATE INDEX transfers_expiring ON transfers (expires_at)
    WHERE state = 'pending' AND expires_at IS NOT NULL;
-- At most one reversal: the accounts' locks see to it, and this would show it if they did not.
CREATE UNIQUE INDEX transfers_reverses ON transfers (reverses) WHERE reverses IS NOT NULL;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, UPDATE ON transfers TO tbot_app;
    END IF;
END
$$;
