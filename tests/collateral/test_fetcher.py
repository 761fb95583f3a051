"""The fetcher against vendors' servers of the tests' own, over real TLS, and every way of not answering."""

import base64
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import msgspec
import pytest

from support.certificates import Tls
from support.fake_intel import INTEL
from support.fake_nvidia import GPU, ocsp, pem, report, rim
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat, Need
from tresor.attestation.registry import needs
from tresor.attestation.tdx.collateral import parse_collateral, pcs_urls
from tresor.collateral.cache import CollateralCache
from tresor.collateral.fetcher import Fetcher, FetchError, FetchLimits

KDS: Final = "https://kdsintf.amd.com"
HOSTS: Final = (
    "kdsintf.amd.com",
    "api.trustedservices.intel.com",
    "certificates.trustedservices.intel.com",
    "rim.attestation.nvidia.com",
    "ocsp.ndis.nvidia.com",
)
VCEK: Final = GPU.leaf.der
LIMITS: Final = FetchLimits(total_s=60.0, max_bytes=100_000, backoff_s=0.25)
HASTY: Final = replace(LIMITS, timeout_s=0.5, exchange_s=1.0)


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    times: int | None = None
    """How often it is given before the good one of the same path; None for ever."""


class Vendors(ThreadingHTTPServer):
    """All vendors at one address; `faults` come before what is good."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.good: dict[str, Answer] = {}
        self.faults: dict[str, Answer] = {}
        self.asked: list[tuple[str, str, bytes]] = []
        self.stop = threading.Event()

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that leave."""


class Handler(BaseHTTPRequestHandler):
    server: Vendors

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(b"")

    def do_POST(self) -> None:
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))

    def answer(self, body: bytes) -> None:
        server = self.server
        server.asked.append((self.command, self.path, body))
        if self.path == "/silent":
            server.stop.wait(20)
            return
        if self.path == "/dripping-head":
            self.drip(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000)
            return
        answer = server.faults.get(self.path)
        if answer is not None and answer.times is not None:
            answer.times -= 1
            if answer.times < 0:
                answer = None
        answer = answer or server.good.get(self.path) or Answer(404)
        length = len(answer.body) if answer.length is None else answer.length
        fields = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        head = f"HTTP/1.1 {answer.status} X\r\n{fields}Content-Length: {length}\r\n\r\n"
        self.wfile.write(head.encode() + answer.body)
        if self.path == "/dripping-body":
            self.drip(b" " * 100_000)
        while self.path == "/endless" and not server.stop.is_set():
            self.wfile.write(bytes(65536))

    def drip(self, data: bytes) -> None:
        for byte in data:
            if self.server.stop.wait(0.02):
                return
            self.wfile.write(bytes((byte,)))


def headers_of(name: str, *issued: Any) -> dict[str, str]:
    return {name: quote("".join(one.pem for one in issued))}


def pcs_answers() -> dict[str, Answer]:
    members = msgspec.json.decode(INTEL.collateral())
    urls = pcs_urls(INTEL.platform.fmspc, "platform")
    signer = (INTEL.tcb_signer, INTEL.root)
    tcb = f'{{"tcbInfo":{members["tcb_info"]},"signature":"{members["tcb_info_signature"]}"}}'
    identity = f'{{"enclaveIdentity":{members["qe_identity"]},"signature":"{members["qe_identity_signature"]}"}}'
    answers = (
        Answer(body=tcb.encode(), headers=headers_of("TCB-Info-Issuer-Chain", *signer)),
        Answer(body=identity.encode(), headers=headers_of("SGX-Enclave-Identity-Issuer-Chain", *signer)),
        Answer(
            body=bytes.fromhex(members["pck_crl"]),
            headers=headers_of("SGX-PCK-CRL-Issuer-Chain", INTEL.platform_ca, INTEL.root),
        ),
        Answer(body=bytes.fromhex(members["root_ca_crl"])),
    )
    return {"/" + url.split("/", 3)[3]: answer for url, answer in zip(urls, answers, strict=True)}


