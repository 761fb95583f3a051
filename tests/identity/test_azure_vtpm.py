"""The vTPM of an Azure confidential VM, emulated; and the metadata service, a function."""

import hashlib
import http.server
import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import TypeAlias

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.emulated_time import PassingTime
from support.emulated_vtpm import EmulatedVtpm, hcl_report, served
from support.swtpm import prepare, running_swtpm
from tresor.attestation import roots
from tresor.attestation.azure.documents import parse_document
from tresor.attestation.azure.tpm import parse_quote
from tresor.encodings import base64url_encode
from tresor.identity.source import EvidenceSourceError, SourceCode
from tresor.identity.sources.azure_vtpm import AzureVtpmSource
from tresor.identity.sources.metadata import Fetch, fetch_metadata
from tresor.identity.sources.patience import Patience

REPORT_DATA = bytes(range(64))
SNP = hcl_report(2, bytes(range(256)) * 4, b'{"keys":[]}')
TDX = hcl_report(4, bytes(reversed(range(256))) * 4, b'{"keys":[]}')
Open: TypeAlias = Callable[..., AzureVtpmSource]


class Metadata:
    """Answers like the metadata service, and counts."""

    def __init__(self) -> None:
        folder = Path(roots.__file__).parent
        self.certificates = tuple((folder / f"amd_milan_{name}.der").read_bytes() for name in ("asvk", "ask", "ark"))
        vcek, *chain = (
            x509.load_der_x509_certificate(der).public_bytes(Encoding.PEM).decode() for der in self.certificates
        )
        self.answers: dict[str, object] = {
            "/metadata/THIM/amd/certification": {"vcekCert": vcek, "tcbm": "0", "certificateChain": "".join(chain)},
            "/acc/tdquote": {"quote": base64url_encode(b"a TD quote")},
        }
        self.asked: list[tuple[str, bytes | None]] = []
        self.refusals: deque[SourceCode] = deque()

    def __call__(self, path: str, body: bytes | None) -> bytes:
        self.asked.append((path, body))
        if self.refusals:
            raise EvidenceSourceError(self.refusals.popleft(), "refused")
        answer = self.answers[path]
        return answer if isinstance(answer, bytes) else json.dumps(answer).encode()


@pytest.fixture
def metadata() -> Metadata:
    return Metadata()


@pytest.fixture
def open_source(tmp_path: Path, patience: Patience, metadata: Metadata) -> Iterator[Open]:
    with ExitStack() as stack:

        def open_served(vtpm: EmulatedVtpm, fetch: Fetch = metadata) -> AzureVtpmSource:
            path = stack.enter_context(served(vtpm, tmp_path / f"tpm{next(numbers)}"))
            return AzureVtpmSource(path, patience=patience, fetch=fetch)

        numbers = count()
        yield open_served


def code_of(source: AzureVtpmSource) -> tuple[SourceCode, str]:
    with pytest.raises(EvidenceSourceError) as caught:
        source.collect(REPORT_DATA)
    return caught.value.code, str(caught.value)


def test_snp(open_source: Open, metadata: Metadata) -> None:
    vtpm = EmulatedVtpm(SNP)
    evidence = open_source(vtpm).collect(REPORT_DATA)
    assert (evidence.tee, evidence.certificates) == ("azure-sev-snp", metadata.certificates)
    assert (set(evidence.parts), evidence.parts["hcl_report"]) == ({"hcl_report", "tpm_quote"}, SNP)
    quote = json.loads(evidence.parts["tpm_quote"])  # noqa: TID251 - our own
    message = bytes.fromhex(quote["message"])
    vtpm.key.public_key().verify(bytes.fromhex(quote["signature"]), message, padding.PKCS1v15(), hashes.SHA256())
    assert parse_quote(message).extra_data == hashlib.sha384(REPORT_DATA).digest()
    assert [bytes.fromhex(value) for value in quote["pcrs"]] == vtpm.pcrs


def test_tdx(open_source: Open, metadata: Metadata) -> None:
    evidence = open_source(EmulatedVtpm(TDX)).collect(REPORT_DATA)
    assert (evidence.tee, evidence.certificates) == ("azure-tdx", ())
    assert evidence.parts["tdx_quote"] == b"a TD quote"
    assert metadata.asked == [("/acc/tdquote", json.dumps({"report": base64url_encode(TDX[32:1056])}).encode())]


