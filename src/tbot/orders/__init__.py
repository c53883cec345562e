"""Orders: what one is, what it may be, what happens to it, its tables and its way in.

`model`, `rules`, `book`, `commands`, `reports` and `reconcile` are pure; `store` is SQL; `flow`
is what the edge calls.
"""
