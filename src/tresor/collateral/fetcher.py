"""Collateral from the network: AMD's KDS, Intel's PCS, NVIDIA's manifests and OCSP (docs/spec/attestation.md, 3.2.1).

Whoever answers is not trusted: everything fetched is verified up to a pinned root before it counts.  What a server can
do is to waste time and memory, so both are bounded: size, time of each exchange and of all, attempts, redirects (to the
same host over https only).  Answers are taken for what they are by their content; a compressed one is refused.
"""

import ipaddress
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import httpx2

from tresor import __version__
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, CollateralKind, Need
from tresor.attestation.recognise import MAX_FILE_BYTES, recognise
from tresor.attestation.tdx.collateral import PcsAnswer, assemble
from tresor.collateral.cache import CollateralCache
from tresor.errors import TresorError

__all__ = ["FetchError", "FetchLimits", "Fetched", "Fetcher"]

_HTTP_OCSP: Final = frozenset({"ocsp.ndis.nvidia.com"})
"""Responders that answer over plain http; what they say is signed."""
_OK: Final = 200
_TOO_MANY: Final = 429
_SERVER_ERROR: Final = 500
_MAX_REDIRECTS: Final = 3
_MAX_ROUNDS: Final = 4
_MAX_NEEDS: Final = 256


class FetchError(TresorError):
    """Collateral could not be had."""

    code = "collateral_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What one fetcher waits for and takes.

    Attributes:
        max_bytes: of one answer.
        timeout_s: of one connection, one write, one read.
        exchange_s: of one exchange from the name's resolution to the last byte, against servers that drip.
        total_s: of all exchanges for one appraisal.
        attempts: of one question, where the server is busy (429) or broken (5xx).
        backoff_s: before the second attempt; doubled before each further one.
        max_backoff_s: longest wait, whatever the server asks for.
    """

    max_bytes: int = MAX_FILE_BYTES
    timeout_s: float = 10.0
    exchange_s: float = 30.0
    total_s: float = 120.0
    attempts: int = 3
    backoff_s: float = 1.0
    max_backoff_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Fetched:
    """What came of some needs.

    Attributes:
        collateral: what could be had, unverified.
        failures: need to why it could not.
    """

    collateral: Collateral = field(default_factory=Collateral)
    failures: Mapping[Need, str] = field(default_factory=dict)


class Fetcher:
    """Fetches what a verification needs, from the cache first.

    Args:
        cache: where answers are kept; None keeps nothing.
        verify: the TLS trust for all servers; None for the system's.
        mirrors: host name to `https://host[:port]` that serves the same paths, such as a caching proxy of a site.
        online: false to take answers from the cache only.
        limits: what is waited for and taken.
        sleep: waits between attempts.
    """

    def __init__(
        self,
        *,
        cache: CollateralCache | None = None,
        verify: ssl.SSLContext | None = None,
        mirrors: Mapping[str, str] | None = None,
        online: bool = True,
        limits: FetchLimits = FetchLimits(),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cache = cache
        self._verify = verify
        self._mirrors = dict(mirrors or {})
        self._online = online
        self._limits = limits
        self._sleep = sleep

    def complete(self, needs: Callable[[Collateral], Iterable[Need]], collateral: Collateral) -> Fetched:
        """Fetch until nothing more is needed: a certificate that came may need a revocation list of its own.

        Args:
            needs: what would be needed besides the collateral it is given.
            collateral: what is at hand.

        Returns:
            All collateral, that at hand included, and what could not be had.
        """
        deadline = time.monotonic() + self._limits.total_s
        failures: dict[Need, str] = {}
        asked: set[Need] = set()
        for _ in range(_MAX_ROUNDS):
            wanted = [need for need in dict.fromkeys(needs(collateral)) if need not in asked]
            if not wanted:
                break
            for need in wanted:
                asked.add(need)
                if len(asked) > _MAX_NEEDS or time.monotonic() > deadline:
                    failures[need] = f"not asked for after {self._limits.total_s:.0f} seconds or {_MAX_NEEDS} questions"
                    continue
                try:
                    collateral += self.fetch(need)
                except FetchError as error:
                    failures[need] = str(error)
        return Fetched(collateral, failures)

    def fetch(self, need: Need) -> Collateral:
        """Return what answers one need, unverified.

        Raises:
            FetchError: it could not be had.
        """
        now = datetime.now(UTC)
        documents = () if self._cache is None else self._cache.get(need, now=now)
        if not documents:
            if not self._online:
                raise FetchError(f"not in the cache, and the network is not asked: {need.url}")
            answers = [self._answer(url, need) for url in (need.url, *need.also)]
            documents = _documents(need, answers)
            if self._cache is not None:
                self._cache.put(need, documents, now=now)
        return Collateral.of((need.kind, document) for document in documents)

    def _answer(self, url: str, need: Need) -> PcsAnswer:
        """Ask one address, again where the server is busy or broken."""
        delay = self._limits.backoff_s
        for attempt in range(self._limits.attempts):
            answer = self._within(lambda: self._exchange(url, need))
            if answer.status == _OK:
                return PcsAnswer(answer.body, answer.headers)
            busy = answer.status == _TOO_MANY or answer.status >= _SERVER_ERROR
            if not busy or attempt + 1 == self._limits.attempts:
                raise FetchError(f"{url} answered {answer.status}")
            asked = answer.headers.get("retry-after", "")
            wait = float(asked) if asked.isascii() and asked.isdigit() else delay
            self._sleep(min(wait, self._limits.max_backoff_s))
            delay *= 2
        raise FetchError(f"{url} was not asked")

    def _within(self, exchange: Callable[[], "_Answer"]) -> "_Answer":
        """Run one exchange for so long and no longer; a resolver or a server that hangs is left behind."""
        outcome: list[_Answer | FetchError] = []

        def run() -> None:
            try:
                outcome.append(exchange())
            except FetchError as error:
                outcome.append(error)

        thread = threading.Thread(target=run, daemon=True, name="tresor-collateral")
        thread.start()
        thread.join(self._limits.exchange_s)
        if not outcome:
            raise FetchError(f"no whole answer after {self._limits.exchange_s:g} seconds")
        if isinstance(outcome[0], FetchError):
            raise outcome[0]
        return outcome[0]

    def _exchange(self, url: str, need: Need) -> "_Answer":
        target = self._target(url, need)
        headers = {"Accept-Encoding": "identity", "User-Agent": f"tresor/{__version__}"}
        if need.body is not None:
            headers["Content-Type"] = "application/ocsp-request"
        verify: ssl.SSLContext | bool = True if self._verify is None else self._verify
        try:
            # A proxy of the environment is for other machines than this one.
            with httpx2.Client(
                verify=verify, timeout=self._limits.timeout_s, trust_env=not _is_loopback(target.host)
            ) as client:
                for _ in range(_MAX_REDIRECTS + 1):
                    answer = self._ask(client, target, headers, need.body)
                    if answer.location is None:
                        return answer
                    target = _redirected(target, answer.location)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
            raise FetchError(f"{url}: {type(error).__name__}: {error}") from error
        raise FetchError(f"{url} redirects more than {_MAX_REDIRECTS} times")

    def _ask(self, client: httpx2.Client, target: httpx2.URL, headers: dict[str, str], body: bytes | None) -> "_Answer":
        method = "GET" if body is None else "POST"
        with client.stream(method, target, headers=headers, content=body, follow_redirects=False) as response:
            if response.is_redirect:
                return _Answer(response.status_code, {}, b"", response.headers.get("location", ""))
            if response.status_code != _OK:
                return _Answer(response.status_code, _lower(response.headers), b"")
            coding = response.headers.get("content-encoding", "identity")
            if coding != "identity":
                raise FetchError(f"{target.host} answered in the coding {coding[:32]!a}, want none")
            content = bytearray()
            for part in response.iter_raw():
                content += part
                if len(content) > self._limits.max_bytes:
                    raise FetchError(f"{target.host} answered with more than {self._limits.max_bytes} bytes")
            return _Answer(_OK, _lower(response.headers), bytes(content))

    def _target(self, url: str, need: Need) -> httpx2.URL:
        try:
            target = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise FetchError(f"{url[:200]!a} is not a URL") from error
        plain = target.scheme == "http" and need.kind is CollateralKind.OCSP and target.host in _HTTP_OCSP
        if not target.host or not (target.scheme == "https" or plain):
            raise FetchError(f"{url[:200]!a} is not https")
        if (mirror := self._mirrors.get(target.host)) is None:
            return target
        base = httpx2.URL(mirror)
        return target.copy_with(scheme=base.scheme, host=base.host, port=base.port)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes
    location: str | None = None


def _redirected(target: httpx2.URL, location: str) -> httpx2.URL:
    """Follow to the same host over https: who may serve collateral is in the URL, not in an answer."""
    followed = target.join(location)
    if followed.scheme != "https" or followed.host != target.host:
        raise FetchError(f"{target.host} redirects to another host, which is not followed")
    return followed


def _documents(need: Need, answers: list[PcsAnswer]) -> tuple[bytes, ...]:
    """Return the documents of the kind that is needed, and refuse anything else."""
    try:
        if need.kind is CollateralKind.TDX:
            tcb, qe_identity, pck_crl, root_ca_crl = answers
            return (assemble(tcb, qe_identity, pck_crl, root_ca_crl),)
        items = [item for answer in answers for item in recognise(answer.body)]
    except (AttestationError, ValueError) as error:
        raise FetchError(f"{need.url}: {error}") from error
    if not items or any(item.kind is not need.kind for item in items):
        kinds = ", ".join(sorted({item.kind.value for item in items})) or "nothing known"
        raise FetchError(f"{need.url} answered with {kinds}, want {need.kind.value}")
    return tuple(item.data for item in items)


def _lower(headers: httpx2.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
