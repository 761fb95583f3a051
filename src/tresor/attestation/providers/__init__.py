"""Answers of attestation endpoints: which evidence they hold and what they say it binds."""
