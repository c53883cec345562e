-- Secrets of second factors may be sealed under a key that is not in the database.

ALTER TABLE totp_factors
    -- The name of that key; null for a secret that is stored as it is.
    ADD COLUMN sealed_by bytea CHECK (length(sealed_by) = 8);
