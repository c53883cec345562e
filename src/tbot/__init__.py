"""T-Bot: a self-hosted trading backend."""

__version__ = "0.1.0"
