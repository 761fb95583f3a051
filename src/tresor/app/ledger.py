"""What happened in one exchange, and the receipt that says so.

The exchange writes down every try as it goes; `seal` turns what is written into a receipt and returns when that is
durable.  A body that names a receipt leaves only after that (docs/spec/http-api.md section 4).
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Final

import msgspec

from tresor.app.context import Context
from tresor.app.options import ExchangeOptions
from tresor.encodings import digest_string, rfc3339
from tresor.errors import AttemptReason, UpstreamError
from tresor.receipts.claims import SCHEMA, Attempt, AttemptOutcome, Outcome, ReceiptDraft, ReceiptType
from tresor.receipts.ids import new_receipt_id
from tresor.receipts.recorder import Usage
from tresor.routing.catalogue import Route
from tresor.routing.plan import Plan
from tresor.store.base import ApiKey
from tresor.upstreams.channel import Standing

__all__ = ["Ledger", "Try"]

_NOTHING_CHECKED: Final = ("cpu_tee", "gpu_tee", "tcb", "workload", "revocation", "tls_binding")
"""Of an upstream, where none served."""


class _Extension(msgspec.Struct, frozen=True):
    """The `tresor` member of an answer (docs/spec/http-api.md section 4.4)."""

    receipt_id: str | msgspec.UnsetType
    requested_route: str
    routed_model: str
    failover: bool


@dataclass(slots=True)
class Try:
    """One try at one route, while it goes on.

    Attributes:
        sent_at: `loop.time()` at which the request was sent.
        standing: what was known of the upstream when the connection was given out; None before that.
    """

    route: Route
    started_at: float
    outcome: AttemptOutcome = "failed"
    reason: AttemptReason | None = None
    status: int | None = None
    prompt_sent: bool = False
    sent_at: float = 0.0
    standing: Standing | None = None

    def fail(self, error: UpstreamError) -> None:
        """Take note that it failed."""
        self.outcome, self.reason, self.status = "failed", error.reason, error.status or self.status


class Ledger:
    """Everything that the receipt of one exchange says.

    Args:
        context: the worker's parts.
        caller: whose receipt it is.
        options: what the request's headers ask for.
        receipt_type: of the endpoint.
        plan: what was asked for.
        body: as received.
        stream: whether the answer was to be a stream.

    Attributes:
        receipt_id: id under which the receipt will stand.
        extension: value of the `tresor` member of an answer to what was sent last, as JSON.
        tries: in order.
        upstream_request_digest: of the body as forwarded last.
        upstream_response_digest: of the body as received last.
        usage: token counts.
        sealed: whether the receipt is on its way.
    """

    __slots__ = (
        "_body",
        "_caller",
        "_context",
        "_options",
        "_plan",
        "_receipt_type",
        "_request_digest",
        "_requested",
        "_stream",
        "extension",
        "receipt_id",
        "sealed",
        "tries",
        "upstream_request_digest",
        "upstream_response_digest",
        "usage",
    )

    def __init__(
        self,
        context: Context,
        caller: ApiKey,
        options: ExchangeOptions,
        *,
        receipt_type: ReceiptType,
        plan: Plan,
        body: bytes,
        stream: bool,
    ) -> None:
        self._context = context
        self._caller = caller
        self._options = options
        self._receipt_type = receipt_type
        self._plan = plan
        self._requested = str(plan.requested)
        self._body = body
        self._request_digest: str | None = None
        self._stream = stream
        self.extension = b""
        self.receipt_id = new_receipt_id()
        self.tries: list[Try] = []
        self.upstream_request_digest: str | None = None
        self.upstream_response_digest: str | None = None
        self.usage = Usage()
        self.sealed = False

    @property
    def receipt_header(self) -> str:
        """The header line that names the receipt; empty where there is none."""
        return f"X-Tresor-Receipt-Id: {self.receipt_id}\r\n" if self._options.receipt else ""

    @property
    def named_receipt(self) -> str | None:
        """The id for bodies; None where there is no receipt."""
        return self.receipt_id if self._options.receipt else None

    def begin(self, route: Route) -> Try:
        """Note that a route is tried."""
        attempt = Try(route, time.time())
        self.tries.append(attempt)
        return attempt

    def note_sent(self, attempt: Try, body: bytes) -> None:
        """Note that `body` was sent, and do what can be done while the upstream works."""
        attempt.prompt_sent = True
        request_digest = self._digest_request()
        self.upstream_request_digest = request_digest if body == self._body else digest_string(body)
        self.upstream_response_digest = None
        self.extension = msgspec.json.encode(
            _Extension(
                receipt_id=self.receipt_id if self._options.receipt else msgspec.UNSET,
                requested_route=self._requested,
                routed_model=attempt.route.id,
                failover=self._plan.is_failover(attempt.route),
            )
        )

    def _digest_request(self) -> str:
        if self._request_digest is None:
            self._request_digest = digest_string(self._body)
        return self._request_digest

    def seal(
        self, outcome: Outcome, *, status: int | None, response_digest: str, answered: bool
    ) -> asyncio.Future[None] | None:
        """Have the receipt signed and stored.

        Args:
            outcome: how the exchange ended.
            status: HTTP status that was sent; None for none.
            response_digest: of the body that was or is about to be sent.
            answered: whether what was sent is, whole or not, an answer of the route that was tried last.

        Returns:
            A future that is done when the receipt is durable, or fails with `StoreUnavailableError` where it never will
            be; None where there is none.

        Raises:
            StoreUnavailableError: it is not stored, and never will be.
        """
        self.sealed = True
        last = self.tries[-1] if answered else None
        self._context.metrics.exchange("none" if last is None else last.route.id, outcome)
        if not self._options.receipt:
            return None
        own = self._context.issuer.attestation
        standing = None if last is None else last.standing
        not_checked = _NOTHING_CHECKED if standing is None else standing.not_checked
        usage = self.usage
        draft = ReceiptDraft(
            schema=SCHEMA,
            receipt_type=self._receipt_type,
            iss=self._context.issuer_name,
            jti=self.receipt_id,
            requested_route=self._requested,
            routed_model=None if last is None else last.route.id,
            failover=last is not None and self._plan.is_failover(last.route),
            attempts=tuple(map(_attempt, self.tries)),
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.total_tokens,
            request_digest=self._digest_request(),
            upstream_request_digest=self.upstream_request_digest,
            upstream_response_digest=self.upstream_response_digest,
            response_digest=response_digest,
            stream=self._stream,
            status=status,
            outcome=outcome,
            not_checked=not_checked if own is not None and not own.simulated else ("router_tee", *not_checked),
            nonce=self._options.nonce,
        )
        block = None if standing is None else standing.block
        return self._context.issuer.issue(draft, self._caller.customer_id, inference_attestation=block)


def _attempt(attempt: Try) -> Attempt:
    return Attempt(
        route=attempt.route.id,
        outcome=attempt.outcome,
        reason=attempt.reason,
        status=attempt.status,
        prompt_sent=attempt.prompt_sent,
        started_at=rfc3339(attempt.started_at),
    )
