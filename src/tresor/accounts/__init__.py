"""Who calls and how much they may: API keys and rate limits, on top of the store."""
