"""The real program as a child process: `tresor serve` on a free port, with its command line beside it."""

import contextlib
import json
import os
import re
import select
import signal
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import psutil  # type: ignore[import-untyped]  # ships no types

from support.certificates import Tls
from support.upstream import Upstream
from support.wire import Answer, Wire
from tresor.jose.jwk import ReceiptKey, parse_jwks
from tresor.jose.jws import SignedJws
from tresor.receipts.claims import ReceiptClaims
from tresor.receipts.verify import VerifiedReceipt, parse_receipt, verify_receipt, verify_signature

__all__ = [
    "LAST",
    "ORIGIN",
    "Completed",
    "Router",
    "UpstreamEntry",
    "chat",
    "new_state",
    "running_router",
    "toml",
    "tresor",
    "wait_until",
    "write_config",
]

ORIGIN: Final = "https://router.test"
"""`iss` of every receipt, whatever port the router got."""
LAST: Final[Mapping[str, Any]] = {"weight": 1e-9}
"""Settings of an upstream that is never the first choice while others are as good."""
_START_S: Final = 30.0
_LISTENING = re.compile(r"tresor: listening on \S+ \((\S+) port (\d+)\)\n")


def wait_until(holds: Any, what: str, timeout_s: float = 20.0) -> None:
    """Wait until `holds()` is true."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:.0f} s in vain until {what}")
        time.sleep(0.02)


def chat(model: str = "m", prompt: str = "What is 2+2?", **members: Any) -> bytes:
    """Return the body of a chat completion request."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], **members}
    return json.dumps(body, separators=(",", ":")).encode()


# Configuration and command line.


@dataclass(frozen=True)
class UpstreamEntry:
    """An entry of `[[upstreams]]`.

    Attributes:
        upstream: where it points, or a base URL.
        models: `key` to `upstream_name`, or to a table with the other members of a model.
        settings: further members.
    """

    upstream: Upstream | str
    provider: str = "alpha"
    region: str = "eu"
    models: Mapping[str, str | Mapping[str, Any]] = field(default_factory=lambda: {"m": "upstream-name"})
    settings: Mapping[str, Any] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """Return the entry as it stands in the file."""
        return {
            "provider": self.provider,
            "region": self.region,
            "base_url": self.upstream if isinstance(self.upstream, str) else self.upstream.base_url,
            "attestation": "none",
            **self.settings,
            "models": [
                {"key": key, **({"upstream_name": model} if isinstance(model, str) else model)}
                for key, model in self.models.items()
            ],
        }


