"""Exchanges: what T-Bot asks of one (`base`), its rate budget (`governor`), and one folder each."""
