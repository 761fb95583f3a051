"""Evidence of real GPUs: verdicts, values, claims, needs, and second implementations."""

import base64
import json
import re
import shutil
import subprocess
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp

from support.evidence import facts, sample, verify_at
from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, CollateralKind, Evidence, EvidenceFormat, Expected
from tresor.attestation.nvidia.evidence_list import parse_evidence_list
from tresor.attestation.nvidia.policy import NvidiaPolicy
from tresor.attestation.nvidia.rim import verify_rim
from tresor.attestation.nvidia.verifier import appraise_nvidia, needs
from tresor.attestation.results import AttestationResult
from tresor.attestation.roots import vendor_anchors
from tresor.attestation.x509 import load_certificates, split_certificates

FULL = "nvidia/h100-full-local"
REPORTS = (FULL, "nvidia/h100-driver-580", "nvidia/blackwell-gb100", "nvidia/h100-bad-signature")
LISTS = ("nvidia/h100-multi-json", "nvidia/h100-cert-on-hold-json")
TOKENS = (
    ("bundles/tinfoil-tdx-gpu-20260629", "nras_eat.json"),
    ("bundles/dstack-tdx-8gpu-tls-20260629", "nras_eat.json"),
    ("bundles/dstack-tdx-8gpu-address-20260610", "nras_eat.json"),
)
NEGATIVE = ("bundles/tdx-8gpu-mlkem-20260629", "nras_eat_negative.json")
openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program")


def evidence_of(name: str) -> Evidence:
    folder = sample(name)
    if (folder / "report.bin").exists():
        return Evidence(EvidenceFormat.NVIDIA_GPU_REPORT, (folder / "report.bin").read_bytes())
    return Evidence(EvidenceFormat.NVIDIA_GPU_LIST, (folder / "evidence.json").read_bytes())


def collateral_of(name: str) -> Collateral:
    folder = sample(name)
    chain = folder / "certchain.pem"
    return Collateral(
        certificates=tuple(split_certificates(chain.read_bytes())) if chain.exists() else (),
        rims=tuple(path.read_bytes() for path in sorted(folder.glob("*.xml"))),
        ocsp_responses=tuple(path.read_bytes() for path in sorted(folder.glob("*.der"))),
    )


def appraised(
    evidence: Evidence,
    at: datetime,
    *,
    collateral: Collateral | None = None,
    policy: NvidiaPolicy | None = None,
    nonce: bytes | None = None,
) -> AttestationResult:
    return appraise_nvidia(
        evidence,
        collateral=collateral or Collateral(),
        policy=policy or NvidiaPolicy(),
        expected=Expected(nonce=nonce),
        anchors=vendor_anchors(),
        now=at,
    )


def of_sample(name: str, at: datetime | None = None, **options: Any) -> AttestationResult:
    return appraised(evidence_of(name), at or verify_at(name), **{"collateral": collateral_of(name), **options})


def gpu_lists(name: str) -> list[bytes]:
    """Return the GPU evidence inside a provider's answer, as it stands there."""
    folder = sample(f"bundles/{name}")
    if name.startswith("tdx-8gpu-mlkem"):
        instances = msgspec.json.decode((folder / "evidence.json").read_bytes())["evidence"]
        return [json.dumps(instance["gpu_evidence"]).encode() for instance in instances]
    answer = msgspec.json.decode((folder / "attestation.json").read_bytes())
    return [answer["nvidia_payload"].encode() if "nvidia_payload" in answer else json.dumps(answer["gpu"]).encode()]


@pytest.mark.parametrize(
    ("name", "outcome", "code", "claim"),
    [
        (FULL, "accepted", None, "proven"),
        ("nvidia/h100-driver-580", "accepted", None, "proven"),
        ("nvidia/blackwell-gb100", "accepted", None, "proven"),
        ("nvidia/h100-multi-json", "accepted", None, "proven"),
        ("nvidia/h100-bad-signature", "rejected", AttestationCode.SIGNATURE_INVALID, "refuted"),
        ("nvidia/h100-cert-on-hold-json", "undecided", AttestationCode.CERTIFICATE_ON_HOLD, "unknown"),
    ],
)
def test_verdict(name: str, outcome: str, code: AttestationCode | None, claim: str) -> None:
    result = of_sample(name)
    assert (result.outcome, result.code, result.claims.gpu_tee.status) == (outcome, code, claim)