@pytest.fixture(scope="module")
def _vendors(tls: Tls) -> Iterator[Vendors]:
    server = Vendors()
    server.socket = tls.server_context().wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def vendors(_vendors: Vendors) -> Vendors:
    _vendors.good = {"/vcek": Answer(body=VCEK), "/silent": Answer(), **pcs_answers()}
    _vendors.faults = {}
    _vendors.asked = []
    return _vendors


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def fetcher(vendors: Vendors, tls: Tls, waits: list[float]) -> Callable[..., Fetcher]:
    def make(**options: Any) -> Fetcher:
        origin = f"https://localhost:{vendors.server_port}"
        given: dict[str, Any] = {
            "verify": tls.client_context(),
            "mirrors": dict.fromkeys(HOSTS, origin),
            "limits": LIMITS,
            "sleep": waits.append,
        }
        return Fetcher(**(given | options))

    return make


def need(path: str = "/vcek", kind: CollateralKind = CollateralKind.CERTIFICATE, **options: Any) -> Need:
    return Need(kind, KDS + path, **options)


# --- What is good


def test_a_certificate(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    assert fetcher().fetch(need()) == Collateral(certificates=(VCEK,))
    assert vendors.asked == [("GET", "/vcek", b"")]


def test_a_chain_in_pem(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/chain"] = Answer(body=pem(GPU.chain[:3]))
    assert fetcher().fetch(need("/chain")).certificates == tuple(issued.der for issued in GPU.chain[:3])


def test_intels_four_answers_are_one_document(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    (wanted,) = needs(Evidence(EvidenceFormat.TDX_QUOTE, INTEL.quote()), Collateral())
    (document,) = fetcher().fetch(wanted).tdx
    assert parse_collateral(document).tcb_info == parse_collateral(INTEL.collateral()).tcb_info
    assert len(vendors.asked) == 4


def test_a_manifest_in_its_json(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/v1/rim/X"] = Answer(body=json.dumps({"id": "X", "rim": base64.b64encode(rim()).decode()}).encode())
    found = fetcher().fetch(Need(CollateralKind.RIM, "https://rim.attestation.nvidia.com/v1/rim/X"))
    assert found == Collateral(rims=(rim(),))


def test_an_ocsp_question_is_posted(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/"] = Answer(body=ocsp(GPU.chain[1]))
    found = fetcher().fetch(Need(CollateralKind.OCSP, "https://ocsp.ndis.nvidia.com", body=b"question"))
    assert found == Collateral(ocsp_responses=(ocsp(GPU.chain[1]),))
    assert vendors.asked == [("POST", "/", b"question")]


def test_complete_asks_until_nothing_is_needed(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    evidence = Evidence(EvidenceFormat.TDX_QUOTE, INTEL.quote())
    fetched = fetcher().complete(lambda held: needs(evidence, held), Collateral())
    assert not fetched.failures
    assert len(fetched.collateral.tdx) == 1
    assert needs(evidence, fetched.collateral) == ()


def test_complete_says_what_could_not_be_had(fetcher: Callable[..., Fetcher]) -> None:
    evidence = Evidence(EvidenceFormat.NVIDIA_GPU_REPORT, report())
    fetched = fetcher().complete(lambda held: (need("/none"), *needs(evidence, held)), Collateral())
    assert fetched.failures == {need("/none"): f"{KDS}/none answered 404"}


def test_complete_never_asks_twice_and_not_for_ever(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    count = iter(range(10_000))
    fetched = fetcher().complete(lambda _held: [need(f"/none{next(count)}") for _ in range(100)], Collateral())
    assert len(vendors.asked) <= 256
    assert any("not asked for" in reason for reason in fetched.failures.values())


def test_total_time_ends_the_questions(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    fetched = fetcher(limits=replace(LIMITS, total_s=0.0)).complete(lambda _held: [need()], Collateral())
    assert vendors.asked == []
    assert "not asked for after 0 seconds" in fetched.failures[need()]


# --- The cache


def test_the_cache_answers_first(fetcher: Callable[..., Fetcher], vendors: Vendors, tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path)
    for _ in range(2):
        assert fetcher(cache=cache).fetch(need()).certificates == (VCEK,)
    assert len(vendors.asked) == 1
    assert fetcher(cache=cache, online=False).fetch(need()).certificates == (VCEK,)


def test_offline_asks_nobody(fetcher: Callable[..., Fetcher], vendors: Vendors, tmp_path: Path) -> None:
    for options in ({}, {"cache": CollateralCache(tmp_path)}):
        with pytest.raises(FetchError, match="the network is not asked"):
            fetcher(online=False, **options).fetch(need())
    assert vendors.asked == []


def test_what_is_refused_is_not_kept(fetcher: Callable[..., Fetcher], vendors: Vendors, tmp_path: Path) -> None:
    cache = CollateralCache(tmp_path)
    vendors.faults["/vcek"] = Answer(body=b"<html>maintenance</html>", times=1)
    with pytest.raises(FetchError, match="answered with nothing known"):
        fetcher(cache=cache).fetch(need())
    assert list(tmp_path.iterdir()) == []
    assert fetcher(cache=cache).fetch(need()).certificates == (VCEK,)


# --- Servers that are busy or broken


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_busy_server_is_asked_again(
    status: int, fetcher: Callable[..., Fetcher], vendors: Vendors, waits: list[float]
) -> None:
    vendors.faults["/vcek"] = Answer(status, times=2)
    assert fetcher().fetch(need()).certificates == (VCEK,)
    assert waits == [0.25, 0.5]


@pytest.mark.parametrize(
    ("asked", "waited"),
    [("3", 3.0), ("100000", 10.0), ("soon", 0.25), ("-1", 0.25), ("", 0.25)],
)
def test_retry_after_is_heard_up_to_a_limit(
    asked: str, waited: float, fetcher: Callable[..., Fetcher], vendors: Vendors, waits: list[float]
) -> None:
    vendors.faults["/vcek"] = Answer(429, headers={"Retry-After": asked}, times=1)
    fetcher().fetch(need())
    assert waits == [waited]


def test_a_server_that_stays_busy_is_left(
    fetcher: Callable[..., Fetcher], vendors: Vendors, waits: list[float]
) -> None:
    vendors.faults["/vcek"] = Answer(429)
    with pytest.raises(FetchError, match="answered 429"):
        fetcher().fetch(need())
    assert (len(vendors.asked), len(waits)) == (3, 2)


@pytest.mark.parametrize("status", [204, 206, 400, 401, 403, 404, 410])
def test_a_server_that_refuses_is_not_asked_again(
    status: int, fetcher: Callable[..., Fetcher], vendors: Vendors
) -> None:
    vendors.faults["/vcek"] = Answer(status, body=VCEK if status != 204 else b"")
    with pytest.raises(FetchError, match=f"answered {status}"):
        fetcher().fetch(need())
    assert len(vendors.asked) == 1


@pytest.mark.parametrize("path", ["/silent", "/dripping-head", "/dripping-body"])
def test_a_slow_server_is_not_waited_for(path: str, fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/dripping-body"] = Answer(length=100_000)
    begun = time.monotonic()
    with pytest.raises(FetchError):
        fetcher(limits=HASTY).fetch(need(path))
    assert time.monotonic() - begun < 20


def test_an_endless_body_is_cut(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/endless"] = Answer(length=1 << 40)
    with pytest.raises(FetchError, match="more than 100000 bytes"):
        fetcher().fetch(need("/endless"))


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_compressed_answer_is_refused(coding: str, fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    bomb = gzip.compress(bytes(1 << 24))
    vendors.good["/bomb"] = Answer(body=bomb, headers={"Content-Encoding": coding})
    with pytest.raises(FetchError, match="in the coding"):
        fetcher().fetch(need("/bomb"))


def test_a_bomb_without_its_header_is_refused(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/bomb"] = Answer(body=gzip.compress(bytes(1 << 24)))
    with pytest.raises(FetchError, match="more than 8388608 bytes"):
        fetcher().fetch(need("/bomb"))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "nothing known"),
        (b"<html></html>", "nothing known"),
        (rim(), "answered with application/rim"),
        (VCEK + pem(GPU.chain[:1])[:100], "nothing|PEM|certificate"),
        (b"{", "JSON"),
    ],
)
def test_another_content_is_refused(body: bytes, words: str, fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/page"] = Answer(body=body)
    if body.startswith(VCEK):  # bytes behind a certificate are for its parser to refuse
        assert fetcher().fetch(need("/page")).certificates == (body,)
        return
    with pytest.raises(FetchError, match=words):
        fetcher().fetch(need("/page"))


@pytest.mark.parametrize("part", range(4))
def test_intels_answers_must_be_complete(part: int, fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    url, *also = pcs_urls(INTEL.platform.fmspc, "platform")
    path = "/" + (url, *also)[part].split("/", 3)[3]
    vendors.faults[path] = Answer(body=b"{}")
    with pytest.raises(FetchError):
        fetcher().fetch(Need(CollateralKind.TDX, url, also=tuple(also)))


def test_intels_answers_without_their_chain(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    url, *also = pcs_urls(INTEL.platform.fmspc, "platform")
    path = "/" + url.split("/", 3)[3]
    vendors.faults[path] = Answer(body=vendors.good[path].body)
    with pytest.raises(FetchError, match="headers tcb-info-issuer-chain"):
        fetcher().fetch(Need(CollateralKind.TDX, url, also=tuple(also)))


# --- Redirects and addresses


def test_a_redirect_on_the_same_host_is_followed(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/moved"] = Answer(302, headers={"Location": "/vcek"})
    assert fetcher().fetch(need("/moved")).certificates == (VCEK,)


@pytest.mark.parametrize(
    "location",
    ["https://127.0.0.1:{port}/vcek", "http://localhost:{port}/vcek", "//127.0.0.1:{port}/vcek", "file:///etc/passwd"],
)
def test_a_redirect_elsewhere_is_not(location: str, fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/moved"] = Answer(302, headers={"Location": location.format(port=vendors.server_port)})
    with pytest.raises(FetchError, match="another host"):
        fetcher().fetch(need("/moved"))
    assert len(vendors.asked) == 1


def test_a_circle_of_redirects_ends(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    vendors.good["/moved"] = Answer(302, headers={"Location": "/moved"})
    with pytest.raises(FetchError, match="more than 3 times"):
        fetcher().fetch(need("/moved"))
    assert len(vendors.asked) == 4


@pytest.mark.parametrize(
    ("kind", "url"),
    [
        (CollateralKind.CERTIFICATE, "http://kdsintf.amd.com/vcek"),
        (CollateralKind.OCSP, "http://ocsp.example/"),
        (CollateralKind.RIM, "http://ocsp.ndis.nvidia.com/"),
        (CollateralKind.CERTIFICATE, "file:///etc/passwd"),
        (CollateralKind.CERTIFICATE, "https:///vcek"),
        (CollateralKind.CERTIFICATE, "vcek"),
        (CollateralKind.CERTIFICATE, "https://[::1"),
    ],
)
def test_addresses_that_are_not_asked(
    kind: CollateralKind, url: str, fetcher: Callable[..., Fetcher], vendors: Vendors
) -> None:
    with pytest.raises(FetchError):
        fetcher().fetch(Need(kind, url))
    assert vendors.asked == []


def test_a_server_that_nobody_vouches_for(fetcher: Callable[..., Fetcher], vendors: Vendors) -> None:
    with pytest.raises(FetchError, match="ConnectError"):
        fetcher(verify=None).fetch(need())
    mirror = f"https://127.0.0.2:{vendors.server_port}"
    with pytest.raises(FetchError):
        fetcher(mirrors=dict.fromkeys(HOSTS, mirror)).fetch(need())
    assert vendors.asked == []


def test_nobody_listens(fetcher: Callable[..., Fetcher]) -> None:
    with pytest.raises(FetchError):
        fetcher(mirrors=dict.fromkeys(HOSTS, "https://localhost:9")).fetch(need())


def test_no_proxy_stands_before_this_machine(fetcher: Callable[..., Fetcher], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    assert fetcher().fetch(need()).certificates == (VCEK,)


def test_many_at_a_time(fetcher: Callable[..., Fetcher], vendors: Vendors, tmp_path: Path) -> None:
    one = fetcher(cache=CollateralCache(tmp_path))
    found: list[Collateral] = []
    threads = [threading.Thread(target=lambda: found.append(one.fetch(need()))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [Collateral(certificates=(VCEK,))] * 8
