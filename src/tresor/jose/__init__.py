"""The part of JOSE that receipts need: compact JWS with ES256 (RFC 7515, 7518), JWK sets (RFC 7517, 7638)."""
