"""The paper exchange: a venue of its own process that speaks Binance Spot over loopback.

It stands alone on `tbot.core`. `docs/paper-exchange.md` says how it behaves and where it differs.

    events, ladder, book, tape     the market as a source plays it, and as clients are told of it
    model, queue, state, engine    orders, matching, balances: pure decisions and their effects
    commandlog                     effects on disk before they are acknowledged, and the restore
    replay, synthetic              the two market sources
    wire, signing, limits, api     Binance's words: shapes, signatures, weights, the calls
    rest, wsapi, streams, server   the sockets
    stats, cli                     `tbot exchange serve` and `tbot exchange stats`
"""
