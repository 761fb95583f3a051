"""What travels on the wire besides receipts: request bodies, server-sent events, error envelopes, listings."""
