"""`tresor-verify attest` against a TLS server of the tests': what it prints, each refusal's code, and exit codes."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from support.ceremony import Ceremony, amd_ceremony, fingerprint, simulated_ceremony, spki_of
from support.certificates import Tls, make_tls
from tresor.attestation import node
from tresor.attestation.envelope import MAX_ENVELOPE_BYTES
from tresor.cli.verify import main
from tresor.encodings import rfc3339
from tresor.limits import MAX_TOKEN_BYTES
from tresor.trust.release_root import encode_public_jwk

KEY, OTHER_KEY = (ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(2))
BUNDLE = "/.well-known/tresor-trust-bundle"


@dataclass
class Node:
    """A node under the tests' control; `members` change what it says of itself.

    Attributes:
        answer: nonce to the body of `GET /attestation`; None for an honest one.
        status: of that answer.
        bundle: what it serves as trust bundle; None for 404.
    """

    ceremony: Ceremony
    tls: Tls
    members: dict[str, Any] = field(default_factory=dict)
    answer: Callable[[bytes], bytes] | None = None
    status: int = 200
    bundle: str | None = None
    port: int = 0
    nonces: list[bytes] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"

    @property
    def spki(self) -> bytes:
        return spki_of(self.tls.certificate_file)

    def honest(self, nonce: bytes, **changes: Any) -> bytes:
        members = {"trust_bundle_url": f"{self.url}{BUNDLE}", "nonce": nonce} | self.members | changes
        return self.ceremony.envelope(self.spki, KEY, **members)

    def get(self, target: str) -> tuple[int, bytes]:
        parts = urlsplit(target)
        if parts.path == "/attestation":
            nonce = bytes.fromhex(parse_qs(parts.query)["nonce"][0])
            self.nonces.append(nonce)
            return self.status, (self.answer or self.honest)(nonce)
        if parts.path == BUNDLE and self.bundle is not None:
            return 200, self.bundle.encode()
        return 404, b""


@contextlib.contextmanager
def serving(node: Node, tls: Tls) -> Iterator[Node]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = node.get(self.path)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with contextlib.suppress(OSError):  # the verifier has read enough
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    server.socket = tls.server_context().wrap_socket(server.socket, server_side=True)
    node.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield node
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def simulated(tmp_path: Path, tls: Tls) -> Iterator[Node]:
    ceremony = simulated_ceremony(tmp_path)
    with serving(Node(ceremony, tls, bundle=ceremony.bundle()), tls) as node:
        yield node


@dataclass(frozen=True)
class Verdict:
    exit_code: int
    report: dict[str, Any]

    @property
    def failed(self) -> list[str]:
        return [check["code"] for check in self.report["checks"] if check["status"] != "ok"]


def arguments(node: Node, *more: str | Path, tls: Tls | None = None) -> list[str]:
    line = ["attest", f"--url={node.url}", f"--release-root={node.ceremony.root_file}", "--offline"]
    return [*line, f"--ca-file={(tls or node.tls).ca_file}", *map(str, more)]


@pytest.fixture
def attest(capsys: pytest.CaptureFixture[str]) -> Callable[..., Verdict]:
    def run(node: Node, *more: str | Path, simulated: bool = True, tls: Tls | None = None) -> Verdict:
        opt_in = ["--allow-simulated"] if simulated else []
        code = main([*arguments(node, *more, tls=tls), *opt_in, "--json"])
        out, err = capsys.readouterr()
        assert err == ""
        return Verdict(code, msgspec.json.decode(out))

    return run


Attest = Callable[..., Verdict]


# Good.


def test_a_simulated_node(simulated: Node, attest: Attest) -> None:
    verdict = attest(simulated)
    assert (verdict.exit_code, verdict.failed) == (0, [])
    report = verdict.report
    assert (report["result"], report["code"], report["simulated"]) == ("pass", None, True)
    assert report["tls_spki_sha256"] == simulated.spki.hex()
    assert report["workload_identity_tag"] == simulated.ceremony.tag.hex()
    assert report["trust_bundle"]["version"] == 1
    assert {claim["status"] for claim in report["claims"].values()} == {"unknown"}
    assert "rollback" in report["not_checked"]


def test_a_node_of_hardware(
    tmp_path: Path, tls: Tls, attest: Attest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ceremony, host = amd_ceremony(tmp_path)
    monkeypatch.setitem(node._PINNED, "amd", frozenset({fingerprint(host.amd.ark)}))
    with serving(Node(ceremony, tls, bundle=ceremony.bundle()), tls) as served:
        verdict = attest(served, simulated=False)
        assert (verdict.exit_code, verdict.report["simulated"]) == (0, False)
        assert verdict.report["claims"]["workload"]["status"] == "proven"
        host.fields["policy"] = 0xB0000
        debugged = attest(served, simulated=False)
        assert (debugged.exit_code, debugged.failed) == (1, ["debug_enabled"])
        host.fields.clear()
        served.members = {"vcek_chain_pem": ...}
        assert attest(served, simulated=False).exit_code == 3
        served.members = {}
        assert main(arguments(served)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PASS"
    assert f"SNP MEASUREMENT:       {'ab' * 48}" in lines


def test_what_people_read(simulated: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(simulated, "--allow-simulated")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PASS  SIMULATED"
    assert lines[1] == f"TLS SPKI SHA-256:      {simulated.spki.hex()}"
    assert lines[2].startswith("SNP MEASUREMENT:       53494d554c415445")
    assert lines[3] == f"Workload identity tag: {simulated.ceremony.tag.hex()}"
    assert lines[4].startswith("Trust bundle version:  1 (valid until ")
    assert "TEE:                   SIMULATED, no hardware stands behind it" in lines
    assert "Not checked:" in lines


def test_every_run_has_a_challenge_of_its_own(simulated: Node, attest: Attest) -> None:
    for _ in range(3):
        assert attest(simulated).exit_code == 0
    assert len(set(simulated.nonces)) == 3
    assert {len(nonce) for nonce in simulated.nonces} == {32}


# Refused: exit 1, each with its own code.


def test_without_opting_in(simulated: Node, attest: Attest) -> None:
    verdict = attest(simulated, simulated=False)
    assert (verdict.exit_code, verdict.failed) == (1, ["simulated_not_allowed"])


def test_a_proxy_in_between(simulated: Node, attest: Attest, tmp_path: Path) -> None:
    """It passes everything on, and ends TLS with a key of its own that the same authority certified."""
    folder = tmp_path / "proxy"
    folder.mkdir()
    proxy_tls = make_tls(folder)
    proxy = Node(simulated.ceremony, simulated.tls, members=simulated.members, bundle=simulated.bundle)
    with serving(proxy, proxy_tls):
        verdict = attest(proxy, tls=proxy_tls)
    assert (verdict.exit_code, verdict.failed) == (1, ["spki_mismatch"])


def test_envelopes_that_were_recorded(simulated: Node, attest: Attest) -> None:
    without = msgspec.json.decode(simulated.honest(b""))
    simulated.answer = lambda nonce: msgspec.json.encode({**without, "nonce": nonce.hex()})
    assert attest(simulated).failed == ["envelope_replayed"]
    simulated.answer = lambda _: msgspec.json.encode(without)
    assert attest(simulated).failed == ["nonce_mismatch"]
    recorded = simulated.honest(b"\7" * 32)
    simulated.answer = lambda _: recorded
    assert attest(simulated).failed == ["nonce_mismatch"]
    other = msgspec.json.decode(recorded)
    simulated.answer = lambda nonce: msgspec.json.encode({**other, "nonce": nonce.hex()})
    assert attest(simulated).failed == ["key_not_bound"]


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"age": timedelta(minutes=20)}, "issued_at_stale"),
        ({"age": timedelta(minutes=-5)}, "issued_at_in_future"),
        ({"signed": {"receipt_key": OTHER_KEY}}, "key_not_bound"),
        ({"signed": {"spki_sha256": bytes(32)}}, "channel_not_bound"),
        ({"signed": {"tag": bytes(32)}}, "channel_not_bound"),
        ({"tls_spki_sha256": "00" * 32, "signed": {"spki_sha256": bytes(32)}}, "spki_mismatch"),
        ({"workload": "inference"}, "workload_mismatch"),
        ({"tee": "sev-snp"}, "signer_not_allowed"),
        ({"tee": "tdx"}, "evidence_malformed"),
        ({"snp_report_b64": "AAAA"}, "evidence_malformed"),
        ({"schema": "tresor.attestation/v2"}, "evidence_malformed"),
        ({"issued_at": datetime(1970, 1, 1, tzinfo=UTC)}, "issued_at_stale"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_node_says_wrongly(simulated: Node, attest: Attest, members: dict[str, Any], code: str) -> None:
    simulated.members = members
    verdict = attest(simulated)
    assert verdict.exit_code == 1
    assert verdict.report["code"] == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"allowed_hw_measurements": ["00" * 48]}, "measurement_not_allowed"),
        ({"allowed_hw_measurements": []}, "measurements_empty"),
        ({"allowed_workload_identity_tags": [f"sha256:{'0' * 64}"]}, "tag_not_allowed"),
        ({"workload": "inference"}, "bundle_workload_mismatch"),
        ({"valid_until": rfc3339((datetime.now(UTC) - timedelta(seconds=1)).timestamp())}, "bundle_expired"),
        ({"issued_at": rfc3339((datetime.now(UTC) + timedelta(days=1)).timestamp())}, "bundle_not_yet_valid"),
        ({"root": Ed25519PrivateKey.generate()}, "bundle_signature_invalid"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bundles_that_do_not_allow_it(simulated: Node, attest: Attest, change: dict[str, Any], code: str) -> None:
    simulated.bundle = simulated.ceremony.bundle(**change)
    verdict = attest(simulated)
    assert (verdict.exit_code, verdict.failed) == (1, [code])


def test_another_root(simulated: Node, attest: Attest, tmp_path: Path) -> None:
    other = Ceremony(tmp_path, "router", simulated.ceremony.report, simulated.ceremony.bundle_members)
    file = tmp_path / "other.jwk"
    file.write_bytes(encode_public_jwk(other.trust_key))
    verdict = attest(simulated, f"--release-root={file}")
    assert (verdict.exit_code, verdict.failed) == (1, ["bundle_signature_invalid"])


def test_bundles_never_go_back(simulated: Node, attest: Attest, tmp_path: Path) -> None:
    state = tmp_path / "state.json"
    ceremony = simulated.ceremony
    first, second = (ceremony.bundle(version=version) for version in (1, 2))
    twin = ceremony.bundle(version=2, allowed_workload_identity_tags=[f"sha256:{ceremony.tag.hex()}"] * 2)
    for bundle, failed in (
        (first, []),
        (first, []),
        (second, []),
        (first, ["bundle_rolled_back"]),
        (twin, ["bundle_replaced"]),
        (second, []),
    ):
        simulated.bundle = bundle
        verdict = attest(simulated, f"--state={state}")
        assert (verdict.failed, verdict.exit_code) == (failed, 1 if failed else 0)
        assert "rollback" not in verdict.report["not_checked"]
    simulated.bundle = second
    assert attest(simulated, "--min-bundle-version=3").failed == ["bundle_rolled_back"]
    assert attest(simulated, "--min-bundle-version=2").failed == []


def test_a_bundle_counts_once_it_was_seen_whatever_the_node_is(simulated: Node, attest: Attest, tmp_path: Path) -> None:
    """Else whoever is refused under the new bundle asks again under the old one."""
    state = tmp_path / "state.json"
    ceremony = simulated.ceremony
    simulated.bundle = ceremony.bundle(version=2, allowed_hw_measurements=["00" * 48])
    assert attest(simulated, f"--state={state}").failed == ["measurement_not_allowed"]
    simulated.bundle = ceremony.bundle(version=1)
    assert attest(simulated, f"--state={state}").failed == ["bundle_rolled_back"]


def test_a_bundle_from_a_file(simulated: Node, attest: Attest) -> None:
    simulated.bundle = None
    assert attest(simulated, f"--trust-bundle={simulated.ceremony.bundle_file}").exit_code == 0


# Undecided: exit 3.


def test_nothing_there(simulated: Node, attest: Attest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    simulated.port = port
    verdict = attest(simulated)
    assert (verdict.exit_code, verdict.failed) == (3, ["evidence_missing"])


@pytest.mark.parametrize("status", [404, 429, 500, 503, 302])
def test_a_node_that_gives_no_evidence(simulated: Node, attest: Attest, status: int) -> None:
    simulated.status = status
    verdict = attest(simulated)
    assert (verdict.exit_code, verdict.report["result"], verdict.failed) == (3, "undecided", ["evidence_missing"])


def test_a_server_that_the_authority_does_not_know(simulated: Node, attest: Attest, tmp_path: Path) -> None:
    assert attest(simulated, tls=make_tls(tmp_path)).exit_code == 3


@pytest.mark.parametrize("url", [..., "http://example.org/bundle", "file:///etc/passwd", "not a url", "https://"])
def test_no_bundle(simulated: Node, attest: Attest, url: object) -> None:
    simulated.members = {"trust_bundle_url": url}
    verdict = attest(simulated)
    assert (verdict.exit_code, verdict.failed) == (3, ["collateral_missing"])
    simulated.members, simulated.bundle = {}, None
    assert attest(simulated).failed == ["collateral_missing"]


def test_evidence_without_its_certificates(simulated: Node, attest: Attest) -> None:
    simulated.members = {"vcek_chain_pem": ...}
    verdict = attest(simulated)
    assert (verdict.exit_code, verdict.failed) == (3, ["endorsement_missing"])


# Hostile bytes, wrong usage.


@pytest.mark.parametrize("body", [b"", b"{}", b"[" * 100_000, b"\xff", b"null", b" " * (MAX_ENVELOPE_BYTES + 1)])
def test_bytes_that_are_no_envelope(simulated: Node, attest: Attest, body: bytes) -> None:
    simulated.answer = lambda _: body
    verdict = attest(simulated)
    assert verdict.exit_code == 1
    assert verdict.failed[0] in ("evidence_malformed", "evidence_too_large")


@pytest.mark.parametrize("bundle", ["", "a.b.c", "x" * (MAX_TOKEN_BYTES + 1)], ids=len)
def test_bytes_that_are_no_bundle(simulated: Node, attest: Attest, bundle: str) -> None:
    simulated.bundle = bundle
    assert attest(simulated).exit_code == 1


def test_nothing_that_a_node_says_steers_the_terminal(simulated: Node, capsys: pytest.CaptureFixture[str]) -> None:
    members = msgspec.json.decode(simulated.honest(b"\7" * 32))
    members["receipt_key"]["kid"] = "\x1b[2J\nPASS\u202e"
    simulated.answer = lambda _: msgspec.json.encode(members)
    assert main(arguments(simulated, "--allow-simulated")) == 1
    out = capsys.readouterr().out
    assert set(out) <= {*map(chr, range(ord(" "), ord("~") + 1)), "\n"}
    assert not any(line.startswith("PASS") for line in out.splitlines())


@pytest.mark.parametrize(
    "wrong",
    [
        ["--min-bundle-version=-1"],
        ["--min-bundle-version=1.5"],
        ["--min-bundle-version=9999999999999999"],
        ["--allow-sim"],
        ["extra"],
    ],
)
def test_wrong_usage(simulated: Node, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(simulated, *wrong))
    assert ended.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "wrong",
    [
        ["--release-root=/nothing"],
        ["--ca-file=/nothing"],
        ["--trust-bundle=/nothing"],
        ["--state=/nothing/there"],
        ["--url=http://example.org"],
        ["--url=ftp://localhost"],
    ],
)
def test_input_that_cannot_be_used(simulated: Node, wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(simulated, "--allow-simulated", *wrong)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("tresor-verify: ")


@pytest.mark.parametrize("text", ["[]", "{", '{"a":1}', '{"a":{"version":1,"other":2}}', "\xff"])
def test_a_memory_that_somebody_else_wrote(
    simulated: Node, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state.json"
    state.write_text(text, encoding="latin-1")
    assert main(arguments(simulated, "--allow-simulated", f"--state={state}")) == 2
    assert "is not what --state wrote" in capsys.readouterr().err
    assert state.read_text(encoding="latin-1") == text


def test_plain_http_binds_nothing(simulated: Node, attest: Attest) -> None:
    class Plain(Tls):
        def server_context(self) -> ssl.SSLContext:
            class Through:
                def wrap_socket(self, sock: socket.socket, **_: object) -> socket.socket:
                    return sock

            return Through()  # type: ignore[return-value]  # a context that leaves the socket as it is

    plain = Node(simulated.ceremony, simulated.tls, bundle=simulated.bundle)
    with serving(plain, Plain(simulated.tls.ca_file, simulated.tls.certificate_file, simulated.tls.key_file)):
        plain.members = {"trust_bundle_url": f"http://localhost:{plain.port}{BUNDLE}"}
        verdict = attest(plain, f"--url=http://localhost:{plain.port}")
    assert (verdict.exit_code, verdict.failed) == (1, ["spki_mismatch"])
