"""Everything that is read and not inferred: models, receipts, keys, health (docs/spec/http-api.md sections 5 to 8)."""

import asyncio
import base64
import re
from typing import Final

import msgspec

from tresor.app.context import Context
from tresor.attestation.blocks import digests_of
from tresor.encodings import rfc3339
from tresor.errors import ReceiptMalformedError, RequestError, StoreUnavailableError
from tresor.issuer.issuer import key_set
from tresor.receipts.claims import ReceiptClaims, parse_claims
from tresor.routing.catalogue import ModelEntry, Route
from tresor.routing.view import AttestationState
from tresor.server.request import Request
from tresor.store.base import ApiKey, StoredReceipt

__all__ = ["Resources"]

_DEFAULT_PAGE: Final = 20
_MAX_PAGE: Final = 100
_COUNT = re.compile(r"[1-9][0-9]{0,2}\Z")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\Z")


class _Receipt(msgspec.Struct, frozen=True):
    id: str
    receipt: str


class _Evidence(msgspec.Struct, frozen=True):
    media_type: str
    data: str


class _ReceiptWithEvidence(_Receipt, frozen=True):
    evidence: dict[str, _Evidence]


class _ReceiptEntry(msgspec.Struct, frozen=True):
    id: str
    issued_at: str
    receipt_type: str
    routed_model: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    total_tokens: int | None
    outcome: str


class _Page(msgspec.Struct, frozen=True):
    data: list[_ReceiptEntry]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: str = "list"


