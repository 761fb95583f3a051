"""One exchange: a plan is tried until an upstream answers, its bytes are relayed, and the receipt says what happened.

The way of a completion: `run` -> `_try` a candidate -> `_relay_whole` or `_relay_stream`, which say how to end it once
the upstream is free for others -> `_seal`, which returns when the receipt is durable (`tresor.app.ledger`) -> the last
bytes.  What docs/spec/http-api.md section 4 demands and this file keeps:

* nothing of an answer reaches the caller before a candidate is settled on, and then never anything of another one;
* however an exchange ends once it had a plan, it has one receipt, unless the caller opted out;
* a body that names a receipt leaves only after that receipt is durable.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeAlias

import msgspec

from tresor.app.context import Context
from tresor.app.ledger import Ledger, Try
from tresor.app.options import ExchangeOptions
from tresor.encodings import digest_string
from tresor.errors import AttemptReason, FailedAttempt, RequestError, StoreUnavailableError, UpstreamError
from tresor.receipts.claims import Outcome, ReceiptType
from tresor.receipts.recorder import StreamPhase, StreamRecorder, splice_answer
from tresor.routing.catalogue import ModelType, Route
from tresor.routing.health import parse_retry_after
from tresor.routing.plan import Plan
from tresor.server.request import JSON, Request
from tresor.store.base import ApiKey
from tresor.upstreams.connection import ResponseHead, UpstreamConnection
from tresor.upstreams.pool import UpstreamPool
from tresor.wire.envelope import encode_envelope, encode_stream_error

__all__ = ["Endpoint", "Exchange", "Forwardable"]

_log = logging.getLogger(__name__)

_EVENT_STREAM: Final = "text/event-stream"
_NOTHING: Final = digest_string(b"")
_MAX_MESSAGE_CHARS: Final = 4096
_TRAILING_S: Final = 0.25
_NEVER: Final = float("inf")
_NEXT_CANDIDATE: Final = frozenset({401, 403, 404, 408, 429})
_NOT_ATTESTED: Final = frozenset({"attestation_failed", "pin_mismatch"})


_Ending: TypeAlias = Callable[[], Awaitable[None]]
"""What is left of an exchange when its upstream has no part in it any more."""


class Forwardable(Protocol):
    """A request body that passed its checks."""

    @property
    def stream(self) -> bool:
        """Whether the answer is to be a stream."""

    @property
    def wants_usage(self) -> bool:
        """Whether the caller asked for the usage chunk."""

    @property
    def content_type(self) -> str:
        """Media type of the forwarded body."""

    @property
    def model(self) -> str:
        """The route asked for."""

    @property
    def region(self) -> str | None:
        """The `region` member."""

    @property
    def provider(self) -> str | None:
        """The `provider` member."""

    @property
    def failover(self) -> tuple[str, ...]:
        """The route ids of the `failover` member."""

    def affinity(self) -> bytes:
        """Return what requests have in common that should go to one upstream."""

    def forwarded(self, upstream_name: str) -> bytes:
        """Return the body for an upstream that calls the model `upstream_name`."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What differs between the inference endpoints.

    Attributes:
        path: below the base URL, ours and the upstream's.
        receipt_type: of their receipts.
        model_type: of the models they serve.
        parse: reads and checks a body, given its media type and the most failover routes.
        text_answers: whether an answer may be something else than JSON; then only the header names the receipt.
    """

    path: str
    receipt_type: ReceiptType
    model_type: ModelType
    parse: Callable[[bytes, str, int], Forwardable]
    text_answers: bool = False


class _UpstreamMessage(msgspec.Struct):
    message: str


class _UpstreamRefusal(msgspec.Struct):
    error: _UpstreamMessage | str


class Exchange:
    """One request with a plan, from its first try to its receipt.

    Args:
        context: the worker's parts.
        request: the caller's request; its body has been read.
        caller: whose key it carried.
        endpoint: where it came in.
        options: what its headers ask for.
        body: its body as received.
        parsed: its body as read.
        plan: what to try.
    """

    __slots__ = (
        "_context",
        "_deadline",
        "_endpoint",
        "_ledger",
        "_loop",
        "_options",
        "_parsed",
        "_plan",
        "_recorder",
        "_request",
        "_streaming",
    )

    def __init__(
        self,
        context: Context,
        request: Request,
        *,
        caller: ApiKey,
        endpoint: Endpoint,
        options: ExchangeOptions,
        body: bytes,
        parsed: Forwardable,
        plan: Plan,
    ) -> None:
        self._context = context
        self._request = request
        self._endpoint = endpoint
        self._options = options
        self._parsed = parsed
        self._plan = plan
        self._loop = asyncio.get_running_loop()
        self._deadline = _NEVER if parsed.stream else self._loop.time() + options.timeout_s
        self._recorder: StreamRecorder | None = None
        self._streaming = False
        self._ledger = Ledger(
            context,
            caller,
            options,
            receipt_type=endpoint.receipt_type,
            plan=plan,
            body=body,
            stream=parsed.stream,
        )

    def __repr__(self) -> str:
        return f"<Exchange {self._request.id} {self._plan.requested} tries={len(self._ledger.tries)}>"

    async def run(self) -> None:
        """Serve the request to its end, whatever that is."""
        try:
            for position, route in enumerate(self._plan.candidates):
                if self._loop.time() >= self._deadline:
                    break
                # Always asked: where the breaker is half open, this request is the probe.
                admitted = self._context.pools[route.upstream].health.admit(self._loop.time())
                if position > 0 and not admitted and not self._plan.last_resort:
                    continue
                if await self._try(route):
                    return
            await self._refuse(self._all_failed())
        except asyncio.CancelledError:
            await self._interrupted()

    # One candidate.

    async def _try(self, route: Route) -> bool:
        """Try a candidate; return whether the exchange is over."""
        attempt = self._ledger.begin(route)
        self._recorder = None
        pool = self._context.pools[route.upstream]
        gate = pool.gate
        try:
            if not gate.try_acquire():
                await gate.acquire(self._deadline)
            try:
                ending = await self._ask(attempt, pool)
            finally:
                gate.release()
        except UpstreamError as error:
            self._failed(attempt, error)
            return False
        await ending()
        return True

    async def _ask(self, attempt: Try, pool: UpstreamPool) -> _Ending:
        """Send the request and relay the answer, but for its end."""
        route, parsed = attempt.route, self._parsed
        connection = pool.take() or await pool.acquire(self._deadline)
        try:
            attempt.standing = connection.standing
            self._check_demands(attempt)
            body = parsed.forwarded(route.settings.upstream_name)
            accept = _EVENT_STREAM if parsed.stream else "*/*" if self._endpoint.text_answers else JSON
            connection.deadline = self._deadline
            connection.silence_s = _NEVER
            if parsed.stream:
                connection.deadline = self._loop.time() + pool.settings.first_byte_timeout_s
            connection.send(pool.request_head(self._endpoint.path, parsed.content_type, accept, len(body)), body)
            attempt.sent_at = self._loop.time()
            self._ledger.note_sent(attempt, body)
            head = await connection.read_head()
            attempt.status = head.status
            if head.status >= 300:  # noqa: PLR2004 - neither a redirect nor an error is an answer
                return await self._not_served(attempt, connection, head)
            if head.headers.get("content-encoding", "identity").lower() != "identity":
                raise UpstreamError("invalid_response", "the answer is content-coded")
            relay = self._relay_stream if parsed.stream else self._relay_whole
            return await relay(attempt, connection, head)
        finally:
            pool.release(connection)

    def _check_demands(self, attempt: Try) -> None:
        """Hold what the channel has proven by now against what the caller demands, before a prompt leaves."""
        proven = frozenset() if attempt.standing is None else attempt.standing.proven
        if missing := self._plan.required_claims - proven:
            raise UpstreamError("attestation_failed", f"not proven of the upstream: {', '.join(sorted(missing))}")

    def _failed(self, attempt: Try, error: UpstreamError) -> None:
        attempt.fail(error)
        if self._recorder is not None:
            self._ledger.upstream_response_digest = self._recorder.upstream_response_digest
        self._note_failure(attempt, error.reason, retry_after_s=error.retry_after_s)
        _log.warning(
            "upstream failed",
            extra={
                "request": self._request.id,
                "route": attempt.route.id,
                "reason": error.reason,
                "status": attempt.status,
                "fault": str(error),
            },
        )

    def _note_failure(self, attempt: Try, reason: AttemptReason, *, retry_after_s: float | None = None) -> None:
        """Tell metrics and the circuit breaker how a try ended that did not serve."""
        self._context.metrics.attempt(attempt.route.id, reason)
        self._context.pools[attempt.route.upstream].health.record_failure(
            self._loop.time(),
            reason,
            status=attempt.status,
            retry_after_s=retry_after_s,
            hurried=not self._parsed.stream and self._options.timeout_s < self._context.limits.default_timeout_s,
        )

    async def _not_served(self, attempt: Try, connection: UpstreamConnection, head: ResponseHead) -> _Ending:
        """Pass an upstream's refusal of the request on; anything else is a reason to try the next candidate."""
        body = await connection.read_whole(self._context.limits.max_response_bytes)
        self._ledger.upstream_response_digest = digest_string(body)
        if not 400 <= head.status < 500 or head.status in _NEXT_CANDIDATE:  # noqa: PLR2004 - the class 4xx
            raise UpstreamError(
                "upstream_status",
                f"the upstream answered {head.status}",
                status=head.status,
                retry_after_s=parse_retry_after(head.headers.get("retry-after")),
            )
        attempt.outcome, attempt.reason = "rejected", "upstream_rejected"
        self._note_failure(attempt, attempt.reason)
        return partial(self._refuse, RequestError(head.status, "upstream_rejected", _message_of(body)))

    # The answer.

    async def _relay_whole(self, attempt: Try, connection: UpstreamConnection, head: ResponseHead) -> _Ending:
        body = await connection.read_whole(self._context.limits.max_response_bytes)
        self._ledger.upstream_response_digest = digest_string(body)
        content_type = JSON
        if self._endpoint.text_answers and not head.media_type.endswith("json"):  # as clients tell, x+json and all
            connection.require_proven_end()
            content_type = head.headers.get("content-type", "application/octet-stream")
        else:
            body, self._ledger.usage = splice_answer(body, self._ledger.extension)
        self._served(attempt)
        return partial(self._end_whole, head.status, body, content_type)

    async def _end_whole(self, status: int, body: bytes, content_type: str) -> None:
        try:
            await self._seal("complete", status=status, response_digest=digest_string(body))
        except StoreUnavailableError:
            self._respond_error(_not_stored(), receipt=False)
        else:
            self._request.respond(status, body, content_type, self._ledger.receipt_header)

    async def _relay_stream(self, attempt: Try, connection: UpstreamConnection, head: ResponseHead) -> _Ending:
        if head.media_type != _EVENT_STREAM:
            raise UpstreamError("invalid_response", f"the answer to a streaming request is not {_EVENT_STREAM}")
        recorder = self._recorder = StreamRecorder(
            extension=self._ledger.extension,
            pass_usage=self._parsed.wants_usage,
            max_event_bytes=self._context.limits.max_event_bytes,
        )
        fault: UpstreamError | None = None
        while fault is None and recorder.phase is not StreamPhase.DONE:
            try:
                data = await connection.read()
            except UpstreamError as error:
                fault = error
                break
            if out := recorder.feed(data) if data else recorder.end():
                if not self._streaming:
                    self._begin_stream(attempt, connection, head)
                self._request.write(out)
                if self._request.congested:
                    await self._request.drain()
            fault = recorder.fault
        if fault is not None and not self._streaming:
            raise fault
        self._ledger.usage = recorder.usage
        if fault is not None:
            self._failed(attempt, fault)
            return partial(self._break_stream, recorder, _broken(fault))
        connection.on_silence = None
        await _read_trailing(connection, recorder)
        self._ledger.upstream_response_digest = recorder.upstream_response_digest
        self._served(attempt)
        if not self._streaming:  # all there was is held back
            self._begin_stream(attempt, connection, head)
        return partial(self._end_stream, recorder, head.status)

    def _begin_stream(self, attempt: Try, connection: UpstreamConnection, head: ResponseHead) -> None:
        """Send the head: from here on no other candidate can take over."""
        self._streaming = True
        self._request.start_stream(
            head.status, _EVENT_STREAM, f"Cache-Control: no-cache\r\n{self._ledger.receipt_header}"
        )
        pool = self._context.pools[attempt.route.upstream]
        pool.health.record_success(self._loop.time(), self._loop.time() - attempt.sent_at)
        total_s = pool.settings.total_timeout_s
        connection.deadline = attempt.sent_at + total_s if total_s else _NEVER
        connection.silence_s = pool.settings.idle_timeout_s
        connection.comment_after_s = self._context.limits.keep_alive_comment_s
        connection.on_silence = self._keep_alive

    def _keep_alive(self) -> None:
        if self._recorder is not None:
            self._request.write(self._recorder.comment())

    async def _end_stream(self, recorder: StreamRecorder, status: int) -> None:
        tail = recorder.tail()
        try:
            await self._seal("complete", status=status, response_digest=recorder.response_digest)
        except StoreUnavailableError:
            tail = recorder.broken_tail(encode_stream_error(_not_stored(), None))
        self._request.finish_stream(tail)

    async def _break_stream(self, recorder: StreamRecorder, error: RequestError) -> None:
        """End a stream of which content has been sent with an error event and no `[DONE]`."""
        event = recorder.broken_tail(encode_stream_error(error, self._ledger.named_receipt))
        try:
            await self._seal("upstream_aborted", status=self._request.status, response_digest=recorder.response_digest)
        except StoreUnavailableError:
            event = recorder.broken_tail(encode_stream_error(_not_stored(), None))
        self._request.finish_stream(event)

    def _served(self, attempt: Try) -> None:
        attempt.outcome, attempt.reason = "served", None
        if not self._parsed.stream:  # a stream's success was told when its first content came
            self._context.pools[attempt.route.upstream].health.record_success(self._loop.time())
        self._context.metrics.attempt(attempt.route.id, None)
        self._context.metrics.tokens(
            attempt.route.id, self._ledger.usage.prompt_tokens, self._ledger.usage.completion_tokens
        )

    # Ends without an answer.

    async def _refuse(self, error: RequestError) -> None:
        """Answer with an error envelope and seal a receipt that says so."""
        body = encode_envelope(error, self._request.id)
        try:
            await self._seal("refused", status=error.status, response_digest=digest_string(body))
        except StoreUnavailableError:
            self._respond_error(error, receipt=False)
        else:
            self._respond_error(error, receipt=True)

    def _respond_error(self, error: RequestError, *, receipt: bool) -> None:
        headers = self._ledger.receipt_header if receipt else ""
        if error.retry_after_s is not None:
            headers += f"Retry-After: {error.retry_after_s}\r\n"
        self._request.respond(error.status, encode_envelope(error, self._request.id), headers=headers)

    def _all_failed(self) -> RequestError:
        """Return what the caller is told: of every try the route, the reason and the status, and nothing else."""
        tries = self._ledger.tries
        reasons = {attempt.reason for attempt in tries}
        attempts = tuple(FailedAttempt(attempt.route.id, attempt.reason, attempt.status) for attempt in tries)
        if not any(attempt.prompt_sent for attempt in tries):
            if self._plan.demanding and (not self._plan.candidates or reasons == {"attestation_failed"}):
                claims = ", ".join(sorted(self._plan.required_claims))
                return RequestError(
                    412,
                    "attestation_requirements_not_met",
                    f"no candidate has proven {claims}; nothing was sent",
                    param="X-Tresor-Require-Attestation",
                    attempts=attempts,
                )
            if reasons and reasons <= _NOT_ATTESTED:
                detail = "no candidate could prove what it is; nothing was sent"
                return RequestError(503, "attestation_failed", detail, retry_after_s=5, attempts=attempts)
            if reasons == {"overloaded"}:
                detail = "every candidate serves as many requests as it may"
                return RequestError(503, "no_route_available", detail, retry_after_s=1, attempts=attempts)
        count = len(tries)
        if self._loop.time() >= self._deadline or reasons == {"timeout"}:
            detail = f"no upstream answered in time; routes tried: {count}"
            return RequestError(504, "upstream_timeout", detail, attempts=attempts)
        detail = f"no upstream gave a usable answer; routes tried: {count}, {', '.join(sorted(map(str, reasons)))}"
        return RequestError(502, "upstream_error", detail, attempts=attempts)

    async def _interrupted(self) -> None:
        """The caller left, or the process must end: seal what happened until now."""
        if self._ledger.sealed:
            return  # the receipt is on its way to the store; that the last bytes arrived is never claimed
        attempt = self._ledger.tries[-1] if self._ledger.tries else None
        if attempt is not None:
            attempt.outcome, attempt.reason = "cancelled", "caller_gone" if self._request.gone else "router_stopped"
            self._note_failure(attempt, attempt.reason)
        recorder = self._recorder
        if recorder is not None:
            self._ledger.usage = recorder.usage
            self._ledger.upstream_response_digest = recorder.upstream_response_digest
        if not self._request.gone:
            error = RequestError(503, "service_unavailable", "this router process is stopping", retry_after_s=1)
            if self._streaming and recorder is not None:
                await self._break_stream(recorder, error)
            else:
                await self._refuse(error)
            return
        sent = recorder.response_digest if self._streaming and recorder is not None else _NOTHING
        try:
            await self._seal("client_disconnected", status=self._request.status, response_digest=sent)
        except StoreUnavailableError:
            _log.warning("receipt of an abandoned exchange lost", extra={"request": self._request.id})

    async def _seal(self, outcome: Outcome, *, status: int | None, response_digest: str) -> None:
        """Have the receipt stored; see `Ledger.seal`."""
        answered = outcome == "complete" or self._streaming
        durable = self._ledger.seal(outcome, status=status, response_digest=response_digest, answered=answered)
        if durable is not None:
            await durable


