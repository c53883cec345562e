-- A statement that commits by itself may still lie unread in a lost connection's socket. Before it
-- can be said that it did not take effect, the session that would carry it out has to be over.

-- This session's name, which no other session of this server ever has.
CREATE FUNCTION this_session() RETURNS text LANGUAGE sql AS $$
    SELECT a.pid || ' ' || extract(epoch FROM a.backend_start)::text
    FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()
$$;

-- End a session and wait for that; whether it is over, and will never do anything again.
CREATE FUNCTION end_session(name text, patience_ms bigint) RETURNS boolean LANGUAGE sql AS $$
    SELECT coalesce(bool_and(pg_terminate_backend(a.pid, patience_ms)), true)
    FROM pg_stat_activity a WHERE a.pid || ' ' || extract(epoch FROM a.backend_start)::text = name
$$;
