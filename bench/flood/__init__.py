"""What floods a server, for `bench_flood.py`."""