@pytest.mark.parametrize("name", [*REPORTS[:3], *LISTS])
def test_values(name: str) -> None:
    known = facts(name)["evidence"]
    result = of_sample(name)
    for number, device in enumerate(known if isinstance(known, list) else [known]):
        details = {key.partition(".")[2]: v for key, v in result.details.items() if key.startswith(f"gpu[{number}].")}
        assert (details["driver"], details["vbios"]) == (device["driver"], device["vbios"])
        assert details.get("protected_pcie") == {"aa": "on", "55": "off", None: None}[device["protected_pcie_status"]]
        assert device["nonce"] == (result.report_data or b"").hex()
        assert int(details["ueid"]) == int(device["leaf"].rpartition("=")[2], 16)


def test_everything_of_the_full_sample() -> None:
    result = of_sample(FULL)
    assert set(result.not_checked) == {"revocation", "nonce"}
    assert result.details["gpu[0].firmware_measurements"] == "proven"
    assert result.valid_until == datetime(2025, 10, 25, 11, 32, 21, tzinfo=UTC)
    in_august = datetime(2025, 8, 21, 12, tzinfo=UTC)
    assert "gpu[0].revocation" in {check.check for check in of_sample(FULL, in_august).checks}


@pytest.mark.parametrize("name", ["nvidia/h100-driver-580", "nvidia/blackwell-gb100", "nvidia/h100-multi-json"])
def test_without_manifests_the_firmware_is_unknown(name: str) -> None:
    result = of_sample(name)
    assert {"revocation", "firmware_measurements", "devtools"} <= set(result.not_checked)
    required = of_sample(name, policy=NvidiaPolicy(require_rims=True))
    assert (required.outcome, required.code) == ("undecided", AttestationCode.COLLATERAL_MISSING)


@pytest.mark.parametrize(
    ("at", "code"),
    [
        ("2026-02-22T23:17:59Z", AttestationCode.CERTIFICATE_EXPIRED),
        ("2026-08-01T00:00:00Z", AttestationCode.CERTIFICATE_EXPIRED),
        ("2024-02-23T00:00:00Z", AttestationCode.CERTIFICATE_NOT_YET_VALID),
    ],
)
def test_a_manifest_dies_with_its_signer(at: str, code: AttestationCode) -> None:
    assert of_sample(FULL, datetime.fromisoformat(at)).code == code


def test_required_revocation() -> None:
    policy = NvidiaPolicy(require_revocation=True)
    assert of_sample(FULL, policy=policy).code == AttestationCode.OCSP_EXPIRED
    bare = Collateral(certificates=collateral_of(FULL).certificates)
    assert of_sample(FULL, policy=policy, collateral=bare).code == AttestationCode.REVOCATION_UNKNOWN
    in_august = datetime(2025, 8, 21, 12, tzinfo=UTC)
    device_only = Collateral(certificates=bare.certificates, ocsp_responses=collateral_of(FULL).ocsp_responses)
    assert of_sample(FULL, in_august, policy=policy, collateral=device_only).outcome == "accepted"


def test_another_version_of_the_driver_manifest() -> None:
    other = (sample("nvidia/rims") / "driver_550.144.03.xml").read_bytes()
    bag = collateral_of(FULL)
    vbios = next(rim for rim in bag.rims if b"96.00.9F" in rim)
    swapped = Collateral(certificates=bag.certificates, rims=(other, vbios))
    assert of_sample(FULL, collateral=swapped).code == AttestationCode.FIRMWARE_VERSION_MISMATCH


def test_chain_of_another_gpu() -> None:
    result = of_sample(FULL, collateral=collateral_of("nvidia/h100-driver-580"))
    assert result.code == AttestationCode.SIGNATURE_INVALID


def test_blackwell_presented_as_hopper() -> None:
    folder = sample("nvidia/blackwell-gb100")
    entry = {
        "arch": "HOPPER",
        "evidence": base64.b64encode((folder / "report.bin").read_bytes()).decode(),
        "certificate": base64.b64encode((folder / "certchain.pem").read_bytes()).decode(),
    }
    evidence = Evidence(EvidenceFormat.NVIDIA_GPU_LIST, json.dumps([entry]).encode())
    result = appraised(evidence, verify_at("nvidia/blackwell-gb100"))
    assert result.code == AttestationCode.GPU_ARCHITECTURE_MISMATCH


