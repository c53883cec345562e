-- For batches that were decided ahead of their locks: what memory assumed has to be so still.

-- Locks streams and switches as a batch that reads under its locks does, in the same order, and
-- fails unless the heads and the switches are the given ones. Ids and names come sorted.
CREATE FUNCTION certify(
    ids uuid[], seqs bigint[], hashes bytea[], names text[], halts boolean[], reasons text[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    seqs_now    bigint[];
    hashes_now  bytea[];
    names_now   text[];
    halts_now   boolean[];
    reasons_now text[];
BEGIN
    SELECT array_agg(h.seq), array_agg(h.hash) INTO seqs_now, hashes_now FROM (
        SELECT s.seq, s.hash FROM streams s WHERE s.account_id = ANY (ids)
        ORDER BY s.account_id FOR NO KEY UPDATE
    ) h;
    IF (seqs_now, hashes_now) IS DISTINCT FROM (seqs, hashes) THEN
        RAISE EXCEPTION 'a stream has moved on' USING ERRCODE = 'serialization_failure';
    END IF;
    SELECT coalesce(array_agg(w.name), '{}'), coalesce(array_agg(w.halted), '{}'),
           coalesce(array_agg(w.reason), '{}')
    INTO names_now, halts_now, reasons_now FROM (
        SELECT name, halted, reason FROM switches ORDER BY name FOR SHARE
    ) w;
    IF (names_now, halts_now, reasons_now) IS DISTINCT FROM (names, halts, reasons) THEN
        RAISE EXCEPTION 'a switch was turned' USING ERRCODE = 'serialization_failure';
    END IF;
END
$$;
