"""Attacks on verifiers that once worked: each must cost its author more than whoever verifies."""

import base64
import contextlib
import hashlib
import json
import time
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from support import fake_intel
from support.ceremony import Ceremony, fingerprint
from support.fake_amd import TCB, fake_amd, make_report
from support.fake_intel import AT, INTEL
from support.fake_nvidia import GPU, report, rim
from support.fake_providers import ANCHORS, COLLATERAL, ML_KEM_KEY, NONCE, SPKI, chutes
from support.fake_tpm import PCRS, fake_tpm, hcl_report
from tresor.attestation import node
from tresor.attestation.codes import AttestationCode
from tresor.attestation.endorsements import appraise_endorsements
from tresor.attestation.envelope import parse_envelope
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.node import Demands, appraise_node
from tresor.attestation.nvidia.rim import MAX_RIM_BYTES, parse_rim
from tresor.attestation.policy import STRICT
from tresor.attestation.providers.answer import Known, appraise_answer
from tresor.attestation.providers.chutes import parse_chutes
from tresor.attestation.recognise import decode_binary, recognise
from tresor.attestation.registry import appraise
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.tdx.collateral import parse_collateral
from tresor.attestation.tdx.event_log import parse_event_log
from tresor.errors import TresorError

BOUND_S: Final = 10.0
"""Far above what any of these takes, and far below what each took."""


# --- Manifests: canonical XML before anything is verified


def with_attributes(text: bytes) -> bytes:
    manifest = rim()
    at = manifest.index(b"<SoftwareIdentity") + len(b"<SoftwareIdentity")
    return manifest[:at] + text + manifest[at:]


def with_elements(text: bytes) -> bytes:
    manifest = rim()
    at = manifest.rindex(b"</")
    return manifest[:at] + text + manifest[at:]


