"""Accounts and what they own: double-entry postings (`entries`, pure) and their tables (`store`)."""
