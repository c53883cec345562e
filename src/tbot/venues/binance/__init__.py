"""Binance Spot, and everything that speaks its protocol: our own paper exchange among them."""