@pytest.mark.parametrize(
    ("change", "count", "code"),
    [
        (lambda devices: [*devices[:3], devices[0]], None, AttestationCode.GPU_DUPLICATE),
        (lambda devices: devices[1:], 4, AttestationCode.GPU_COUNT_MISMATCH),
        (lambda devices: devices, 8, AttestationCode.GPU_COUNT_MISMATCH),
        (
            lambda devices: [devices[0], {**devices[1], "certificate": devices[2]["certificate"]}],
            None,
            AttestationCode.SIGNATURE_INVALID,
        ),
    ],
)
def test_splices(change: Any, count: int | None, code: AttestationCode) -> None:
    devices = msgspec.json.decode((sample("nvidia/h100-multi-json") / "evidence.json").read_bytes())
    evidence = Evidence(EvidenceFormat.NVIDIA_GPU_LIST, json.dumps(change(devices)).encode())
    result = appraised(evidence, verify_at("nvidia/h100-multi-json"), policy=NvidiaPolicy(gpu_count=count))
    assert (result.outcome, result.code) == ("rejected", code)


def test_nonce() -> None:
    known = facts("nvidia/h100-driver-580")["evidence"]["nonce"]
    assert "nonce" not in of_sample("nvidia/h100-driver-580", nonce=bytes.fromhex(known)).not_checked
    assert of_sample("nvidia/h100-driver-580", nonce=bytes(32)).code == AttestationCode.NONCE_MISMATCH
    public = bytes.fromhex(facts(FULL)["evidence"]["nonce"])
    assert of_sample(FULL, nonce=public).code == AttestationCode.NONCE_PUBLIC
    assert of_sample(FULL, policy=NvidiaPolicy(refuse_public_nonce=True)).code == AttestationCode.NONCE_PUBLIC


@pytest.mark.parametrize(
    ("file", "code"),
    [
        ("driver_550.144.03.xml", None),
        ("driver_550.144.03_bad_signature.xml", AttestationCode.COLLATERAL_SIGNATURE_INVALID),
        ("gb100_wrong_chain.xml", AttestationCode.ROOT_NOT_PINNED),
        ("driver_535.86.09_tampered.xml", AttestationCode.COLLATERAL_SIGNATURE_INVALID),
        ("driver_570.124.03_expired_and_tampered.xml", AttestationCode.COLLATERAL_SIGNATURE_INVALID),
    ],
)
def test_manifests(file: str, code: AttestationCode | None) -> None:
    data, at = (sample("nvidia/rims") / file).read_bytes(), verify_at("nvidia/rims")
    if code is not None:
        with pytest.raises(AttestationError) as caught:
            verify_rim(data, anchors=vendor_anchors(), now=at)
        assert caught.value.code == code
        return
    known = facts("nvidia/rims")["rims"][file]
    genuine = verify_rim(data, anchors=vendor_anchors(), now=at)
    assert (genuine.rim.product, genuine.rim.version) == (known["kind"], known["version"])
    assert len(genuine.rim.golden) == known["active_measurements"]
    answer = json.dumps({"id": "NV_GPU_DRIVER_GH100_550.144.03", "rim": base64.b64encode(data).decode()}).encode()
    assert verify_rim(answer, anchors=vendor_anchors(), now=at).rim.golden == genuine.rim.golden


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("tinfoil-tdx-gpu-20260629", 1),
        ("dstack-tdx-8gpu-address-20260610", 8),
        ("dstack-tdx-8gpu-tls-20260629", 8),
        ("tdx-8gpu-mlkem-20260629", 8),
        ("nonce-not-ours-a", 1),
    ],
)
def test_lists_inside_providers_answers(name: str, devices: int) -> None:
    for text in gpu_lists(name):
        assert len(parse_evidence_list(text)) == devices
        result = appraised(Evidence(EvidenceFormat.NVIDIA_GPU_LIST, text), verify_at(f"bundles/{name}"))
        assert (result.outcome, result.details["gpus"]) == ("accepted", str(devices))


