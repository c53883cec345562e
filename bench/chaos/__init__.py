"""Chaos: real load on a real T-Bot while its parts are killed, then a check of everything.

`world` starts and kills the processes, `load` is the clients with their own fsynced log, `check`
compares that log with the database and with the exchange. None of it imports the server.
"""
