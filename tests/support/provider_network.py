"""A fake provider network on loopback: attested upstreams of every kind, in a process apart and over real TLS.

    with provider_network(folder) as network:
        node = network.open("node", "amd")                     # a TLS key of its own, evidence of the tests' own AMD
        start_router([node.entry()], environment=network.environment)
        node.behave(nonce=bytes(32))                           # from now on: evidence for another challenge
        assert b"POST" not in node.received()                  # every byte that came out of TLS, since it was opened

Kinds: `simulated` and `amd` are Tresor nodes, `tinfoil`, `dstack` and `aci` are domains of the tests' own Intel, with
GPUs of the tests' own NVIDIA.  Each serves its evidence, a model behind it, and whatever fault `Behaviour` names.
Programs that are to trust these vendors are started with `network.environment` (`support/vendor_roots`), and find
Intel's collateral in `network.collateral`.

The process reads a command and writes an answer, a JSON object a line each, on its standard input and output.
"""

import contextlib
import gzip
import json
import os
import select
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeAlias
from urllib.parse import parse_qs, urlsplit

import msgspec
import trustme
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding

from support import fake_providers
from support.ceremony import AmdHost, Ceremony, amd_ceremony, simulated_ceremony, spki_of
from support.fake_amd import fake_amd
from support.fake_intel import INTEL, qe_identity, tcb_info
from support.fake_nvidia import GPU, rim_chain
from support.router import UpstreamEntry
from support.upstream import Call, Upstream, head, reply
from support.upstream import _behave as serve_a_model
from tresor.attestation.evidence import Collateral
from tresor.attestation.hop import HopAnswer, hop_needs
from tresor.collateral.cache import CollateralCache
from tresor.trust.jwk import TrustKey
from tresor.trust.release_root import encode_private_key, encode_public_jwk, parse_private_key

__all__ = ["Balancer", "Behaviour", "Kind", "Provider", "ProviderNetwork", "provider_network"]

Kind: TypeAlias = Literal["simulated", "amd", "tinfoil", "dstack", "aci"]

ASK_TIMEOUT_S: Final = 4.0
"""How long routers under test wait for evidence; that of the product takes a test too long."""
_SUPPORT: Final = Path(__file__).parent
_BUNDLE: Final = "/.well-known/tresor-trust-bundle"
_QUESTIONS: Final = (
    "/attestation",
    "/.well-known/tinfoil-attestation",
    "/v1/attestation/report",
    "/v1/aci/attestation",
)
_DRIP_S: Final = 0.2
_BOMB: Final = gzip.compress(bytes(32 << 20))


