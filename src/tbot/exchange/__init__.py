"""The paper exchange: a venue of its own process that speaks Binance Spot over loopback.

It stands alone on `tbot.core`. `docs/paper-exchange.md` says how it behaves and where it differs.

    events, ladder, book           the market as a source plays it
    replay, synthetic, quotes      the two market sources
    model, outcome, instruments    orders, effects, trading rules
    queue, state, engine           matching and balances: pure decisions and their effects
    tape, tickers, derived         what clients are told of the market
    commandlog, compaction         effects on disk before they are acknowledged; the restore
    floor, hub, player             all of it running: one way in, one way out, one clock
    wire, signing, limits          Binance's words: shapes, signatures, weights
    params, reading, trading, api  the calls
    gate, rest, wsapi, streams     who may call, and how calls and streams look on the wire
    connection, server, cli        sockets, the process, the command line
    credentials, stats             keys on disk; how a market behaves, in figures
"""
