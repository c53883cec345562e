-- Balance marks: what an account had after every 256th entry of its stream, so that its balances
-- as of any moment are the last mark before it and at most 255 entries.

CREATE TABLE marks (
    account_id uuid NOT NULL,
    seq        bigint NOT NULL CHECK (seq > 0 AND seq % 256 = 0),
    at         timestamptz NOT NULL,
    -- asset → [available, held], as text: every asset that the account ever had.
    balances   jsonb NOT NULL,
    PRIMARY KEY (account_id, seq)
);
-- Neither `at` nor `seq` ever decreases along a stream, so their orders agree.
CREATE INDEX marks_at ON marks (account_id, at, seq);

-- Marks of what was written before there were any. `json` and not `jsonb`: only the postings are
-- looked into, whatever else a body holds.
WITH moved AS (
    SELECT j.account_id, (j.seq + 255) / 256 * 256 AS seq, p ->> 1 AS asset,
           coalesce(sum((p ->> 2)::numeric) FILTER (WHERE p ->> 0 = 'available'), 0) AS available,
           coalesce(sum((p ->> 2)::numeric) FILTER (WHERE p ->> 0 = 'held'), 0) AS held
    FROM journal j, json_array_elements(convert_from(j.body, 'UTF8')::json -> 'postings') AS p
    WHERE p ->> 0 IN ('available', 'held')
    GROUP BY 1, 2, 3
), owned AS (
    SELECT account_id, asset, min(seq) AS since FROM moved GROUP BY 1, 2
), summed AS (
    SELECT j.account_id, j.seq, j.at, o.asset,
           sum(coalesce(m.available, 0)) OVER so_far AS available,
           sum(coalesce(m.held, 0)) OVER so_far AS held
    FROM journal j
    LEFT JOIN owned o ON o.account_id = j.account_id AND o.since <= j.seq
    LEFT JOIN moved m ON m.account_id = j.account_id AND m.seq = j.seq AND m.asset = o.asset
    WHERE j.seq % 256 = 0
    WINDOW so_far AS (PARTITION BY j.account_id, o.asset ORDER BY j.seq)
)
INSERT INTO marks (account_id, seq, at, balances)
SELECT account_id, seq, at,
       coalesce(
           jsonb_object_agg(
               asset,
               jsonb_build_array(trim_scale(available)::text, trim_scale(held)::text)
           ) FILTER (WHERE asset IS NOT NULL),
           '{}'
       )
FROM summed
GROUP BY 1, 2, 3;

-- Files of transfers that were imported, by the SHA-256 of their bytes. The ids of a file's
-- transfers follow from this row and the line, so a second import finds them made.
CREATE TABLE imports (
    digest   bytea PRIMARY KEY CHECK (length(digest) = 32),
    name     text NOT NULL,
    began_at timestamptz NOT NULL
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        -- The past is append-only for the server itself.
        GRANT SELECT, INSERT ON marks, imports TO tbot_app;
    END IF;
END
$$;