NAMESPACES: Final = b"".join(b' xmlns:a%d="urn:%d"' % (number, number) for number in range(600))
MANIFESTS: Final = {
    # Elements times namespaces in scope: 90 s for 1000 and 20000, 100 KB.
    "namespaces": with_elements(b"<n%b>" % NAMESPACES + b"<b/>" * 9000 + b"</n>"),
    # Attributes are sorted by insertion: 36 s for 70000, 700 KB.
    "attributes": with_attributes(b"".join(b' a%d=""' % number for number in range(40_000))),
    "namespace-that-is-no-uri": with_attributes(b' xmlns:zz="u"'),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_that_costs_its_reader_is_refused(name: str) -> None:
    """`--evidence DIR` and the collateral of a receipt reach this parser before any signature is looked at."""
    assert len(MANIFESTS[name]) <= MAX_RIM_BYTES
    began = time.monotonic()
    with pytest.raises(EvidenceMalformedError) as refused:
        parse_rim(MANIFESTS[name])
    assert refused.value.code is AttestationCode.COLLATERAL_MALFORMED
    assert time.monotonic() - began < BOUND_S


def test_the_largest_manifest_takes_a_moment() -> None:
    few = b"".join(b' xmlns:a%d="urn:%d"' % (number, number) for number in range(12))
    wide = b"<b%b/>" % b"".join(b' a%d=""' % number for number in range(1000, 0, -1))
    for manifest in (with_elements(b"<n%b>" % few + b"<b/>" * 200_000 + b"</n>"), with_elements(wide * 100)):
        began = time.monotonic()
        parse_rim(manifest)
        assert time.monotonic() - began < BOUND_S


# --- Hexadecimal text: a pattern that remembered each of its turns took 150 bytes for two digits

DIGITS: Final = "ab" * (1 << 20)
EVENT: Final = {"imr": 3, "event_type": 1, "digest": "", "event": "", "event_payload": DIGITS}
HEXADECIMAL: Final[dict[str, Callable[[], object]]] = {
    "file": lambda: recognise(DIGITS.encode()),
    "member": lambda: decode_binary(DIGITS),
    "event-log": lambda: parse_event_log(json.dumps([EVENT]).encode()),
    "tdx-collateral": lambda: parse_collateral(
        msgspec.json.encode(msgspec.json.decode(INTEL.collateral()) | {"pck_crl": DIGITS})
    ),
}


@pytest.mark.parametrize("name", HEXADECIMAL)
def test_hexadecimal_text_takes_a_few_times_its_own_memory(name: str) -> None:
    """An upstream that nobody has verified yet answers with up to 4 MiB: 0.3 GB of them took a router's memory."""
    tracemalloc.start()
    try:
        with contextlib.suppress(TresorError):
            HEXADECIMAL[name]()
        assert tracemalloc.get_traced_memory()[1] < 16 * len(DIGITS)
    finally:
        tracemalloc.stop()


# --- Bags of certificates


KEY: Final = ec.generate_private_key(ec.SECP256R1())


def ladder(count: int) -> tuple[bytes, ...]:
    """Return certificates of which each names the next one as its issuer."""

    def name(number: int) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"rung {number}")])

    return tuple(
        x509.CertificateBuilder(name(n + 1), name(n), KEY.public_key(), n + 1, AT, AT + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(KEY, SHA256())
        .public_bytes(Encoding.DER)
        for n in range(count)
    )


def test_a_ladder_of_certificates_is_not_climbed_from_every_rung() -> None:
    """Every step looked at the whole bag, from every certificate to the top: 250 s for a thousand."""
    began = time.monotonic()
    result = appraise_endorsements(Collateral(certificates=ladder(500)), anchors=vendor_anchors(), now=AT)
    assert result.outcome == "rejected"
    assert time.monotonic() - began < BOUND_S


def test_a_bag_without_end_is_refused() -> None:
    bag = Collateral(certificates=tuple(number.to_bytes(4) for number in range(1025)))
    gpu = Evidence(EvidenceFormat.NVIDIA_GPU_REPORT, report(GPU))
    results = [
        appraise_endorsements(bag, anchors=vendor_anchors(), now=AT),
        appraise(gpu, collateral=bag, policy=STRICT, expected=Expected(), anchors=ANCHORS, now=AT),
    ]
    assert [(result.outcome, result.code) for result in results] == [
        ("rejected", AttestationCode.EVIDENCE_TOO_LARGE)
    ] * 2


# --- Claims


def chutes_result(document: bytes) -> AttestationResult:
    known = Known(nonce=NONCE, spki_sha256=SPKI, keys={f"instance-{number}": ML_KEM_KEY for number in range(2)})
    return appraise_answer(
        parse_chutes, document, known=known, collateral=COLLATERAL, policy=STRICT, anchors=ANCHORS, now=AT
    ).result


def test_one_node_with_gpus_speaks_for_no_other() -> None:
    """Nothing signs the list of devices: who takes one node's away must not keep the claim of the others."""
    assert chutes_result(chutes()).claims.gpu_tee.status == "proven"
    answer = msgspec.json.decode(chutes())
    answer["evidence"][1]["gpu_evidence"] = []
    result = chutes_result(json.dumps(answer).encode())
    assert result.outcome == "accepted"
    assert result.claims.gpu_tee.status == "unknown"
    assert "gpu_tee" in result.not_checked


# --- Nodes whose firmware boots anything


RECEIPT_KEY: Final = KEY.public_key()
DEMANDS: Final = Demands(nonce=NONCE, tls_spki_sha256=SPKI)


@pytest.mark.parametrize(
    ("registers", "status"), [((), "unknown"), (("RTMR1",), "proven"), (("MRCONFIGID",), "proven")]
)
def test_virtual_firmware_alone_shows_no_workload_of_a_trust_domain(
    registers: tuple[str, ...], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(node._PINNED, "intel", frozenset({fingerprint(INTEL.root.certificate)}))
    td = fake_intel.body()
    allowed = {name: getattr(td, name.lower()).hex() for name in ("MRTD", *registers)}
    members = {
        "allowed_hw_measurements": [allowed],
        "hw_roots": {"intel": INTEL.root.certificate.public_bytes(Encoding.PEM).decode()},
    }

    def sign(report_data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        return INTEL.quote(td=fake_intel.body(report_data=report_data)), ()

    ceremony = Ceremony(tmp_path, "router", sign, members, "tdx")
    ceremony.release()
    made = ceremony.members(SPKI, RECEIPT_KEY, nonce=NONCE, issued_at=AT)
    made |= {"tdx_quote_b64": made.pop("snp_report_b64")}
    made.pop("vcek_chain_pem")
    result = appraise_node(
        parse_envelope(json.dumps(made).encode()),
        bundle=ceremony.in_force(),
        collateral=COLLATERAL,
        demands=DEMANDS,
        now=AT,
    )
    assert result.outcome == "accepted", result.checks
    assert result.claims.workload.status == status
    assert ("workload" in result.not_checked) == (status == "unknown")


@pytest.mark.parametrize(("registers", "status"), [((), "unknown"), ((7,), "unknown"), ((4,), "proven")])
def test_a_paravisor_alone_shows_no_workload(
    registers: tuple[int, ...], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Microsoft's paravisor is the same for all customers: whoever rents such a machine has its MEASUREMENT."""
    amd, tpm, now = fake_amd("Milan"), fake_tpm(), datetime.now(UTC)
    monkeypatch.setitem(node._PINNED, "amd", frozenset({fingerprint(amd.ark)}))
    chip = amd.vcek(not_before=now - timedelta(days=1), not_after=now + timedelta(days=1))
    measurement = b"\xab" * 48
    allowed = {"MEASUREMENT": measurement.hex()} | {f"PCR{index}": PCRS[index].hex() for index in registers}
    bundle = {
        "allowed_hw_measurements": [allowed],
        "min_tcb": {"Milan": {part: TCB[part] for part in ("bl", "tee", "snp", "ucode")}},
        "hw_roots": {"amd": amd.ark.public_bytes(Encoding.PEM).decode()},
    }
    quotes: list[bytes] = []

    def sign(report_data: bytes) -> tuple[bytes, tuple[bytes, ...]]:
        quotes.append(report_data)
        return b"", (chip.der, *amd.issuers)

    ceremony = Ceremony(tmp_path, "router", sign, bundle, "azure-sev-snp")
    ceremony.release()
    made = ceremony.members(SPKI, RECEIPT_KEY, nonce=NONCE, issued_at=now)
    made.pop("snp_report_b64")
    runtime = tpm.runtime_data()
    hardware = chip.sign(
        make_report(
            "Milan",
            chip_id=chip.chip_id,
            measurement=measurement,
            report_data=hashlib.sha256(runtime).digest().ljust(64, b"\0"),
        )
    )
    quote = tpm.quote(hashlib.sha384(quotes[0]).digest())
    made |= {
        "hcl_report_b64": base64.b64encode(hcl_report(2, hardware, runtime)).decode(),
        "tpm_quote_b64": base64.b64encode(json.dumps(quote).encode()).decode(),
    }
    result = appraise_node(
        parse_envelope(json.dumps(made).encode()),
        bundle=ceremony.in_force(),
        collateral=Collateral(),
        demands=DEMANDS,
        now=now,
    )
    assert result.outcome == "accepted", [check for check in result.checks if check.status != "ok"]
    assert result.claims.workload.status == status
    assert ("workload" in result.not_checked) == (status == "unknown")