class Behaviour(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an upstream behaves; by default, as it should.

    Attributes:
        manner: how the question for evidence is answered: `whole`, or not so.
        delay_s: how long before it is.
        status: of that answer.
        fields: its further header lines.
        answer: its body, whatever was asked.
        replayed: whether the first answer is given again and again.
        asks: port of another upstream, which answers in its place.
        age_s: how many seconds ago the envelope of a Tresor node was issued.
        nonce: the challenge that the evidence answers in place of the one that came.
        spki: SHA-256 of the TLS key that the evidence is about in place of the own one.
        hardware: changes to what the hardware signs: fields of AMD's report, or of the body of Intel's quote.
        members: changes to the envelope of a Tresor node.
        bundle: changes to its trust bundle.
        bundle_of_other_root: whether somebody else signed that.
        workload: what a Tresor node is released as.
        redirects: where the model's requests are sent on to.
        silent: whether it answers requests for its model with nothing for as long as the connection lasts.
    """

    manner: Literal["whole", "silent", "drip", "endless", "hang_up", "gzip_bomb"] = "whole"
    delay_s: float = 0.0
    status: int = 200
    fields: tuple[str, ...] = ()
    answer: bytes | None = None
    replayed: bool = False
    asks: int | None = None
    age_s: int = 0
    nonce: bytes | None = None
    spki: bytes | None = None
    hardware: dict[str, int | bytes | dict[str, int]] = {}
    members: dict[str, int | str] = {}
    bundle: dict[str, Any] = {}
    bundle_of_other_root: bool = False
    workload: str = "inference"
    redirects: str | None = None
    silent: bool = False


# The process.


class _Open(msgspec.Struct, frozen=True, tag="open"):
    name: str
    kind: Kind
    folder: str
    behaviour: Behaviour


class _Behave(msgspec.Struct, frozen=True, tag="behave"):
    name: str
    behaviour: Behaviour


class _Received(msgspec.Struct, frozen=True, tag="received"):
    name: str
    by_key: int | None


class _Rotate(msgspec.Struct, frozen=True, tag="rotate"):
    """Take the TLS key that now lies in the folder; connections that are open keep theirs, unless they are dropped."""

    name: str
    drop: bool


class _Answer(msgspec.Struct, frozen=True):
    port: int = 0
    data: bytes = b""
    connections: int = 0


_Command: TypeAlias = _Open | _Behave | _Received | _Rotate


def _tapping(received: bytearray) -> type[ssl.SSLSocket]:
    """Return a kind of socket that notes every byte that comes out of TLS."""

    class Tapped(ssl.SSLSocket):
        def recv(self, buflen: int = 1024, flags: int = 0) -> bytes:
            data = super().recv(buflen, flags)
            received.extend(data)
            return data

    return Tapped


class _Node:
    """One upstream inside the process."""

    def __init__(self, command: _Open, root: Ed25519PrivateKey) -> None:
        self.behaviour = command.behaviour
        self.received: list[bytearray] = []
        self._kind = command.kind
        self._folder = Path(command.folder)
        self._root = root
        self._receipt_key = ec.generate_private_key(ec.SECP256R1()).public_key()
        self._first: bytes | None = None
        self._host: AmdHost | None = None
        self._ceremony: Ceremony | None = None
        if self._kind == "simulated":
            self._ceremony = replace(simulated_ceremony(self._folder, self.behaviour.workload), root=root)
        elif self._kind == "amd":
            ceremony, self._host = amd_ceremony(self._folder, self.behaviour.workload)
            self._ceremony = replace(ceremony, root=root)
        if self._ceremony is not None:
            self._ceremony.release()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.load_key()
        self.upstream = Upstream(self._tls)
        self.upstream.script(self._answer)

    def load_key(self) -> None:
        """Take the TLS key in the folder, for connections from now on."""
        self.received.append(bytearray())
        self._tls.sslsocket_class = _tapping(self.received[-1])
        self._tls.load_cert_chain(self._folder / "tls.pem", self._folder / "tls.key")
        self._spki = spki_of(self._folder / "tls.pem")

    def _answer(self, call: Call) -> None:
        method, _, target = call.request.target.partition(" ")
        path = urlsplit(target).path
        behaviour = self.behaviour
        if method == "GET" and path in _QUESTIONS:
            self._answer_question(call, target)
        elif method == "GET" and path == _BUNDLE:
            reply(self._bundle(), content_type="application/jose")(call)
        elif behaviour.redirects is not None:
            reply(b"", f"Location: {behaviour.redirects}", status=307)(call)
        elif behaviour.silent:
            call.wait_cancelled()
        else:
            serve_a_model(call)

    def _answer_question(self, call: Call, target: str) -> None:
        behaviour = self.behaviour
        time.sleep(behaviour.delay_s)
        match behaviour.manner:
            case "whole":
                reply(self._document(target), *behaviour.fields, status=behaviour.status)(call)
            case "silent":
                call.wait_cancelled()
            case "drip":
                document = self._document(target)
                call.send(head(200, f"Content-Length: {len(document)}"))
                for byte in document:
                    call.send(bytes((byte,)))
                    time.sleep(_DRIP_S)
            case "endless":
                call.send(head(200, "Transfer-Encoding: chunked"))
                while True:
                    call.send(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
            case "hang_up":
                call.close()
            case "gzip_bomb":
                reply(_BOMB, "Content-Encoding: gzip")(call)

    def _document(self, target: str) -> bytes:
        behaviour = self.behaviour
        if behaviour.answer is not None:
            return behaviour.answer
        if behaviour.replayed and self._first is not None:
            return self._first
        if behaviour.asks is not None:
            return _ask(behaviour.asks, target)
        asked = bytes.fromhex(parse_qs(urlsplit(target).query)["nonce"][0])
        document = self._evidence(asked if behaviour.nonce is None else behaviour.nonce)
        self._first = self._first or document
        return document

    def _evidence(self, nonce: bytes) -> bytes:
        behaviour = self.behaviour
        spki, hardware = behaviour.spki or self._spki, behaviour.hardware
        if self._ceremony is not None:
            if self._host is not None:
                self._host.fields.clear()
                self._host.fields.update(hardware)
            age = timedelta(seconds=behaviour.age_s)
            return self._ceremony.envelope(spki, self._receipt_key, nonce=nonce, age=age, **behaviour.members)
        devices = fake_providers.gpu_entries(nonce)
        match self._kind:
            case "tinfoil":
                # Of its signature by the TLS key nothing is asked here: it is no better than the connection.
                members = {"certificate": ..., "signature": ...}
                return fake_providers.tinfoil(
                    gpus=devices, nonce=nonce, spki=spki, td=hardware, members=members, sign=False
                )
            case "dstack":
                return json.dumps(fake_providers.dstack_node(nonce=nonce, spki=spki, td=hardware)).encode()
            case _:
                ends = int(time.time()) + 3600
                keyset = fake_providers.aci_keyset(not_after=ends, tls_public_keys=[{"spki_sha256": spki.hex()}])
                return fake_providers.aci(keyset=keyset, nonce=nonce, td=hardware)

    def _bundle(self) -> bytes:
        if self._ceremony is None:
            return b""
        if self.behaviour.asks is not None:
            return _ask(self.behaviour.asks, _BUNDLE)
        root = Ed25519PrivateKey.generate() if self.behaviour.bundle_of_other_root else None
        return self._ceremony.bundle(root, **self.behaviour.bundle).encode()


def _ask(port: int, target: str) -> bytes:
    """Ask another upstream; whoever relays has no scruples about its certificate."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    with tls.wrap_socket(socket.create_connection(("127.0.0.1", port), 10)) as sock:
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n".encode())
        data = b""
        while b"\r\n\r\n" not in data:
            data += sock.recv(1 << 16)
        fields, _, body = data.partition(b"\r\n\r\n")
        length = int(fields.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        while len(body) < length:
            body += sock.recv(1 << 16)
    return body


def _main(folder: Path) -> None:
    root = parse_private_key((folder / "release-root.pem").read_bytes(), None)
    (folder / "amd-root.pem").write_bytes(fake_amd("Milan").ark.public_bytes(Encoding.PEM))
    nodes: dict[str, _Node] = {}
    decoder = msgspec.json.Decoder(_Command)
    _say(_Answer())
    for line in sys.stdin.buffer:
        answer = _Answer()
        match decoder.decode(line):
            case _Open() as command:
                node = nodes[command.name] = _Node(command, root)
                answer = _Answer(port=node.upstream.port)
            case _Behave(name, behaviour):
                nodes[name].behaviour = behaviour
            case _Received(name, by_key):
                logs = nodes[name].received
                data = b"".join(logs) if by_key is None else bytes(logs[by_key])
                answer = _Answer(data=data, connections=nodes[name].upstream.connections)
            case _Rotate(name, drop):
                nodes[name].load_key()
                if drop:
                    nodes[name].upstream.drop_connections()
        _say(answer)


def _say(answer: _Answer) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


# The test's side.


@dataclass(frozen=True)
class Provider:
    """One upstream of the network.

    Attributes:
        port: where it listens.
        folder: its TLS key, and of a Tresor node what its release made.
    """

    network: "ProviderNetwork"
    name: str
    kind: Kind
    folder: Path
    port: int

    @property
    def spki(self) -> bytes:
        """SHA-256 of the SubjectPublicKeyInfo of its TLS key."""
        return spki_of(self.folder / "tls.pem")

    @property
    def attestation(self) -> str:
        """What the router's settings call its kind."""
        return "tresor" if self.kind in ("simulated", "amd") else self.kind

    def entry(self, *, port: int | None = None, **settings: Any) -> UpstreamEntry:
        """Return its entry in a router's settings, with a model of its own name and the model `any`."""
        members: dict[str, Any] = {
            "attestation": self.attestation,
            "ca_file": str(self.network.ca_file),
            "connect_timeout_s": 2.0,
            "api_key_env": "OPERATORS_KEY",
        }
        if self.attestation == "tresor":
            members |= {"release_root_file": str(self.network.release_root_file)}
        if self.kind == "simulated":
            members |= {"allow_simulated": True}
        models = {self.name: "upstream-name", "any": "upstream-name"}
        url = f"https://localhost:{port or self.port}/v1"
        members = {name: value for name, value in (members | settings).items() if value is not None}
        return UpstreamEntry(url, self.name, "eu", models, members)

    def behave(self, **behaviour: Any) -> None:
        """Change what it does from now on; what is not named is as it should be."""
        self.network.command(_Behave(self.name, Behaviour(**behaviour)))

    def received(self, by_key: int | None = None) -> bytes:
        """Return every byte that it has received, TLS taken off; of one of its TLS keys, counted from 0, or of all."""
        return self.network.command(_Received(self.name, by_key)).data

    @property
    def connections(self) -> int:
        """How many connections it ever accepted."""
        return self.network.command(_Received(self.name, None)).connections

    def rotate(self, *, drop: bool = True) -> None:
        """Give it another TLS key behind the same port; with `drop`, its open connections end."""
        self.network.issue(self.folder)
        self.network.command(_Rotate(self.name, drop))


class ProviderNetwork:
    """The process, from the test's side; see `provider_network`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca_file)
        self.root = Ed25519PrivateKey.generate()
        self.release_root_file = folder / "release-root.jwk"
        self.release_root_file.write_bytes(encode_public_jwk(TrustKey.of(self.root.public_key())))
        (folder / "release-root.pem").write_bytes(encode_private_key(self.root, None))
        self.collateral = folder / "collateral"
        self._keep_collateral()
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "support.provider_network", str(folder)],
            env={**os.environ, "PYTHONPATH": _with_path(_SUPPORT.parent)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._read()
        roots = {
            "amd": [(folder / "amd-root.pem").read_text()],
            "intel": [INTEL.root.pem],
            "nvidia_device": [_pem(GPU.chain[-1])],
            "nvidia_rim": [_pem(rim_chain()[-1])],
        }
        file = folder / "vendor-roots.json"
        file.write_text(json.dumps({"roots": roots, "ask_timeout_s": ASK_TIMEOUT_S}))
        self.environment = {
            "PYTHONPATH": _with_path(_SUPPORT / "vendor_roots"),
            "TESTS_VENDOR_ROOTS": str(file),
            "OPERATORS_KEY": "operators-secret-7d20",
        }
        """Of programs that are to trust the vendors of this network."""

    def _keep_collateral(self) -> None:
        """Write what Intel says of its platform today where a router keeps what it has fetched."""
        now = datetime.now(UTC)
        issued, ends = now - timedelta(days=1), now + timedelta(days=29)
        times = {"issueDate": f"{issued:%Y-%m-%dT%H:%M:%SZ}", "nextUpdate": f"{ends:%Y-%m-%dT%H:%M:%SZ}"}
        document = INTEL.collateral(
            tcb=tcb_info(INTEL.platform, **times),
            qe=qe_identity(**times),
            root_ca_crl=INTEL.crl(INTEL.root, issued=issued, ends=ends),
            pck_crl=INTEL.crl(INTEL.platform_ca, issued=issued, ends=ends),
        )
        answer = HopAnswer(kind="dstack", document=fake_providers.dstack(), nonce=fake_providers.NONCE)
        cache = CollateralCache(self.collateral)
        for need in hop_needs(answer, Collateral()):
            if need.kind == "application/vnd.tresor.tdx-collateral+json" or "intel.com" in need.url:
                cache.put(need, (document,), now=now)

    @property
    def identity(self) -> dict[str, Any]:
        """The table `[identity]` of a router that attests nothing of its own and asks no vendor."""
        return {"fetch_collateral": False, "collateral_directory": str(self.collateral)}

    def issue(self, folder: Path) -> None:
        """Put a new TLS key and its certificate for localhost into a folder."""
        certificate = self._authority.issue_cert("localhost", "127.0.0.1")
        for number, blob in enumerate(certificate.cert_chain_pems):
            blob.write_to_path(folder / "tls.pem", append=number > 0)
        certificate.private_key_pem.write_to_path(folder / "tls.key")

    def open(self, name: str, kind: Kind, **behaviour: Any) -> Provider:
        """Open an upstream."""
        folder = self.folder / name
        folder.mkdir()
        self.issue(folder)
        port = self.command(_Open(name, kind, str(folder), Behaviour(**behaviour))).port
        return Provider(self, name, kind, folder, port)

    def command(self, command: _Command) -> _Answer:
        """Have the process do something, and wait until it is done."""
        if self._process.stdin is None:
            raise RuntimeError("no pipe")
        with self._lock:
            self._process.stdin.write(msgspec.json.encode(command) + b"\n")
            self._process.stdin.flush()
            return self._read()

    def _read(self) -> _Answer:
        if self._process.stdout is None:
            raise RuntimeError("no pipe")
        line = self._process.stdout.readline()
        if not line:
            raise AssertionError(f"the provider network has ended: {self._process.wait(10)}")
        return msgspec.json.decode(line, type=_Answer)

    def close(self) -> None:
        """End the process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextlib.contextmanager
def provider_network(folder: Path) -> Iterator[ProviderNetwork]:
    """Run a network."""
    network = ProviderNetwork(folder)
    try:
        yield network
    finally:
        network.close()


class Balancer:
    """A balancer on layer 4: passes connections on, TLS untouched, each to the port that `choose` returns."""

    def __init__(self, choose: Callable[[], int]) -> None:
        self._choose = choose
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        self.passed: list[int] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            port = self._choose()
            self.passed.append(port)
            threading.Thread(target=_pass_on, args=(caller, port), daemon=True).start()


def _pass_on(caller: socket.socket, port: int) -> None:
    """Pass bytes both ways until one side ends."""
    with caller, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as backend:
        other = {caller: backend, backend: caller}
        while True:
            for ready in select.select([caller, backend], [], [])[0]:
                data = ready.recv(1 << 16)
                if not data:
                    return
                other[ready].sendall(data)


def _with_path(folder: Path) -> str:
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def _pem(issued: Any) -> str:
    return str(issued.certificate.public_bytes(Encoding.PEM).decode())


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
