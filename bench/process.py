"""One server under test: a process group on one core, frozen while another one is measured."""

import os
import signal
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import machine


class ServerError(Exception):
    """A server did not start, or ended by itself."""


def require_free_port(port: int) -> None:
    """Refuse to measure what someone else serves on our port.

    Raises:
        ServerError: the port is taken.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ServerError(f"port {port} is taken") from error


class Server:
    """A started server.  Its processes share one group, so that none of them is missed."""

    def __init__(self, argv: Sequence[str | Path], *, directory: Path, core: int, env: Mapping[str, str]) -> None:
        self._log = directory / "log"
        with self._log.open("wb") as log, machine.pinned(core):
            self._process = subprocess.Popen(
                argv,
                cwd=directory,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def group(self) -> int:
        """Process group id."""
        return self._process.pid

    def require_alive(self) -> None:
        """Check that the server still runs.

        Raises:
            ServerError: it has ended; the message holds the end of its log.
        """
        if self._process.poll() is not None:
            tail = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise ServerError(f"exit status {self._process.returncode}: {' / '.join(tail)}")

    def freeze(self) -> None:
        """Stop it in its tracks: no background work of an idle gateway disturbs the one being measured."""
        os.killpg(self.group, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it run again."""
        os.killpg(self.group, signal.SIGCONT)

    def kill(self) -> None:
        """End it without a chance to tidy up, as a crash would."""
        if self._process.poll() is None:
            os.killpg(self.group, signal.SIGKILL)
            self._process.wait()
