"""Tresor before an attested upstream over TLS, and before the same upstream unattested: what verification costs.

The bench's upstream stands behind `tresor sidecar`, which attests itself with simulated evidence.  One router demands
that evidence and pins every connection to it; the other speaks TLS to the same sidecar and demands nothing.
"""

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

from bench import machine
from bench.gateways import Tresor
from bench.install import ROOT
from bench.target import UPSTREAM_PORT, Launch
from tresor.demo.ceremony import perform_ceremony
from tresor.demo.certificates import make_certificates

__all__ = ["TresorAttested", "TresorOverTls"]

_SIDECAR = """\
[server]
listen = "127.0.0.1:0"
public_origin = "https://localhost"
tls_certificate_file = "sidecar.pem"
tls_key_file = "sidecar.key"

[identity]
tee = "simulated"
manifest_file = "inference-manifest.jws"
trust_bundle_file = "inference-bundle.jws"

[log]
level = "error"

[backend]
base_url = "http://127.0.0.1:{port}"
"""
_PROGRAM_WORDS = 3
"""Of a command: the interpreter, `-m` and the module."""
_UNKNOWN_PORT = 1  # until the sidecar has one
_DEMANDS = """
attestation = "tresor"
release_root_file = "release-root.jwk"
allow_simulated = true
"""


class TresorOverTls(Tresor):
    """The router over TLS to a sidecar of which it demands nothing."""

    name = "tresor-tls"
    setting = (
        "as tresor, over TLS to `tresor sidecar` in front of the upstream, attestation = none; CPU is both processes'"
    )
    port = 18444
    attestation = '\nattestation = "none"\n'

    def prepare(self) -> None:
        """Make certificates, and what a release makes."""
        make_certificates(*(self.directory / name for name in ("sidecar-ca.pem", "sidecar.pem", "sidecar.key")))
        perform_ceremony(self.directory, ("inference",))
        (self.directory / "sidecar.toml").write_text(_SIDECAR.format(port=UPSTREAM_PORT))

    def launch(self) -> Launch:
        """Start the sidecar beside the router, on the upstream's core."""
        command = super().launch().argv
        core = machine.choose_cores().upstream
        argv = [command[0], "-m", "bench.attested", str(core), self.directory, *command]
        return Launch(argv=argv, env={"PYTHONPATH": str(ROOT)})

    def upstream_settings(self) -> str:
        """Return the members of `[[upstreams]]` that say where and what it is; the port is filled in at the start."""
        return f'base_url = "https://localhost:{_UNKNOWN_PORT}/v1"\nca_file = "sidecar-ca.pem"{self.attestation}'


class TresorAttested(TresorOverTls):
    """The router over TLS to a sidecar that it verifies and pins."""

    name = "tresor-attested"
    setting = 'as tresor-tls, attestation = "tresor": verified ahead of requests, every connection pinned'
    port = 18445
    attestation = _DEMANDS


def main() -> None:
    """Start a sidecar, then become the router."""
    parser = argparse.ArgumentParser(prog="python -m bench.attested")
    parser.add_argument("core", type=int)
    parser.add_argument("directory", type=Path)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    with machine.pinned(arguments.core):
        sidecar = subprocess.Popen(
            [*arguments.command[:_PROGRAM_WORDS], "sidecar", f"--config={arguments.directory / 'sidecar.toml'}"],
            stdout=subprocess.PIPE,
            text=True,
        )
    assert sidecar.stdout is not None  # noqa: S101 - it was asked for
    port = re.search(r"port (\d+)", sidecar.stdout.readline())
    if port is None:
        sys.exit("bench: the sidecar did not start")
    configuration = arguments.directory / "tresor.toml"
    configuration.write_text(configuration.read_text().replace(f":{_UNKNOWN_PORT}/", f":{port[1]}/"))
    os.execv(arguments.command[0], arguments.command)  # noqa: S606 - the router itself


if __name__ == "__main__":
    main()
