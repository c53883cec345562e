"""Parts of the fan-out benchmark: servers, a client that reads fast, and what they say."""