class Resources:
    """Handlers of the reading endpoints.

    Args:
        context: the worker's parts.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    async def models(self, request: Request) -> None:
        """`GET /v1/models`: routes, filtered and with detail where asked."""
        query = request.query
        detail = query.get("detail", "false")
        if detail not in ("true", "false"):
            raise RequestError(400, "invalid_field", "detail is not true or false", param="detail")
        entries = self._context.catalogue.entries(
            detail=detail == "true",
            region=query.get("region"),
            provider=query.get("provider"),
            model_type=query.get("type"),
            attestation=self._attestation,
        )
        request.respond(200, msgspec.json.encode({"object": "list", "data": list(entries)}))

    async def model(self, request: Request) -> None:
        """`GET /v1/models/{id}`: one route, or the first one of a bare model key."""
        wanted = request.path.removeprefix("/v1/models/")
        entry: ModelEntry | None = next(
            (
                entry
                for entry in self._context.catalogue.entries(detail=True, attestation=self._attestation)
                if wanted in (entry.id, entry.id.rpartition("/")[2])
            ),
            None,
        )
        if entry is None:
            raise RequestError(404, "model_not_found", "no model of this router has this id", param="id")
        request.respond(200, msgspec.json.encode(entry))

    async def receipt(self, request: Request, caller: ApiKey) -> None:
        """`GET /v1/receipts/{id}`: unknown, foreign, opted-out and expired ids are one and the same 404."""
        text = request.path.removeprefix("/v1/receipts/")
        if not text:
            raise RequestError(400, "missing_field", "the receipt id is empty", param="id")
        include = request.query.get("include")
        if include not in (None, "evidence"):
            raise RequestError(400, "invalid_field", "include is not evidence", param="include")
        found = None
        if _UUID.match(text):
            found = await self._ask_store(text, caller.customer_id)
        if found is None:
            raise RequestError(404, "not_found", "no receipt of yours has this id", param="id")
        if include is None:
            request.respond(200, msgspec.json.encode(_Receipt(found.id, found.jws.compact)))
        else:
            evidence = await self._evidence(found)
            request.respond(200, msgspec.json.encode(_ReceiptWithEvidence(found.id, found.jws.compact, evidence)))

    async def list_receipts(self, request: Request, caller: ApiKey) -> None:
        """`GET /v1/receipts`: the customer's, newest first, a page at a time."""
        query = request.query
        limit = query.get("limit", str(_DEFAULT_PAGE))
        if not _COUNT.match(limit) or int(limit) > _MAX_PAGE:
            raise RequestError(400, "invalid_field", f"limit is not a number from 1 to {_MAX_PAGE}", param="limit")
        after = query.get("after")
        if after is not None and not _UUID.match(after):
            raise _unknown_cursor()
        try:
            rows = await asyncio.to_thread(
                self._context.store.list_receipts,
                caller.customer_id,
                after=after,
                limit=int(limit) + 1,
            )
        except StoreUnavailableError as error:
            raise _store_down() from error
        if rows is None:
            raise _unknown_cursor()
        has_more = len(rows) > int(limit)
        entries = [_entry(row) for row in rows[: int(limit)]]
        page = _Page(
            data=entries,
            first_id=entries[0].id if entries else None,
            last_id=entries[-1].id if entries else None,
            has_more=has_more,
        )
        request.respond(200, msgspec.json.encode(page))

    async def jwks(self, request: Request) -> None:
        """`GET /.well-known/jwks.json`: every key ever used, of every process, as the store knows them now."""
        try:
            keys = await asyncio.to_thread(key_set, self._context.store)
        except StoreUnavailableError as error:
            raise _store_down() from error
        request.respond(200, msgspec.json.encode({"keys": keys}), "application/jwk-set+json")

    async def healthz(self, request: Request) -> None:
        """`GET /healthz`: the process runs."""
        request.respond(200, b'{"status":"ok"}')

    async def readyz(self, request: Request) -> None:
        """`GET /readyz`: the store answers, a key may sign, an upstream can be reached, the process is to go on."""
        issuer = self._context.issuer
        checks = {
            "store": self._context.store_ok,
            "signing_key": issuer.ready,
            "attestation": issuer.may_sign,
            "upstream": any(pool.usable for pool in self._context.pools),
            "not_draining": not self._context.draining,
        }
        ready = all(checks.values())
        # The codes alone: what else there is to say stands in the log, and anybody may ask here.
        own = issuer.attestation_fault
        faults = {} if own is None else {"attestation": own.partition(":")[0]}
        for pool in self._context.pools:
            if pool.channel is not None and pool.channel.reason is not None:
                faults[f"{pool.settings.region}/{pool.settings.provider}"] = pool.channel.reason
        body = msgspec.json.encode({"status": "ready" if ready else "not_ready", "checks": checks, "faults": faults})
        request.respond(200 if ready else 503, body)

    def _attestation(self, route: Route) -> AttestationState:
        channel = self._context.pools[route.upstream].channel
        return "unverified" if channel is None else channel.state.value

    async def _evidence(self, found: StoredReceipt) -> dict[str, _Evidence]:
        claims = _claims(found)
        digests = digests_of(claims.router_attestation, claims.inference_attestation)
        raw = [bytes.fromhex(digest.removeprefix("sha256:")) for digest in digests]
        try:
            items = await asyncio.to_thread(self._context.store.find_evidence, raw)
        except StoreUnavailableError as error:
            raise _store_down() from error
        return {
            f"sha256:{item.digest.hex()}": _Evidence(item.media_type, base64.b64encode(item.data).decode())
            for item in items
        }

    async def _ask_store(self, receipt_id: str, customer_id: int) -> StoredReceipt | None:
        try:
            return await asyncio.to_thread(self._context.store.find_receipt, receipt_id, customer_id)
        except StoreUnavailableError as error:
            raise _store_down() from error


def _claims(row: StoredReceipt) -> ReceiptClaims:
    try:
        return parse_claims(row.jws.payload)
    except ReceiptMalformedError as error:
        raise RequestError(503, "service_unavailable", "a stored receipt cannot be read", retry_after_s=2) from error


def _entry(row: StoredReceipt) -> _ReceiptEntry:
    claims = _claims(row)
    return _ReceiptEntry(
        id=claims.jti,
        issued_at=rfc3339(claims.iat),
        receipt_type=claims.receipt_type,
        routed_model=claims.routed_model,
        prompt_tokens=claims.prompt_tokens,
        completion_tokens=claims.completion_tokens,
        total_tokens=claims.total_tokens,
        outcome=claims.outcome,
    )


def _unknown_cursor() -> RequestError:
    return RequestError(400, "invalid_field", "after is not the id of a receipt of yours", param="after")


def _store_down() -> RequestError:
    return RequestError(503, "service_unavailable", "the receipt store cannot be reached", retry_after_s=2)