def test_the_verifier_reads_what_is_collected(open_source: Open) -> None:
    parts = open_source(EmulatedVtpm(SNP)).collect(REPORT_DATA).parts
    document = {"version": 1, "hcl_report": base64url_encode(SNP), "tpm_quote": json.loads(parts["tpm_quote"])}  # noqa: TID251
    parsed = parse_document(json.dumps(document).encode())
    assert parsed.hcl_report == SNP
    assert parsed.quote is not None
    assert len(parsed.quote.pcrs) == 24


def test_endorsements_are_fetched_once_per_report(open_source: Open, metadata: Metadata) -> None:
    vtpm = EmulatedVtpm(SNP)
    source = open_source(vtpm)
    for _ in range(3):
        source.collect(REPORT_DATA)
    assert len(metadata.asked) == 1
    vtpm.report = hcl_report(2, bytes(1024), b'{"keys":[]}')
    source.collect(REPORT_DATA)
    assert len(metadata.asked) == 2


def test_pcrs_that_change_while_they_are_quoted(open_source: Open, time: PassingTime) -> None:
    vtpm = EmulatedVtpm(SNP, extend_after_quote=2)
    source = open_source(vtpm)
    pcrs = json.loads(source.collect(REPORT_DATA).parts["tpm_quote"])["pcrs"]  # noqa: TID251
    assert pcrs[10] == vtpm.pcrs[10].hex()
    vtpm.extend_after_quote = 1000
    code, message = code_of(source)
    assert code == SourceCode.BUSY
    assert "change" in message
    assert time.now < 25


def test_a_report_that_is_replaced_while_it_is_read(open_source: Open) -> None:
    torn = SNP[:1024] + hcl_report(2, b"", b'{"keys":{}}')[1024:]
    assert len(torn) == len(SNP)

    class Replacing(EmulatedVtpm):
        quotes = 0

        def _quote(self, body: bytes) -> bytes | int:
            self.report = SNP
            self.quotes += 1
            return super()._quote(body)

    vtpm = Replacing(SNP)
    source = open_source(vtpm)
    vtpm.report = torn
    assert source.collect(REPORT_DATA).parts["hcl_report"] == SNP
    assert vtpm.quotes == 2


def test_a_busy_tpm_is_asked_again(open_source: Open, time: PassingTime) -> None:
    vtpm = EmulatedVtpm(SNP, codes=deque([0x922, 0, 0xB0908]))
    source = open_source(vtpm)
    vtpm.codes = deque([0, 0, 0, 0x922])
    assert source.collect(REPORT_DATA).tee == "azure-sev-snp"
    vtpm.codes = deque([0x922] * 1000)
    assert code_of(source)[0] == SourceCode.BUSY
    assert 15 < time.now < 25


def test_a_tpm_that_is_not_azures(open_source: Open) -> None:
    for report in (None, b"", b"other data", hcl_report(1, b""), SNP[:1240]):
        with pytest.raises(
            EvidenceSourceError, match=r"this is no confidential VM of Azure|no report of Azure's"
        ) as caught:
            open_source(EmulatedVtpm(report))
        assert caught.value.code == SourceCode.UNAVAILABLE


def test_no_tpm(tmp_path: Path) -> None:
    with pytest.raises(EvidenceSourceError, match="has no TPM") as caught:
        AzureVtpmSource(tmp_path / "tpmrm0")
    assert caught.value.code == SourceCode.UNAVAILABLE
    with pytest.raises(EvidenceSourceError, match="TPM's group") as caught:
        AzureVtpmSource(tmp_path)
    assert caught.value.code == SourceCode.UNAVAILABLE


def test_a_quote_of_other_data(open_source: Open) -> None:
    class Replaying(EmulatedVtpm):
        def __call__(self, command: bytes) -> bytes:
            return super().__call__(command.replace(hashlib.sha384(REPORT_DATA).digest(), bytes(48)))

    code, message = code_of(open_source(Replaying(SNP)))
    assert code == SourceCode.FAILED
    assert "quotes other data" in message


