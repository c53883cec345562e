"""Market data: books, tickers and topics (pure), the feed that keeps them, the hub that fans out."""
