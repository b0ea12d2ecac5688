"""From a user's rows to token rows on disk: read, normalise, mask, pack."""