def test_a_nonce_that_is_not_ours() -> None:
    (text,) = gpu_lists("nonce-not-ours-a")
    ours = bytes.fromhex(facts("bundles/nonce-not-ours-a")["client_nonce"])
    at = verify_at("bundles/nonce-not-ours-a")
    result = appraised(Evidence(EvidenceFormat.NVIDIA_GPU_LIST, text), at, nonce=ours)
    assert result.code == AttestationCode.NONCE_MISMATCH


def token_result(name: str, file: str, at: datetime | None = None, **options: Any) -> AttestationResult:
    folder = sample(name)
    return appraised(
        Evidence(EvidenceFormat.NVIDIA_NRAS, (folder / file).read_bytes()),
        at or verify_at(name),
        collateral=Collateral(jwks=((folder / "nras_jwks.json").read_bytes(),)),
        **options,
    )


@pytest.mark.parametrize(("name", "file"), TOKENS)
def test_tokens(name: str, file: str) -> None:
    known = facts(name)["nras"]
    result = token_result(name, file, nonce=bytes.fromhex(known["eat_nonce"]))
    claim = result.claims.gpu_tee
    assert (result.outcome, claim.status, claim.source) == ("accepted", "proven", "verifier")
    assert result.details["gpus"] == str(known["submodules"])
    assert result.valid_until == datetime.fromisoformat(known["exp"])
    assert {"gpu_evidence", "revocation"} == set(result.not_checked)
    expired = token_result(name, file, datetime.fromisoformat(known["exp"]))
    assert expired.code == AttestationCode.TOKEN_EXPIRED


def test_a_signed_negative_token_is_refused_for_every_gpu() -> None:
    result = token_result(*NEGATIVE)
    assert (result.outcome, result.code) == ("rejected", AttestationCode.GPU_RESULT_NEGATIVE)
    failed = {check.check for check in result.checks if check.status == "failed"}
    assert failed >= {"result", *(f"gpu[{number}].result" for number in range(8))}


def test_token_and_evidence_speak_of_the_same_devices() -> None:
    name = "dstack-tdx-8gpu-tls-20260629"
    (text,) = gpu_lists(name)
    evidence = appraised(Evidence(EvidenceFormat.NVIDIA_GPU_LIST, text), verify_at(f"bundles/{name}"))
    tokens = token_result(f"bundles/{name}", "nras_eat.json")

    def ueids(result: AttestationResult) -> set[str]:
        return {value for key, value in result.details.items() if key.endswith(".ueid")}

    assert ueids(evidence) == ueids(tokens)
    assert len(ueids(evidence)) == 8


def test_needs_of_a_report() -> None:
    name = "nvidia/h100-driver-580"
    found = needs(evidence_of(name), collateral_of(name))
    assert not any(need.required for need in found)
    assert [need.url for need in found] == [
        "https://rim.attestation.nvidia.com/v1/rim/NV_GPU_DRIVER_GH100_580.159.03",
        "https://rim.attestation.nvidia.com/v1/rim/NV_GPU_VBIOS_1010_0205_862_9600740020",
        *["https://ocsp.ndis.nvidia.com"] * 3,
    ]
    serials = {ocsp.load_der_ocsp_request(need.body or b"").serial_number for need in found[2:]}
    chain = load_certificates((sample(name) / "certchain.pem").read_bytes())
    assert serials == {certificate.serial_number for certificate in chain[1:4]}


@pytest.mark.parametrize(
    ("name", "rims"),
    [
        ("nvidia/blackwell-gb100", ["NV_GPU_CC_DRIVER_GB100_575.32", "NV_GPU_VBIOS_G525_0220_886_970088000F"]),
        ("nvidia/h100-multi-json", ["NV_GPU_DRIVER_GH100_590.12", "NV_GPU_VBIOS_G520_0200_885_9600A50001"]),
        (FULL, []),
    ],
)
def test_needed_manifests(name: str, rims: list[str]) -> None:
    found = needs(evidence_of(name), collateral_of(name))
    assert [need.url.rpartition("/")[2] for need in found if need.kind is CollateralKind.RIM] == rims
    assert len(set(found)) == len(found)


