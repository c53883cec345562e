-- Candles of every interval, and the stretches of time of which they have to be fetched.

CREATE TABLE candles (
    venue        text NOT NULL,
    symbol       text NOT NULL,
    interval_s   integer NOT NULL CHECK (interval_s > 0),
    start_at     timestamptz NOT NULL,
    open         amount NOT NULL CHECK (open > 0),
    high         amount NOT NULL CHECK (high >= open AND high >= close),
    low          amount NOT NULL CHECK (low > 0 AND low <= open AND low <= close),
    close        amount NOT NULL CHECK (close > 0),
    volume       amount NOT NULL CHECK (volume > 0),
    quote_volume amount NOT NULL CHECK (quote_volume > 0),
    trades       bigint NOT NULL CHECK (trades > 0),
    -- Null where only the venue's own candle is known.
    first_id     bigint,
    last_id      bigint,
    -- No trade of the interval is missing.
    complete     boolean NOT NULL,
    stored_at    timestamptz NOT NULL,
    PRIMARY KEY (venue, symbol, interval_s, start_at)
);

-- What the venue is to be asked for: candles that begin within a stretch of time, one row each.
CREATE TABLE candle_gaps (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    venue      text NOT NULL,
    symbol     text NOT NULL,
    interval_s integer NOT NULL CHECK (interval_s > 0),
    from_at    timestamptz NOT NULL,
    to_at      timestamptz NOT NULL,
    CHECK (from_at <= to_at),
    UNIQUE (venue, symbol, interval_s, from_at, to_at)
);

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'tbot_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON candles, candle_gaps TO tbot_app;
    END IF;
END
$$;
