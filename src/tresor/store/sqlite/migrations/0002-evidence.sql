-- What receipts refer to by digest, once however many refer to it.  No receipt issued after `used_until` refers to it.

CREATE TABLE evidence (
    digest      BLOB    NOT NULL PRIMARY KEY,      -- SHA-256 of data
    media_type  TEXT    NOT NULL,
    used_until  INTEGER NOT NULL,                  -- Unix seconds
    data        BLOB    NOT NULL
) STRICT;

CREATE INDEX evidence_by_use ON evidence (used_until);
