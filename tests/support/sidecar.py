"""`tresor sidecar` as a child process, in front of a scripted server of the tests' own."""

import contextlib
import os
import re
import select
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from support.certificates import Tls
from support.router import toml, wait_until
from support.upstream import Upstream
from support.wire import Answer, Wire

__all__ = ["Sidecar", "running_sidecar"]

_START_S: Final = 30.0
_LISTENING = re.compile(r"tresor sidecar: listening on \S+ \((\S+) port (\d+)\)\n")


class Sidecar:
    """A running sidecar.

    Attributes:
        folder: its configuration, and everything it writes.
        log: the file its standard error goes to.
    """

    def __init__(self, folder: Path, tls: Tls, lifeline: int | None = None) -> None:
        self.folder = folder
        self.log = folder / "stderr.log"
        self._tls = tls.client_context()
        arguments = [] if lifeline is None else [f"--lifeline-fd={lifeline}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tresor.cli.main", "sidecar", f"--config={folder / 'sidecar.toml'}", *arguments],
                pass_fds=() if lifeline is None else (lifeline,),
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
            raise AssertionError(f"the sidecar did not start: {line!r} {self.log.read_text()}")
        return match[1], int(match[2])

    @property
    def tls(self) -> ssl.SSLContext:
        """What a caller needs to trust it."""
        return self._tls

    @property
    def origin(self) -> str:
        """Where it is."""
        return f"https://localhost:{self.address[1]}"

    def connect(self) -> Wire:
        """Open a connection."""
        return Wire(self.address, self._tls)

    def ask(self, method: str, target: str, *, headers: Mapping[str, str] | None = None, body: bytes = b"") -> Answer:
        """Send one request on a connection of its own."""
        with self.connect() as wire:
            return wire.ask(method, target, headers={"Connection": "close", **(headers or {})}, body=body)

    def readiness(self) -> tuple[int, Any]:
        """Return status and document of `/readyz`."""
        answer = self.ask("GET", "/readyz")
        return answer.status, answer.json

    def log_lines(self) -> list[dict[str, Any]]:
        """Return what was logged."""
        return [msgspec.json.decode(line) for line in self.log.read_bytes().splitlines()]

    def signal_stop(self) -> None:
        """Ask for an orderly end."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """Wait for the end, and return the exit code."""
        code = self.process.wait(30)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return code

    def stop(self) -> int:
        """Ask for an orderly end, wait for it, and return the exit code."""
        if self.process.poll() is None:
            self.signal_stop()
        return self.wait()

    def kill(self) -> None:
        """Kill it."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.wait()


@contextlib.contextmanager
def running_sidecar(
    folder: Path,
    backend: Upstream | str,
    tls: Tls,
    identity: Mapping[str, Any],
    *,
    ready: bool = True,
    lifeline: int | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Iterator[Sidecar]:
    """Run a sidecar; it is ready when this yields, unless `ready` is false, and must end in good order."""
    origin = backend if isinstance(backend, str) else backend.base_url.removesuffix("/v1")
    server = {
        "listen": "127.0.0.1:0",
        "public_origin": "https://sidecar.test",
        "drain_timeout_s": 5,
        "tls_certificate_file": str(tls.certificate_file),
        "tls_key_file": str(tls.key_file),
    }
    tree: dict[str, Any] = {"server": server, "identity": dict(identity), "backend": {"base_url": origin}}
    for table, members in (settings or {}).items():
        tree[table] = {**tree.get(table, {}), **members}
    folder.mkdir(exist_ok=True)
    (folder / "sidecar.toml").write_text("\n".join(toml((), tree)) + "\n")
    sidecar = Sidecar(folder, tls, lifeline)
    try:
        if ready:
            wait_until(lambda: sidecar.readiness()[0] == 200, "the sidecar is ready", _START_S)
        yield sidecar
        if sidecar.process.poll() is None:
            assert sidecar.stop() == os.EX_OK, sidecar.log.read_text()
    finally:
        sidecar.kill()
