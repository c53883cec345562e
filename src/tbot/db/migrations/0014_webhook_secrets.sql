-- Secrets that were replaced, the newest first: each signs, too, until its time is over.

ALTER TABLE webhooks
    ADD COLUMN old_secrets bytea[] NOT NULL DEFAULT '{}',
    ADD COLUMN old_until timestamptz[] NOT NULL DEFAULT '{}',
    ADD CONSTRAINT webhooks_old_secrets CHECK (cardinality(old_secrets) = cardinality(old_until));
