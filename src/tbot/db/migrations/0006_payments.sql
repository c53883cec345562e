-- Deposits and withdrawals of cash accounts.

CREATE TABLE payments (
    id           uuid PRIMARY KEY,
    account_id   uuid NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('deposit', 'withdrawal')),
    provider     text NOT NULL,
    asset        text NOT NULL,
    amount       amount NOT NULL CHECK (amount > 0),
    fee          amount NOT NULL CHECK (fee >= 0),
    destination  text,
    state        text NOT NULL CHECK (state IN (
        'pending', 'awaiting_approval', 'approved', 'submitted', 'succeeded', 'failed', 'expired',
        'rejected', 'canceled', 'returned')),
    reason       text,
    instructions text,
    reference    text,
    settled      amount NOT NULL CHECK (settled >= 0),
    held         amount NOT NULL CHECK (held >= 0),
    requested_by uuid,
    decided_by   uuid,
    parent_id    uuid,
    metadata     jsonb NOT NULL,
    expires_at   timestamptz,
    submitted_at timestamptz,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    seq          bigint NOT NULL,
    CHECK ((kind = 'withdrawal') = (destination IS NOT NULL)),
    -- A withdrawal holds its cost as long as it may still be paid.
    CHECK ((held > 0)
           = (kind = 'withdrawal' AND state IN ('awaiting_approval', 'approved', 'submitted')))
) WITH (fillfactor = 70);
CREATE INDEX payments_account ON payments (account_id, id);
-- For the totals of a day.
CREATE INDEX payments_day ON payments (account_id, created_at);
-- Small, however many payments there ever were: what can still change, what has to be sent, and
-- what the provider has to be asked about.
CREATE INDEX payments_open ON payments (account_id, id)
    WHERE state IN ('pending', 'awaiting_approval', 'approved', 'submitted');
CREATE INDEX payments_approvals ON payments (id) WHERE state = 'awaiting_approval';
CREATE INDEX payments_due ON payments (id)
    WHERE state = 'approved' OR (state = 'pending' AND instructions IS NULL);
CREATE INDEX payments_silent ON payments (updated_at)
    WHERE state = 'submitted' OR (state = 'pending' AND instructions IS NOT NULL);
CREATE INDEX payments_expiring ON payments (expires_at) WHERE state = 'pending';
-- No movement of money is credited twice, whichever payments a provider names it for.
CREATE UNIQUE INDEX payments_credited ON payments (provider, reference)
    WHERE kind = 'deposit' AND reference IS NOT NULL;

-- The books of the simulated provider: the other side of the counter-account
-- `outside:simulated`, which has to survive us as a real provider's would.
CREATE TABLE simulated_payments (
    id          uuid PRIMARY KEY,
    kind        text NOT NULL CHECK (kind IN ('deposit', 'withdrawal')),
    asset       text NOT NULL,
    amount      amount NOT NULL CHECK (amount > 0),
    destination text,
    reference   text NOT NULL UNIQUE,
    -- How often it was asked to: it pays once all the same.
    requests    integer NOT NULL,
    outcome     text NOT NULL CHECK (outcome IN ('succeeded', 'failed', 'returned')),
    due_at      timestamptz NOT NULL,
    told        boolean NOT NULL,
    attempts    integer NOT NULL
);
CREATE INDEX simulated_payments_due ON simulated_payments (due_at) WHERE NOT told;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, UPDATE ON payments, simulated_payments TO tbot_app;
    END IF;
END
$$;
