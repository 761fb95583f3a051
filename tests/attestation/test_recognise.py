"""What files hold, by their content: every sample, every encoding, and anything else."""

import base64
import contextlib
import gzip
import zlib
from collections.abc import Callable
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.evidence import sample
from support.fake_amd import make_report
from support.fake_intel import INTEL
from support.fake_nvidia import GPU, eat, jwks, ocsp, report, rim
from support.fake_providers import chutes, dstack, tinfoil
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.evidence import CollateralKind, EvidenceFormat
from tresor.attestation.recognise import MAX_FILE_BYTES, DocumentKind, Kind, decode_binary, recognise
from tresor.errors import EncodingError

SAMPLES: Final[dict[str, tuple[Kind, ...]]] = {
    "azure/snp-genoa/evidence.json": (EvidenceFormat.AZURE_VTPM,),
    "azure/snp-milan-userdata/evidence.json": (EvidenceFormat.AZURE_VTPM,),
    "azure/snp-wrong-chip/certs.pem": (CollateralKind.CERTIFICATE,) * 3,
    "azure/snp-wrong-chip/hcl-report-snp.bin": (EvidenceFormat.AZURE_VTPM,),
    "azure/tdx-2023/evidence.json": (EvidenceFormat.AZURE_VTPM,),
    "bundles/dstack-tdx-8gpu-address-20260610/attestation.json": (DocumentKind.DSTACK,),
    "bundles/dstack-tdx-8gpu-tls-20260629/attestation.json": (DocumentKind.DSTACK,),
    "bundles/nonce-not-ours-a/attestation.json": (DocumentKind.DSTACK,),
    "bundles/nonce-not-ours-a/client_nonce.txt": (DocumentKind.NONCE,),
    "bundles/nonce-not-ours-a/collateral.json": (CollateralKind.TDX,),
    "bundles/tdx-8gpu-mlkem-20260629/e2e_pubkeys.json": (DocumentKind.CHUTES_KEYS,),
    "bundles/tdx-8gpu-mlkem-20260629/evidence.json": (DocumentKind.CHUTES,),
    "bundles/tdx-8gpu-mlkem-20260629/nras_eat_negative.json": (EvidenceFormat.NVIDIA_NRAS,),
    "bundles/tdx-8gpu-mlkem-20260629/nras_jwks.json": (CollateralKind.JWKS,),
    "bundles/tinfoil-snp-20260629/attestation.json": (DocumentKind.TINFOIL,),
    "bundles/tinfoil-snp-20260629/genoa_cert_chain.pem": (CollateralKind.CERTIFICATE,) * 2,
    "bundles/tinfoil-snp-20260629/sigstore_attestations_router.json": (DocumentKind.NOT_USED,),
    "bundles/tinfoil-snp-20260629/vcek.der": (CollateralKind.CERTIFICATE,),
    "bundles/tinfoil-tdx-gpu-20260629/github_release.json": (DocumentKind.NOT_USED,),
    "nitro/enclave-debug/attestation.cbor": (EvidenceFormat.NITRO,),
    "nitro/enclave-good/attestation.cbor": (EvidenceFormat.NITRO,),
    "nitro/self-signed/attestation.cbor": (EvidenceFormat.NITRO,),
    "nvidia/blackwell-gb100/certchain.pem": (CollateralKind.CERTIFICATE,) * 5,
    "nvidia/blackwell-gb100/report.bin": (EvidenceFormat.NVIDIA_GPU_REPORT,),
    "nvidia/h100-full-local/driver_rim.xml": (CollateralKind.RIM,),
    "nvidia/h100-full-local/ocsp_gpu_cert_l2.der": (CollateralKind.OCSP,),
    "nvidia/h100-full-local/report.bin": (EvidenceFormat.NVIDIA_GPU_REPORT,),
    "nvidia/h100-multi-json/evidence.json": (EvidenceFormat.NVIDIA_GPU_LIST,),
    "roots/amd/genoa_ark.der": (CollateralKind.CERTIFICATE,),
    "roots/amd/genoa_crl.pem": (CollateralKind.CRL,),
    "roots/others/azure_tpm_root_2023.pem": (CollateralKind.CERTIFICATE,),
    "snp/milan-v2-vcek/report.bin": (EvidenceFormat.SNP_REPORT,),
    "snp/turin-v5-vcek/report.bin": (EvidenceFormat.SNP_REPORT,),
    "snp/turin-v5-vcek/vcek.pem": (CollateralKind.CERTIFICATE,),
    "tdx/pcs-raw-20260629/headers.json": (DocumentKind.INTEL_HEADERS,),
    "tdx/pcs-raw-20260629/pckcrl.der": (CollateralKind.CRL,),
    "tdx/pcs-raw-20260629/qe_identity.json": (DocumentKind.INTEL_QE_IDENTITY,),
    "tdx/pcs-raw-20260629/rootca.crl.der": (CollateralKind.CRL,),
    "tdx/pcs-raw-20260629/tcb.json": (DocumentKind.INTEL_TCB_INFO,),
    "tdx/sgx-v3-not-a-td/quote.bin": (EvidenceFormat.TDX_QUOTE,),
    "tdx/v4-gce-with-event-log/ccel_data.dat": (DocumentKind.EVENT_LOG,),
    "tdx/v4-gce-with-event-log/ccel_table.dat": (DocumentKind.NOT_USED,),
    "tdx/v4-gce-with-event-log/quote.bin": (EvidenceFormat.TDX_QUOTE,),
    "tdx/v5-uptodate/quote.bin": (EvidenceFormat.TDX_QUOTE,),
}

