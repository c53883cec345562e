-- What auditors ask: who turned a switch, when and why; and no way to rewrite the past by a slip.

ALTER TABLE switches ADD COLUMN changed_by text NOT NULL DEFAULT 'system';

-- Every turn of every switch, whoever made it: the row in `switches` has only the last.
CREATE TABLE switch_changes (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    halted     boolean NOT NULL,
    reason     text NOT NULL,
    changed_by text NOT NULL,
    at         timestamptz NOT NULL
);
CREATE INDEX switch_changes_name ON switch_changes (name, id);

CREATE FUNCTION note_switch_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO switch_changes (name, halted, reason, changed_by, at)
    VALUES (NEW.name, NEW.halted, NEW.reason, NEW.changed_by, NEW.at);
    RETURN NULL;
END
$$;
CREATE TRIGGER switches_are_noted AFTER INSERT OR UPDATE ON switches
    FOR EACH ROW EXECUTE FUNCTION note_switch_change();

-- The session that was found when a venue had lost its memory: what a resumption accepts.
ALTER TABLE venue_sessions ADD COLUMN found_id text;

-- Grants bind the application's role; where it owns the database, nothing binds it but this.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'table % is append-only', TG_TABLE_NAME USING ERRCODE = '42501';
END
$$;
CREATE TRIGGER journal_is_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER fills_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON fills
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER switch_changes_are_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON switch_changes
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT ON switch_changes TO tbot_app;
    END IF;
END
$$;