def write_config(
    folder: Path,
    upstreams: Sequence[UpstreamEntry],
    *,
    tls: Tls | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write `tresor.toml`; `settings` are tables merged into the defaults of the tests."""
    server: dict[str, Any] = {"listen": "127.0.0.1:0", "public_origin": ORIGIN, "drain_timeout_s": 5}
    if tls is not None:
        server |= {"tls_certificate_file": str(tls.certificate_file), "tls_key_file": str(tls.key_file)}
    plan = {"requests_per_minute": 1_000_000, "requests_per_day": 1_000_000_000}
    tree: dict[str, Any] = {"server": server, "plans": {"default": plan}, **{t: {} for t in settings or {}}}
    for table, members in (settings or {}).items():
        tree[table] = {**({"server": server, "plans": {"default": plan}}.get(table, {})), **members}
    tree["upstreams"] = [entry.table() for entry in upstreams]
    path = folder / "tresor.toml"
    path.write_text("\n".join(toml((), tree)) + "\n")
    return path


def toml(at: tuple[str, ...], table: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a table."""
    nested = {name: value for name, value in table.items() if isinstance(value, Mapping) or _are_tables(value)}
    for name, value in table.items():
        if name not in nested:
            yield f"{name} = {json.dumps(value)}"
    for name, value in nested.items():
        path = (*at, name)
        for item in value if _are_tables(value) else [value]:
            yield f"[[{'.'.join(path)}]]" if _are_tables(value) else f"[{'.'.join(path)}]"
            yield from toml(path, item)


def _are_tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


@dataclass(frozen=True)
class Completed:
    """What a run of the command line left."""

    exit_code: int
    out: str
    err: str


def tresor(*arguments: str | Path, environment: Mapping[str, str] | None = None, module: str = "main") -> Completed:
    """Run `tresor` (or `tresor-verify`, for `module="verify"`) to its end."""
    done = subprocess.run(
        [sys.executable, "-m", f"tresor.cli.{module}", *map(str, arguments)],
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Completed(done.returncode, done.stdout, done.stderr)


def new_state(config: Path, customer: str = "acme", *, plan: str = "default") -> str:
    """Add a customer with a key, by the command line; return the key."""
    added = tresor("customers", "add", customer, "--plan", plan, "--config", config)
    assert added.exit_code == 0, added.err
    return new_key(config, customer)


def new_key(config: Path, customer: str) -> str:
    """Create a key by the command line."""
    created = tresor("keys", "create", "--customer", customer, "--config", config)
    assert created.exit_code == 0, created.err
    return created.out.strip()


# The running program.


class Router:
    """A running `tresor serve`.

    Attributes:
        config: its configuration file; everything it writes is beside it.
        log: the file its standard error goes to.
        process: the supervisor.
        key: an API key of the customer `acme`, where one was made.
    """

    def __init__(
        self, config: Path, *, tls: Tls | None, key: str, environment: Mapping[str, str] | None = None
    ) -> None:
        self.config = config
        self.folder = config.parent
        self.log = self.folder / "stderr.log"
        self.key = key
        self._tls = None if tls is None else tls.client_context()
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tresor.cli.main", "serve", "--config", str(config)],
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.address = self._listening()

    def _listening(self) -> tuple[str, int]:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], _START_S)
        line = self.process.stdout.readline() if readable else ""
        match = _LISTENING.fullmatch(line)
        if match is None:
            self.kill()
            raise AssertionError(f"the router did not start: {line!r} {self.log.read_text()}")
        return match[1], int(match[2])

    @property
    def tls(self) -> ssl.SSLContext | None:
        """What a caller needs to trust the router; None where it speaks plain HTTP."""
        return self._tls

    @property
    def origin(self) -> str:
        """Where it really is."""
        return f"{'http' if self._tls is None else 'https'}://localhost:{self.address[1]}"

    @property
    def base_url(self) -> str:
        """For SDKs."""
        return f"{self.origin}/v1"

    @property
    def database(self) -> Path:
        """The store's file."""
        return self.folder / "tresor.db"

    # Asking.

    def connect(self) -> Wire:
        """Open a connection."""
        return Wire(self.address, self._tls)

    def ask(
        self,
        method: str,
        target: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Answer:
        """Send one request on a connection of its own."""
        with self.connect() as wire:
            return wire.ask(method, target, key=key, headers={"Connection": "close", **(headers or {})}, body=body)

    def complete(self, body: bytes | None = None, *, key: str | None = None, **headers: str) -> Answer:
        """`POST /v1/chat/completions`; `headers` with underscores for hyphens."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.ask(
            "POST", "/v1/chat/completions", key=key or self.key, headers=fields, body=chat() if body is None else body
        )

    def receipt(self, receipt_id: str, *, key: str | None = None) -> bytes:
        """Fetch a receipt as the API's JSON."""
        answer = self.ask("GET", f"/v1/receipts/{receipt_id}", key=key or self.key)
        assert answer.status == 200, answer
        return answer.body

    def jwks(self) -> dict[str, ReceiptKey]:
        """Fetch the key set."""
        return parse_jwks(self.ask("GET", "/.well-known/jwks.json").body)

    def verify(
        self,
        receipt_id: str,
        *,
        request: bytes | None = None,
        response: bytes | None = None,
        nonce: str | None = None,
        key: str | None = None,
        jwks: Mapping[str, ReceiptKey] | None = None,
    ) -> VerifiedReceipt:
        """Fetch a receipt, and the key set unless given, and verify it against whatever is given of its exchange."""
        return verify_receipt(
            parse_receipt(self.receipt(receipt_id, key=key)),
            self.jwks() if jwks is None else jwks,
            now=datetime.now(UTC),
            request=request,
            response=response,
            nonce=nonce,
        )

    def stored_claims(self) -> list[tuple[str, ReceiptClaims]]:
        """Return kid and claims of every receipt in the store's file, verified; the program may run or not."""
        with contextlib.closing(sqlite3.connect(self.database)) as connection:
            stored = connection.execute("SELECT protected, payload, signature FROM receipts ORDER BY n").fetchall()
            rows = connection.execute("SELECT kid, x, y FROM signing_keys").fetchall()
        keys = [
            {"kty": "EC", "crv": "P-256", "use": "sig", "alg": "ES256", "kid": k, "x": x, "y": y} for k, x, y in rows
        ]
        jwks = parse_jwks(msgspec.json.encode({"keys": keys}))
        tokens = [
            SignedJws(protected.encode(), payload.encode(), signature).compact
            for protected, payload, signature in stored
        ]
        receipts = [verify_signature(parse_receipt(token.encode()), jwks) for token in tokens]
        return [(receipt.key.kid, receipt.claims) for receipt in receipts]

    def check_numbers(self) -> None:
        """Check that the receipts in the store are numbered 1, 2, 3 … for each key, none twice, none left out."""
        numbers: dict[str, list[int]] = {}
        for kid, claims in self.stored_claims():
            numbers.setdefault(kid, []).append(claims.seq)
        assert numbers
        for kid, seqs in numbers.items():
            assert sorted(seqs) == list(range(1, len(seqs) + 1)), kid

    # The processes.

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes that run now."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [child for child in children if child.status() != psutil.STATUS_ZOMBIE]

    def rss_bytes(self) -> int:
        """Memory of all workers."""
        return sum(worker.memory_info().rss for worker in self.workers())

    def is_ready(self) -> bool:
        """Whether `/readyz` says so."""
        try:
            return self.ask("GET", "/readyz").status == 200
        except OSError:
            return False

    def wait_ready(self) -> None:
        """Wait for `/readyz`."""
        wait_until(self.is_ready, "the router is ready", _START_S)

    def log_lines(self) -> list[dict[str, Any]]:
        """Return what was logged."""
        return [msgspec.json.decode(line) for line in self.log.read_bytes().splitlines()]

    def signal_stop(self) -> None:
        """Ask for an orderly end."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """Ask for an orderly end, wait for it, and return the exit code."""
        if self.process.poll() is None:
            self.signal_stop()
        return self.wait()

    def wait(self) -> int:
        """Wait for the end."""
        code = self.process.wait(60)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def kill(self) -> None:
        """Kill it and all its workers."""
        workers = self.workers()
        for process in (self.process, *workers):
            with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
                process.kill()
        self.wait()
        psutil.wait_procs(workers, 10)


@contextlib.contextmanager
def running_router(
    folder: Path,
    upstreams: Sequence[UpstreamEntry],
    *,
    tls: Tls | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Router]:
    """Run a router with a customer and a key; it is ready when this yields, and must end in good order."""
    config = write_config(folder, upstreams, tls=tls, settings=settings)
    router = Router(config, tls=tls, key=new_state(config), environment=environment)
    try:
        router.wait_ready()
        yield router
        if router.process.poll() is None:
            assert router.stop() == 0, router.log.read_text()
    finally:
        router.kill()
