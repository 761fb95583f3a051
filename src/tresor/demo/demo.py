"""`tresor demo`: start everything, say how to use it, end everything.

State is kept in one folder and found again by the next run: certificates, the store with its receipts, the signing key,
and `demo.json`, which scripts read: `base_url`, `api_key`, `ca_file`, `model`.
"""

import json
import os
import re
import secrets
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx2

from tresor.accounts.api_keys import key_digest, new_api_key, new_key_id
from tresor.app.lifeline import make_lifeline
from tresor.demo.ceremony import perform_ceremony
from tresor.demo.certificates import make_certificates, write_private
from tresor.demo.instructions import render_instructions
from tresor.demo.model import KEY_VARIABLE, MODEL_NAME
from tresor.store.sqlite.store import SqliteStore

__all__ = ["DemoError", "run_demo"]

_START_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 45.0
_CUSTOMER: Final = "demo"
_CONFIG: Final = """\
# Made by `tresor demo`; written anew at every start.
[server]
listen = "127.0.0.1:{port}"
public_origin = "https://localhost:{port}"
tls_certificate_file = "server.pem"
tls_key_file = "server.key"
drain_timeout_s = 10

[store]
path = "tresor.db"

[receipts]
key_directory = "receipt-keys"

[identity]
tee = "simulated"  # no hardware stands behind it; what verifies it says so
manifest_file = "router-manifest.jws"
trust_bundle_file = "router-bundle.jws"

[log]
level = "warning"

[[upstreams]]
provider = "embedded"
region = "local"
base_url = "{base_url}/v1"
ca_file = "sidecar-ca.pem"
api_key_file = "model.key"
attestation = "tresor"
release_root_file = "release-root.jwk"
allow_simulated = true

[[upstreams.models]]
key = "{model}"
upstream_name = "{model}"
"""

_SIDECAR_CONFIG: Final = """\
# Made by `tresor demo`; written anew at every start.
[server]
listen = "127.0.0.1:0"
public_origin = "https://localhost"
tls_certificate_file = "sidecar.pem"
tls_key_file = "sidecar.key"
drain_timeout_s = 10

[identity]
tee = "simulated"  # no hardware stands behind it; what verifies it says so
manifest_file = "inference-manifest.jws"
trust_bundle_file = "inference-bundle.jws"

[log]
level = "warning"

[backend]
base_url = "{base_url}"
keep_alive = false  # llama.cpp's server closes connections behind every stream
"""


class DemoError(Exception):
    """The demo cannot go on; the message says what to do."""


def run_demo(folder: Path, port: int) -> int:
    """Run the demo until Ctrl-C, SIGTERM, or the end of one of its processes.

    Raises:
        DemoError: it cannot start, or one of its processes ended by itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # the first is ignored where a shell starts this in the background
        signal.signal(number, _interrupt)
    _check_port(port)
    known_key = _open_folder(folder)
    with ExitStack() as children:
        try:
            _say("preparing certificates for localhost")
            make_certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
            make_certificates(folder / "sidecar-ca.pem", folder / "sidecar.pem", folder / "sidecar.key")
            _say("preparing manifests and trust bundles, under a SIMULATED root")
            perform_ceremony(folder, ("router", "inference"))
            _say("starting the language model (SmolLM2-135M on llama.cpp)")
            model, model_url = _start_model(folder, children)
            _say("starting the attested sidecar before it")
            (folder / "sidecar.toml").write_text(_SIDECAR_CONFIG.format(base_url=model_url), encoding="utf-8")
            sidecar, sidecar_url = _start_sidecar(folder, children)
            config = _CONFIG.format(port=port, base_url=sidecar_url, model=MODEL_NAME)
            (folder / "tresor.toml").write_text(config, encoding="utf-8")
            api_key = _find_or_make_key(folder, known_key)
            _say("starting the router")
            router = _start("serve", folder / "tresor.toml", children, stdout=subprocess.DEVNULL)
            _wait_until_ready(folder / "ca.pem", port, router)
            _write_facts(folder, port, api_key)
            print(render_instructions(folder, port, api_key, MODEL_NAME), flush=True)
            _watch({"the language model": model, "the sidecar": sidecar, "the router": router})
        except KeyboardInterrupt:
            _say("stopping")
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _say(what: str) -> None:
    print(f"tresor demo: {what}", flush=True)


def _check_port(port: int) -> None:
    """Find out before anything slow is begun."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DemoError(
                f"port {port} on 127.0.0.1 is taken ({error.strerror}); choose another: tresor demo --port {port + 1}"
            ) from error