async def _read_trailing(connection: UpstreamConnection, recorder: StreamRecorder) -> None:
    """Read what comes behind `[DONE]`: hashed, never sent on.  Mostly nothing, in the same segment."""
    if connection.finished:
        return
    try:
        async with asyncio.timeout(_TRAILING_S):
            while data := await connection.read():
                recorder.feed(data)
    except (UpstreamError, TimeoutError):
        pass  # the stream was whole at its [DONE]; the connection is not used again


def _message_of(body: bytes) -> str:
    """Return the message of an upstream's refusal, for the caller alone."""
    try:
        error = msgspec.json.decode(body, type=_UpstreamRefusal).error
    except (msgspec.DecodeError, UnicodeDecodeError):
        return "the upstream refused the request without a message"
    return (error if isinstance(error, str) else error.message)[:_MAX_MESSAGE_CHARS]


def _broken(fault: UpstreamError) -> RequestError:
    if fault.reason == "timeout":
        return RequestError(504, "upstream_timeout", "the upstream fell silent; the answer is not complete")
    return RequestError(502, "upstream_error", f"the answer is not complete: {fault}")


def _not_stored() -> RequestError:
    return RequestError(
        503, "service_unavailable", "the receipt could not be stored, so the answer is withheld", retry_after_s=2
    )
