"""Every limit of the program, its unit in its name and its default beside it.

One frozen object is made from the settings and handed down; nothing below reads a limit from anywhere else.
docs/operations/configuration.md lists them for operators.
"""

from typing import Annotated

import msgspec

__all__ = [
    "MAX_EXCHANGE_BYTES",
    "MAX_JSON_CONTAINERS",
    "MAX_JSON_VALUES",
    "MAX_JWKS_BYTES",
    "MAX_RECEIPT_BYTES",
    "MAX_TOKEN_BYTES",
    "Limits",
]

# A receipt of this version is about 1 KB; with both attestation blocks it stays under 64 KB.
MAX_TOKEN_BYTES = 1 << 20
MAX_JWKS_BYTES = 4 << 20
# The API's JSON around a token; the rest is room for the evidence that it may carry.
MAX_RECEIPT_BYTES = 4 << 20
# A request or response body that the verifier is given, which no limit of a router bounds.
MAX_EXCHANGE_BYTES = 256 << 20
# Arrays and objects, and commas, of a JSON body outside its strings.  Either could take a hundred times its bytes.
MAX_JSON_CONTAINERS = 100_000
MAX_JSON_VALUES = 1_000_000

Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the router takes, holds and waits for.  All sizes are bytes, all times seconds, per worker process."""

    max_connections: Count = 2048
    """Connections of callers; one more is answered 503 and closed."""
    max_head_bytes: Count = 32 * 1024
    """Request line and header fields of one request, or the head of an upstream's answer."""
    max_body_bytes: Count = 32 << 20
    """Body of one request."""
    max_buffered_bytes: Count = 512 << 20
    """All request bodies being received or served at one time."""
    max_response_bytes: Count = 64 << 20
    """Body of one upstream answer that is not a stream."""
    max_event_bytes: Count = 8 << 20
    """One event of a stream, and all that is held back behind a finish chunk."""
    head_timeout_s: Seconds = 10.0
    """From the first byte of a request, or from the connection, to the end of its head."""
    body_timeout_s: Seconds = 60.0
    """Without a byte of the body."""
    keep_alive_timeout_s: Seconds = 75.0
    """Between two requests of one connection."""
    write_timeout_s: Seconds = 60.0
    """Without the caller taking a byte of what waits for it."""
    keep_alive_comment_s: Seconds = 15.0
    """Silence of a stream after which a comment line is sent to the caller."""
    max_failover_routes: Annotated[int, msgspec.Meta(ge=0)] = 5
    """Entries of the `failover` member."""
    max_nonce_chars: Annotated[int, msgspec.Meta(ge=1, le=128)] = 128  # a receipt has room for no more
    """Length of `X-Tresor-Nonce`."""
    default_timeout_s: Seconds = 180.0
    """Budget of an exchange that is not a stream, where the caller names none."""
    max_timeout_s: Seconds = 600.0
    """What `X-Tresor-Timeout-Seconds` is clamped to."""
    max_idle_upstream_connections: Count = 256
    """Pooled connections to one upstream that wait for work."""
    upstream_keep_alive_s: Seconds = 30.0
    """Age of an idle upstream connection at which it is closed."""
    max_pending_receipts: Count = 20_000
    """Receipts that wait for the store; beyond this, an exchange is refused before it is forwarded."""
