"""Accounts and what they own: double-entry postings (`entries`, pure), tables (`store`), `flow`."""
