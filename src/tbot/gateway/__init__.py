"""Owns venue connections: sends accepted orders, applies what the venue says, asks for the rest."""
