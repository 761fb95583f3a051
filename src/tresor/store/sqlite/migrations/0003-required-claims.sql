-- What must be proven of the upstream that serves a customer: names of claims, comma-separated; empty for nothing.

ALTER TABLE customers ADD COLUMN required_claims TEXT NOT NULL DEFAULT '';
