"""Owns venue connections: sends accepted orders, applies what the venue says, finds out the rest."""