def test_metadata_service_that_is_busy(open_source: Open, metadata: Metadata) -> None:
    source = open_source(EmulatedVtpm(SNP))
    metadata.refusals = deque([SourceCode.BUSY] * 3)
    assert source.collect(REPORT_DATA).certificates == metadata.certificates
    assert len(metadata.asked) == 4


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"{}",
        b'{"vcekCert": 1, "certificateChain": ""}',
        b'{"vcekCert": "x", "certificateChain": ""}',
        b"<html>",
    ],
)
def test_certificates_that_cannot_be_read(open_source: Open, metadata: Metadata, answer: bytes) -> None:
    metadata.answers["/metadata/THIM/amd/certification"] = answer
    code, message = code_of(open_source(EmulatedVtpm(SNP)))
    assert code == SourceCode.FAILED
    assert "cannot be read" in message


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"quote": 1}', b'{"quote": "!"}'])
def test_a_td_quote_that_cannot_be_read(open_source: Open, metadata: Metadata, answer: bytes) -> None:
    metadata.answers["/acc/tdquote"] = answer
    assert code_of(open_source(EmulatedVtpm(TDX)))[0] == SourceCode.FAILED


@given(answer=st.binary(max_size=200) | st.text(max_size=200).map(lambda text: json.dumps({"quote": text}).encode()))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_answer_of_the_metadata_service_gives_evidence_or_our_error(open_source: Open, answer: bytes) -> None:
    with suppress(EvidenceSourceError):
        open_source(EmulatedVtpm(TDX), fetch=lambda _path, _body: answer).collect(REPORT_DATA)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_is_64_bytes(open_source: Open, size: int) -> None:
    with pytest.raises(ValueError, match="want 64"):
        open_source(EmulatedVtpm(SNP)).collect(bytes(size))


def test_swtpm(tmp_path: Path, metadata: Metadata) -> None:
    """A TPM that others wrote, prepared as Azure prepares its own."""
    with running_swtpm(tmp_path) as path:
        prepare(path, SNP)
        evidence = AzureVtpmSource(path, fetch=metadata).collect(REPORT_DATA)
    quote = json.loads(evidence.parts["tpm_quote"])  # noqa: TID251 - our own
    parsed = parse_quote(bytes.fromhex(quote["message"]))
    assert parsed.extra_data == hashlib.sha384(REPORT_DATA).digest()
    assert parsed.pcr_digest == hashlib.sha256(b"".join(map(bytes.fromhex, quote["pcrs"]))).digest()


class TestMetadataService:
    """Over HTTP, on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        status = 200
        body = b"answer"

        def do_GET(self) -> None:
            assert self.headers["Metadata"] == "true"
            self.send_response(self.status)
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(self.body + self.rfile.read(int(self.headers["Content-Length"] or 0)))

        do_POST = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    @pytest.fixture
    def port(self) -> Iterator[int]:
        with http.server.HTTPServer(("127.0.0.1", 0), self.Handler) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield server.server_port
            server.shutdown()
            thread.join()

    def test_get_and_post(self, port: int) -> None:
        assert fetch_metadata("/x", None, host="127.0.0.1", port=port) == b"answer"
        assert fetch_metadata("/x", b" to this", host="127.0.0.1", port=port) == b"answer to this"

    @pytest.mark.parametrize(
        ("status", "code"),
        [(302, SourceCode.FAILED), (404, SourceCode.FAILED), (429, SourceCode.BUSY), (503, SourceCode.BUSY)],
    )
    def test_other_statuses(self, port: int, monkeypatch: pytest.MonkeyPatch, status: int, code: SourceCode) -> None:
        monkeypatch.setattr(self.Handler, "status", status)
        with pytest.raises(EvidenceSourceError, match=f"status {status}") as caught:
            fetch_metadata("/x", None, host="127.0.0.1", port=port)
        assert caught.value.code == code

    def test_too_long_an_answer(self, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(self.Handler, "body", bytes(1 << 21))
        with pytest.raises(EvidenceSourceError, match="more than 1048576 bytes"):
            fetch_metadata("/x", None, host="127.0.0.1", port=port)

    def test_nobody_answers(self) -> None:
        with pytest.raises(EvidenceSourceError, match="does not answer") as caught:
            fetch_metadata("/x", None, host="127.0.0.1", port=1)
        assert caught.value.code == SourceCode.BUSY
