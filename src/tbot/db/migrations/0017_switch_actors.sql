-- Who turned a switch, as the journal's entries have it: over HTTP with session, address, request.
-- Null in turns from before.

ALTER TABLE switches ADD COLUMN actor jsonb;
ALTER TABLE switch_changes ADD COLUMN actor jsonb;

CREATE OR REPLACE FUNCTION note_switch_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO switch_changes (name, halted, reason, changed_by, at, actor)
    VALUES (NEW.name, NEW.halted, NEW.reason, NEW.changed_by, NEW.at, NEW.actor);
    RETURN NULL;
END
$$;
