"""The write path: commands go in, hash-chained entries and their tables come out, in one commit.

`commands` is the vocabulary, `chain` the hashing, `committer` the group commit, `cursors` the
reading end, `verify` the proof. The journal knows no order and no payment: those bring their own
commands and projections, registered in `tbot.boot`.
"""
