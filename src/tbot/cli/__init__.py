"""The `tbot` command line, one module per group of commands.

Modules are imported when their command runs: `tbot user token` in a shell line should be quick.
"""
