"""What the router keeps, and what every store promises.

A store is blocking and may be called from several threads at once; whoever calls it from an event loop hands it to a
thread.  Nothing of a prompt or an answer ever reaches it.  Receipt ids are UUIDs in their usual lower-case text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tresor.jose.jws import SignedJws

__all__ = ["ApiKey", "Customer", "EvidenceItem", "NewReceipt", "SigningKey", "Store", "StoredReceipt"]


@dataclass(frozen=True, slots=True)
class Customer:
    """Who owns keys and receipts.

    Attributes:
        plan: names a table under `[plans]` of the settings.
        required_claims: what must be proven of the upstream that serves, names of claims separated by commas.
    """

    id: int
    name: str
    plan: str
    created_at: int
    required_claims: str


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key without the key, and what counts of its customer.  Times are Unix seconds.

    Attributes:
        digest: SHA-256 (32 bytes) of its text.
        required_claims: its customer's.
    """

    id: str
    customer_id: int
    customer_name: str
    plan: str
    digest: bytes
    label: str
    created_at: int
    revoked_at: int | None
    required_claims: frozenset[str]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public receipt key.  `last_seq` is the number of the last durable receipt it signed, 0 before the first."""

    kid: str
    x: str
    y: str
    created_at: int
    retired_at: int | None
    last_seq: int


class NewReceipt(msgspec.Struct, frozen=True, gc=False):
    """A signed receipt on its way into the store."""

    id: str
    customer_id: int
    kid: str
    seq: int
    issued_at: int
    jws: SignedJws

    def __repr__(self) -> str:
        return f"<NewReceipt {self.kid} {self.seq}>"


class StoredReceipt(msgspec.Struct, frozen=True, gc=False):
    """A receipt as it came out of the store."""

    id: str
    jws: SignedJws

    def __repr__(self) -> str:
        return f"<StoredReceipt {self.id}>"


@dataclass(frozen=True, slots=True, repr=False)
class EvidenceItem:
    """Something that receipts refer to by `digest`, the SHA-256 (32 bytes) of `data`."""

    digest: bytes
    media_type: str
    data: bytes

    def __repr__(self) -> str:
        return f"<EvidenceItem {self.digest.hex()[:16]} {self.media_type} {len(self.data)} bytes>"


class Store(Protocol):
    """Customers, keys, receipts, counters.

    Every method raises `StoreUnavailableError` when the store cannot be reached, is full, or is damaged, and then has
    changed nothing.  What a method that writes has returned from is durable: committed and flushed, so that it survives
    `kill -9` and loss of power.
    """

    def close(self) -> None:
        """Let go of every connection of the calling process."""

    def check(self) -> None:
        """Return if the store can be read and written."""

    # Customers and API keys.

    def add_customer(self, name: str, plan: str, *, now: int, required_claims: str = "") -> Customer | None:
        """Add a customer; None where the name is taken."""

    def change_customer(self, name: str, *, plan: str | None, required_claims: str | None) -> Customer | None:
        """Change what is not None; None where there is no such customer."""

    def customers(self) -> list[Customer]:
        """Return all customers, oldest first."""

    def add_api_key(self, key_id: str, customer: str, digest: bytes, label: str, *, now: int) -> bool:
        """Add a key for the customer of that name; False where there is none."""

    def api_keys(self, customer: str | None = None) -> list[ApiKey]:
        """Return keys, of one customer or of all, oldest first, revoked ones included."""

    def find_api_key(self, digest: bytes) -> ApiKey | None:
        """Return the key with this digest, revoked or not."""

    def revoke_api_key(self, key_id: str, *, now: int) -> bool:
        """Revoke a key for good; False where no live key has this id."""

    # Signing keys.

    def register_signing_key(self, kid: str, x: str, y: str, *, now: int) -> SigningKey:
        """Make a public key known for ever, or return it as it stands if it is known already."""

    def retire_signing_key(self, kid: str, *, now: int) -> None:
        """Note that a key signs no more."""

    def signing_keys(self) -> list[SigningKey]:
        """Return every key ever registered, oldest first."""

    def request_rotation(self, *, now: int) -> None:
        """Ask every router process to replace each signing key made up to `now`."""

    def rotation_requested_at(self) -> int:
        """Return when a rotation was last asked for, 0 where never."""

    # Receipts.

    def append_receipts(self, receipts: Sequence[NewReceipt]) -> None:
        """Append receipts of one registered signing key, all or none; no number of a key is ever taken twice."""

    def find_receipt(self, receipt_id: str, customer_id: int) -> StoredReceipt | None:
        """Return a customer's receipt.  Unknown and foreign ids take the same path through the same index."""

    def list_receipts(self, customer_id: int, *, after: str | None, limit: int) -> list[StoredReceipt] | None:
        """Return a customer's receipts, newest first, those behind `after`; None where `after` is not theirs."""

    def delete_receipts(self, issued_before: int, *, limit: int) -> int:
        """Delete at most `limit` receipts issued before an instant, oldest first; return how many.

        Evidence that no receipt can refer to any more goes with them.
        """

    # Evidence that receipts refer to.

    def put_evidence(self, items: Sequence[EvidenceItem], *, used_until: int) -> None:
        """Keep items, each once, for as long as a receipt that was issued up to `used_until` is kept."""

    def find_evidence(self, digests: Sequence[bytes]) -> list[EvidenceItem]:
        """Return those of the items that are kept, in no particular order."""

    # Counters.

    def take_permits(self, customer_id: int, window: int, *, wanted: int, limit: int, now: int) -> tuple[int, int]:
        """Take up to `wanted` permits of a window of `limit`.

        Args:
            customer_id: whose.
            window: length of the fixed window in seconds; it begins at a multiple of it.
            wanted: how many to take, at least one.
            limit: how many the window holds over all processes.
            now: Unix seconds.

        Returns:
            How many were taken (0 when the window is exhausted), and how many the window still holds after that.
        """

    # Upkeep.

    def maintain(self) -> None:
        """Do what the store needs done beside the hot path, such as a checkpoint; called about once a second."""
