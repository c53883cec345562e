"""Market data: books, tickers and topics (pure), the feed that keeps them, the fan-out hub."""