QUOTE: Final = INTEL.quote()
SNP: Final = make_report()
BINARY: Final[dict[Kind, bytes]] = {
    EvidenceFormat.SNP_REPORT: SNP,
    EvidenceFormat.TDX_QUOTE: QUOTE,
    EvidenceFormat.NVIDIA_GPU_REPORT: report(),
    EvidenceFormat.SIMULATED: make_report(family_id=b"SIMULATED-NOT-A-", image_id=b"SIMULATED-NOT-A-"),
    CollateralKind.CERTIFICATE: GPU.leaf.der,
    CollateralKind.OCSP: ocsp(GPU.chain[1]),
}


def kinds(data: bytes) -> tuple[Kind, ...]:
    return tuple(item.kind for item in recognise(data))


@pytest.mark.parametrize("name", SAMPLES)
def test_samples(name: str) -> None:
    folder, _, file = name.rpartition("/")
    assert kinds((sample(folder) / file).read_bytes()) == SAMPLES[name]


ENCODINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "raw": bytes,
    "zero-padded": lambda data: data + bytes(512),
    "hex": lambda data: data.hex().encode(),
    "hex-upper-0x": lambda data: b"0x" + data.hex().upper().encode() + b"\n",
    "base64": base64.b64encode,
    "base64-lines": base64.encodebytes,
    "base64url-unpadded": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
    "gzip": gzip.compress,
    "base64-of-gzip": lambda data: base64.b64encode(gzip.compress(data)),
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", BINARY)
def test_encodings(kind: Kind, encoding: str) -> None:
    items = recognise(ENCODINGS[encoding](BINARY[kind]))
    assert [item.kind for item in items] == [kind]
    assert items[0].data.startswith(BINARY[kind])


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (tinfoil(), DocumentKind.TINFOIL),
        (dstack(), DocumentKind.DSTACK),
        (b'{"gateway_attestation": {}}', DocumentKind.DSTACK),
        (chutes(), DocumentKind.CHUTES),
        (eat(), EvidenceFormat.NVIDIA_NRAS),
        (jwks(), CollateralKind.JWKS),
        (rim(), CollateralKind.RIM),
        (b'{"rim": "%s"}' % base64.b64encode(rim()), CollateralKind.RIM),
        (INTEL.collateral(), CollateralKind.TDX),
        (b'{"evidence_list": []}', EvidenceFormat.NVIDIA_GPU_LIST),
        (b'{"evidences": []}', EvidenceFormat.NVIDIA_GPU_LIST),
        (b'[{"imr": 0, "digest": ""}]', DocumentKind.EVENT_LOG),
        (b" \n" + tinfoil(), DocumentKind.TINFOIL),
        (b"ab" * 32 + b"\r\n", DocumentKind.NONCE),
        (SNP[:1183], EvidenceFormat.SNP_REPORT),
        (SNP + b"\0", EvidenceFormat.SNP_REPORT),
        (QUOTE[:600], EvidenceFormat.TDX_QUOTE),
        (b"\x09" + QUOTE[1:], EvidenceFormat.TDX_QUOTE),
    ],
    ids=range(18),
)
def test_documents(data: bytes, kind: Kind) -> None:
    assert kinds(data) == (kind,)


