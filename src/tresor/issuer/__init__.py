"""The issuer: numbers, signs and stores receipts, and answers only when they are durable."""
