"""Receipts: the signed statement about one exchange, how it is recorded, and how it is verified."""