def _open_folder(folder: Path) -> str | None:
    """Make the folder, take back what an earlier run said of itself, and return the API key it said."""
    facts = folder / "demo.json"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        known = json.loads(facts.read_bytes())["api_key"] if facts.is_file() else None  # noqa: TID251 - our own file
        facts.unlink(missing_ok=True)
    except (ValueError, KeyError, TypeError):
        return None
    except OSError as error:
        raise DemoError(f"{folder}: {error.strerror}") from error
    return known if isinstance(known, str) else None


def _start_model(folder: Path, children: ExitStack) -> tuple[subprocess.Popen[str], str]:
    """Start the model server; return it and its address."""
    key = secrets.token_hex(16)
    write_private(folder / "model.key", key.encode())
    model = subprocess.Popen(
        [sys.executable, "-m", "tresor.demo.model"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, KEY_VARIABLE: key},
    )
    children.callback(_stop, model)
    assert model.stdout is not None  # noqa: S101 - it was asked for
    if not select.select([model.stdout], [], [], _START_TIMEOUT_S)[0]:
        raise DemoError(f"the language model did not start within {_START_TIMEOUT_S:.0f} seconds")
    line = model.stdout.readline()
    if not line:
        raise DemoError("the language model did not start; it says why above")
    return model, str(json.loads(line)["address"])  # noqa: TID251 - our own child's line


def _find_or_make_key(folder: Path, known: str | None) -> str:
    """Return the key of an earlier run if it still lives, or make one, and its customer."""
    store = SqliteStore(folder / "tresor.db")
    try:
        now = int(time.time())
        if known is not None:
            found = store.find_api_key(key_digest(known))
            if found is not None and found.revoked_at is None:
                return known
        store.add_customer(_CUSTOMER, "default", now=now)
        key = new_api_key()
        store.add_api_key(new_key_id(), _CUSTOMER, key_digest(key), "demo", now=now)
        return key
    finally:
        store.close()


def _start_sidecar(folder: Path, children: ExitStack) -> tuple[subprocess.Popen[str], str]:
    """Start `tresor sidecar`; return it and its address."""
    sidecar = _start("sidecar", folder / "sidecar.toml", children, stdout=subprocess.PIPE)
    assert sidecar.stdout is not None  # noqa: S101 - it was asked for
    if not select.select([sidecar.stdout], [], [], _START_TIMEOUT_S)[0]:
        raise DemoError(f"the sidecar did not start within {_START_TIMEOUT_S:.0f} seconds")
    port = re.search(r"port (\d+)", sidecar.stdout.readline())
    if port is None:
        raise DemoError("the sidecar did not start; it says why above")
    return sidecar, f"https://localhost:{port[1]}"


def _start(command: str, config: Path, children: ExitStack, *, stdout: int) -> subprocess.Popen[str]:
    """Start a command of `tresor`; it ends when this process does, however that comes about."""
    child_end, parent_end = make_lifeline()
    process = subprocess.Popen(
        [sys.executable, "-m", "tresor.cli.main", command, f"--config={config}", f"--lifeline-fd={child_end}"],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        text=True,
        pass_fds=(child_end,),
        start_new_session=True,  # Ctrl-C is for the demo; it ends the router before the model
    )
    os.close(child_end)
    children.callback(os.close, parent_end)
    children.callback(_stop, process)
    return process


def _wait_until_ready(ca_file: Path, port: int, router: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    with httpx2.Client(verify=ssl.create_default_context(cafile=ca_file), trust_env=False) as client:
        while time.monotonic() < deadline:
            if router.poll() is not None:
                raise DemoError("the router did not start; it says why above")
            try:
                if client.get(f"https://localhost:{port}/readyz").status_code == httpx2.codes.OK:
                    return
            except httpx2.TransportError:
                pass
            time.sleep(0.05)
    raise DemoError(f"the router was not ready within {_START_TIMEOUT_S:.0f} seconds")


def _write_facts(folder: Path, port: int, api_key: str) -> None:
    facts = {
        "base_url": f"https://localhost:{port}/v1",
        "api_key": api_key,
        "ca_file": str((folder / "ca.pem").resolve()),
        "model": MODEL_NAME,
    }
    write_private(folder / "demo.json.new", json.dumps(facts, indent=2).encode() + b"\n")
    (folder / "demo.json.new").replace(folder / "demo.json")


def _watch(processes: Mapping[str, subprocess.Popen[Any]]) -> None:
    """Wait for Ctrl-C, or for a process that should not have ended."""
    while True:
        for name, process in processes.items():
            if process.poll() is not None:
                raise DemoError(f"{name} ended by itself with exit code {process.returncode}")
        time.sleep(0.2)


def _stop(process: subprocess.Popen[Any]) -> None:
    """End a child and wait for it; Ctrl-C while waiting makes it quick."""
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()
