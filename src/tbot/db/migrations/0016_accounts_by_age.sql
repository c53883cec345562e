-- Accounts are listed oldest first: ids that belong to a key say nothing about age.

CREATE INDEX accounts_opened ON accounts (owner_id, opened_at, id);
DROP INDEX accounts_owner;