def test_nothing_is_needed_where_all_is_at_hand() -> None:
    assert needs(evidence_of(FULL), collateral_of(FULL)) == ()


def test_a_forger_makes_nobody_fetch() -> None:
    assert needs(evidence_of(FULL), Collateral()) == ()
    assert needs(Evidence(EvidenceFormat.NVIDIA_GPU_LIST, b"[]"), Collateral()) == ()


def test_a_token_needs_the_key_set() -> None:
    evidence = Evidence(EvidenceFormat.NVIDIA_NRAS, b"")
    (need,) = needs(evidence, Collateral())
    assert (need.kind, need.required) == (CollateralKind.JWKS, True)
    assert needs(evidence, Collateral(jwks=(b"{}",))) == ()


# Second implementations.


def run(*line: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([str(part) for part in line], check=False, capture_output=True)


def write_pem(path: Path, certificates: Iterable[x509.Certificate]) -> Path:
    path.write_bytes(b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates))
    return path


@openssl
@pytest.mark.parametrize("name", REPORTS)
def test_openssl_agrees_on_chain_and_signature(name: str, tmp_path: Path) -> None:
    leaf, *others = load_certificates((sample(name) / "certchain.pem").read_bytes())
    roots = write_pem(tmp_path / "root.pem", vendor_anchors().nvidia_device)
    untrusted = write_pem(tmp_path / "others.pem", others)
    subject = write_pem(tmp_path / "leaf.pem", [leaf])
    at = int(verify_at(name).timestamp())
    # OpenSSL does not know the TCG extension; that it is not critical is NVIDIA's choice.
    verified = run("openssl", "verify", "-attime", at, "-CAfile", roots, "-untrusted", untrusted, subject)
    assert verified.returncode == 0
    data = evidence_of(name).data
    key, signature, signed = tmp_path / "key.pem", tmp_path / "signature", tmp_path / "signed"
    key.write_bytes(leaf.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    signature.write_bytes(encode_dss_signature(int.from_bytes(data[-96:-48]), int.from_bytes(data[-48:])))
    signed.write_bytes(data[:-96])
    found = run("openssl", "dgst", "-sha384", "-verify", key, "-signature", signature, signed)
    assert (found.returncode == 0) == (name != "nvidia/h100-bad-signature")


@openssl
@pytest.mark.parametrize("file", ["ocsp_gpu_cert_l4.der", "ocsp_gpu_cert_l3.der", "ocsp_gpu_cert_l2.der"])
def test_openssl_agrees_on_answers(file: str, tmp_path: Path) -> None:
    chain = load_certificates((sample(FULL) / "certchain.pem").read_bytes())
    position = 5 - int(file[-5])
    subject = write_pem(tmp_path / "subject.pem", [chain[position]])
    issuer = write_pem(tmp_path / "issuer.pem", [chain[position + 1]])
    whole = write_pem(tmp_path / "chain.pem", chain[1:])
    answer = sample(FULL) / file
    at = int((datetime(2025, 8, 21, 12, tzinfo=UTC)).timestamp())
    line = ("openssl", "ocsp", "-sha384", "-respin", answer, "-issuer", issuer, "-cert", subject, "-CAfile", whole)
    found = run(*line, "-attime", at, "-validity_period", 10**10)
    assert b"Response verify OK" in found.stderr
    assert re.search(rb": good\s", found.stdout)


@pytest.mark.parametrize(("name", "file"), [*TOKENS, NEGATIVE])
def test_pyjwt_agrees(name: str, file: str) -> None:
    folder = sample(name)
    (_, overall), devices = msgspec.json.decode((folder / file).read_bytes())
    keys = {
        key["kid"]: jwt.PyJWK(key, algorithm="ES384")
        for key in msgspec.json.decode((folder / "nras_jwks.json").read_bytes())["keys"]
    }
    for text in (overall, *devices.values()):
        key = keys[jwt.get_unverified_header(text)["kid"]]
        options: Any = {"verify_exp": False, "verify_iat": False, "verify_nbf": False}
        claims = jwt.decode(text, key, algorithms=["ES384"], options=options)
        assert claims["exp"] - claims["iat"] == timedelta(hours=1).total_seconds()
