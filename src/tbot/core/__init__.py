"""What every other package may use: money, ids, clock, errors, tasks, bus, log, settings."""
