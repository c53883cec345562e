"""The second opinion on the journal: exports, signed anchors, and a proof that needs no server.

`form` is the files' format, `merkle` the tree over heads, `proof` the offline verification,
`keys` and `anchors` the signed heads; `export`, `anchoring` and `show` read a database. Nothing
here imports the write path: what it checks, it computes itself.
"""
