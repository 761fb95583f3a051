-- Customers, keys, receipts, counters.  Times are Unix seconds.

CREATE TABLE customers (
    id          INTEGER PRIMARY KEY,
    name        TEXT    NOT NULL UNIQUE,
    plan        TEXT    NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE api_keys (
    digest       BLOB    NOT NULL PRIMARY KEY,     -- SHA-256 of the key's text; the key itself is nowhere
    id           TEXT    NOT NULL UNIQUE,
    customer_id  INTEGER NOT NULL REFERENCES customers (id),
    label        TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    revoked_at   INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE signing_keys (
    id          INTEGER PRIMARY KEY,
    kid         TEXT    NOT NULL UNIQUE,
    x           TEXT    NOT NULL,                  -- base64url coordinates, as in the key set
    y           TEXT    NOT NULL,
    created_at  INTEGER NOT NULL,
    retired_at  INTEGER,
    last_seq    INTEGER NOT NULL DEFAULT 0         -- of receipts that retention has deleted
) STRICT;

-- The row number grows with every receipt: new ones are appended, and the newest come first by it.
CREATE TABLE receipts (
    n            INTEGER PRIMARY KEY,
    id           BLOB    NOT NULL,                 -- UUID, 16 bytes; version 7, so that the index grows at its end
    customer_id  INTEGER NOT NULL,
    key_id       INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    issued_at    INTEGER NOT NULL,
    token        TEXT    NOT NULL                  -- the compact JWS, as signed
) STRICT;

-- Both columns in one index: a foreign receipt and one that never was cost the same look.
CREATE UNIQUE INDEX receipts_by_id ON receipts (id, customer_id);
CREATE INDEX receipts_by_customer ON receipts (customer_id, n);
-- No number twice for one key, whatever goes wrong; and the way to the last one.
CREATE UNIQUE INDEX receipts_by_seq ON receipts (key_id, seq);

CREATE TABLE permits (
    customer_id  INTEGER NOT NULL,
    window       INTEGER NOT NULL,                 -- length in seconds
    began_at     INTEGER NOT NULL,
    taken        INTEGER NOT NULL,
    PRIMARY KEY (customer_id, window)
) STRICT, WITHOUT ROWID;

-- One row: when a rotation of the signing keys was last asked for.
CREATE TABLE rotation (
    one           INTEGER PRIMARY KEY CHECK (one = 1),
    requested_at  INTEGER NOT NULL
) STRICT;

INSERT INTO rotation VALUES (1, 0);