def test_answer_of_the_dstack_socket() -> None:
    quote, log = recognise(b'{"quote":"%s","event_log":"[]","report_data":"","vm_config":"{}"}' % QUOTE.hex().encode())
    assert (quote.kind, quote.data) == (EvidenceFormat.TDX_QUOTE, QUOTE)
    assert (log.kind, log.data) == (DocumentKind.EVENT_LOG, b"[]")


def test_certificates_and_lists_in_one_file() -> None:
    crl = bytes.fromhex(INTEL.crl(INTEL.root))
    pem = b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(crl) + b"-----END X509 CRL-----\n"
    items = recognise(b"Bag Attributes\n" + INTEL.root.pem.encode() + pem + INTEL.platform_ca.pem.encode())
    assert [item.kind for item in items] == [CollateralKind.CERTIFICATE] * 2 + [CollateralKind.CRL]
    assert items[2].data == crl


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"# Notes\n\nWhat lies here is good.\n",
        b"{}",
        b"[]",
        b"[[]]",
        b'{"a": 1}',
        b"\x30",
        b"\x30\x82",
        b"\x89PNG\r\n\x1a\n",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        bytes(1184),
        b"<html></html>",
    ],
)
def test_nothing_known(data: bytes) -> None:
    assert recognise(data) == ()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"{" * 100_000, "evidence_malformed"),
        (b'{"quote": 1, "quote": 2}', "evidence_malformed"),
        (b'{"quote": "??", "event_log": []}', "evidence_malformed"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n", "certificate_malformed"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 65, "certificate_malformed"),
        (b"-----BEGIN X509 CRL-----\n?\n-----END X509 CRL-----\n", "collateral_malformed"),
        (b"-----BEGIN X509 CRL-----\nA\n-----END X509 CRL-----\n", "collateral_malformed"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n" * 17, "collateral_malformed"),
        (bytes(MAX_FILE_BYTES + 1), "evidence_too_large"),
        (gzip.compress(bytes(MAX_FILE_BYTES + 1)), "evidence_too_large"),
        (gzip.compress(SNP)[:-9], "evidence_malformed"),
        (gzip.compress(SNP) + b"x", "evidence_malformed"),
        (b"\x1f\x8b" + bytes(20), "evidence_malformed"),
    ],
    ids=range(13),
)
def test_what_cannot_be_read(data: bytes, code: str) -> None:
    with pytest.raises(EvidenceMalformedError) as caught:
        recognise(data)
    assert caught.value.code == code


def test_bomb_in_a_bomb_is_not_opened_further() -> None:
    inner = gzip.compress(gzip.compress(gzip.compress(SNP)))
    assert recognise(inner) == ()


def test_inflating_stops_at_the_limit() -> None:
    stream = zlib.compressobj(9, wbits=31)
    bomb = b"".join(stream.compress(bytes(1 << 20)) for _ in range(256)) + stream.flush()
    with pytest.raises(EvidenceMalformedError):
        recognise(bomb)


@pytest.mark.parametrize("text", ["", "?", "A", "é"])
def test_text_that_is_no_encoding(text: str) -> None:
    with pytest.raises(EncodingError):
        decode_binary(text)


@given(data=st.binary(max_size=3000))
@example(data=b"\x30\x84\xff\xff\xff\xff\x30")
@example(data=b"\xd2\x84module_idpcrs")
def test_any_bytes_give_items_or_our_error(data: bytes) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        recognise(data)


@given(text=st.text(max_size=500))
def test_any_text_decodes_or_raises_our_error(text: str) -> None:
    with contextlib.suppress(EvidenceMalformedError, EncodingError):
        decode_binary(text)


def test_an_item_shows_no_content() -> None:
    assert repr(recognise(SNP)[0]) == "<Item 'sev-snp-report', 1184 bytes>"
