"""Collateral from disk and network: recognised by content, fetched within limits, kept while it is good."""
