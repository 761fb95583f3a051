"""From a request to its handler: endpoints, authentication, rate limits, and how errors become answers."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache
from typing import Final

from tresor.accounts.rate_limits import Allowance
from tresor.app.attesting import Attesting
from tresor.app.context import Context
from tresor.app.exchange import Endpoint, Exchange
from tresor.app.options import parse_options
from tresor.app.resources import Resources
from tresor.errors import RequestError
from tresor.routing.catalogue import ModelType
from tresor.routing.plan import Resolution, order, parse_route, resolve
from tresor.routing.view import UpstreamView
from tresor.server.request import Request
from tresor.store.base import ApiKey
from tresor.upstreams.pool import UpstreamPool
from tresor.wire.envelope import encode_envelope
from tresor.wire.inference import parse_chat_request, parse_embedding_request
from tresor.wire.transcription import parse_transcription_request

__all__ = ["Application"]

_log = logging.getLogger("tresor.access")

_CACHED_PLANS: Final = 1024
_ENDPOINTS: Final = {
    f"/v1{endpoint.path}": endpoint
    for endpoint in (
        Endpoint("/chat/completions", "message", "chat", parse_chat_request),
        Endpoint("/embeddings", "embedding", "embedding", parse_embedding_request),
        Endpoint(
            "/audio/transcriptions", "transcription", "transcription", parse_transcription_request, text_answers=True
        ),
    )
}


_NAMED: Final = frozenset(
    {
        "/.well-known/jwks.json",
        "/.well-known/tresor-trust-bundle",
        "/attestation",
        "/healthz",
        "/readyz",
        "/v1/models",
        "/v1/receipts",
    }
)


class _Views:
    """What routing knows of each upstream, made when it is asked for: most requests have one candidate and ask none."""

    def __init__(self, pools: Sequence[UpstreamPool]) -> None:
        self._pools = pools

    def __getitem__(self, position: int) -> UpstreamView:
        return self._pools[position].view()


class Application:
    """Answers every request of one worker.

    Args:
        context: the worker's parts.
        attesting: its own evidence.
    """

    def __init__(self, context: Context, attesting: Attesting) -> None:
        self._context = context
        self._attesting = attesting
        self._resources = Resources(context)
        # A pure function of the catalogue and these words, which are the same from one request to the next.
        self._resolve = lru_cache(maxsize=_CACHED_PLANS)(self._find_routes)
        self._views = _Views(context.pools)
        self._open: dict[str, Callable[[Request], Awaitable[None]]] = {
            "/v1/models": self._resources.models,
            "/.well-known/jwks.json": self._resources.jwks,
            "/.well-known/tresor-trust-bundle": attesting.trust_bundle,
            "/attestation": attesting.attestation,
            "/healthz": self._resources.healthz,
            "/readyz": self._resources.readyz,
        }

    async def __call__(self, request: Request) -> None:
        """Answer `request`, whatever happens."""
        began = time.perf_counter()
        endpoint = _name_of(request.path)
        try:
            await self._dispatch(request)
        except RequestError as error:
            _respond_error(request, error)
        finally:
            if request.status is not None:
                self._context.metrics.response(endpoint, request.status)
            if self._context.access_log:
                _log.info(
                    "request",
                    extra={
                        "request": request.id,
                        "method": request.method,
                        "endpoint": endpoint,
                        "status": request.status,
                        "ms": round((time.perf_counter() - began) * 1000, 1),
                    },
                )

    def _dispatch(self, request: Request) -> Awaitable[None]:
        endpoint = _ENDPOINTS.get(request.path)
        return self._look_up(request) if endpoint is None else self._infer(request, endpoint)

    async def _look_up(self, request: Request) -> None:
        if request.path == "/v1/receipts":
            await self._resources.list_receipts(request, await self._admit(request, "GET"))
        elif request.path.startswith("/v1/receipts/"):
            await self._resources.receipt(request, await self._admit(request, "GET"))
        elif (handler := self._open.get(request.path)) is not None:
            _allow(request, "GET", "HEAD")
            await handler(request)
        elif request.path.startswith("/v1/models/"):
            _allow(request, "GET", "HEAD")
            await self._resources.model(request)
        else:
            raise RequestError(404, "not_found", "there is nothing at this path")

    async def _infer(self, request: Request, endpoint: Endpoint) -> None:
        context = self._context
        caller = await self._admit(request, "POST")
        content_type = request.headers.get("content-type", "")
        options = parse_options(request.headers, context.limits)
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "unsupported_media_type", "the body is content-coded: send it as it is")
        body = await request.body()
        parsed = endpoint.parse(body, content_type, context.limits.max_failover_routes)
        resolution = self._resolve(endpoint.model_type, parsed.model, parsed.region, parsed.provider, parsed.failover)
        if not context.issuer.may_sign:
            raise self._attesting.unavailable()
        if context.issuer.saturated:
            raise RequestError(503, "service_unavailable", "too many receipts wait for the store", retry_after_s=2)
        plan = order(
            resolution,
            self._views,
            now=time.time(),
            affinity=parsed.affinity,
            required_claims=options.required_claims | caller.required_claims,
        )
        exchange = Exchange(
            context, request, caller=caller, endpoint=endpoint, options=options, body=body, parsed=parsed, plan=plan
        )
        await exchange.run()

    def _find_routes(
        self,
        model_type: ModelType,
        model: str,
        region: str | None,
        provider: str | None,
        failover: tuple[str, ...],
    ) -> Resolution:
        return resolve(
            self._context.catalogue,
            parse_route(model, param="model", region=region, provider=provider),
            [parse_route(route, param=f"failover[{n}]") for n, route in enumerate(failover)],
            model_type,
        )

    async def _admit(self, request: Request, *methods: str) -> ApiKey:
        """Authenticate before anything else is looked at, count the request, then look at its method."""
        caller = await self._context.authenticator.authenticate(request.headers.get("authorization"))
        allowance: Allowance = await self._context.rate_limiter.take(caller)
        request.extra_headers += (
            f"X-RateLimit-Limit: {allowance.limit}\r\nX-RateLimit-Remaining: {allowance.remaining}\r\n"
        )
        if allowance.retry_after_s is not None:
            raise RequestError(
                429,
                "rate_limit_exceeded",
                f"more than {allowance.limit} requests in this window",
                retry_after_s=allowance.retry_after_s,
            )
        _allow(request, *methods)
        return caller


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        allow = ", ".join(methods)
        raise RequestError(405, "method_not_allowed", f"method is {request.method}, want {allow}", allow=allow)


def _respond_error(request: Request, error: RequestError) -> None:
    headers = ""
    if error.retry_after_s is not None:
        headers += f"Retry-After: {error.retry_after_s}\r\n"
    if error.allow is not None:
        headers += f"Allow: {error.allow}\r\n"
    request.respond(error.status, encode_envelope(error, request.id), headers=headers)


def _name_of(path: str) -> str:
    """Return the endpoint's name for metrics and logs: never an id, never what a caller made up."""
    if path in _ENDPOINTS or path in _NAMED:
        return path
    if path.startswith("/v1/receipts/"):
        return "/v1/receipts/{id}"
    if path.startswith("/v1/models/"):
        return "/v1/models/{id}"
    return "other"
