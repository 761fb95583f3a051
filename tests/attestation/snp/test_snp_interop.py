"""OpenSSL's command line as the second implementation: chains and report signatures of samples and of made reports."""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.evidence import sample, verify_at
from support.fake_amd import AT, fake_amd, make_report
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.roots import TrustAnchors, root, vendor_anchors
from tresor.attestation.snp.abi import parse_report
from tresor.attestation.snp.certificates import parse_endorsement
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.snp.verifier import appraise_snp
from tresor.attestation.x509 import load_certificate, split_certificates

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="OpenSSL's command line is not installed")


@dataclass(frozen=True)
class Claimed:
    report: bytes
    vcek: bytes
    ask: bytes
    ark: bytes
    at: float


def of_sample(name: str, product: str, ask: str = "ask") -> Claimed:
    folder = sample(f"snp/{name}")
    (file,) = (path for path in folder.iterdir() if path.stem in {"vcek", "vlek"})
    (vcek,) = split_certificates(file.read_bytes())
    issuer, ark = (root(f"amd_{product}_{role}").public_bytes(Encoding.DER) for role in (ask, "ark"))
    return Claimed((folder / "report.bin").read_bytes(), vcek, issuer, ark, verify_at(f"snp/{name}").timestamp())


def of_fake(*, world: str = "") -> Claimed:
    amd, issuers = fake_amd(), fake_amd("Milan", world)
    chip = amd.vcek()
    ask = issuers.ask.public_bytes(Encoding.DER)
    ark = issuers.ark.public_bytes(Encoding.DER)
    return Claimed(chip.sign(make_report()), chip.der, ask, ark, AT.timestamp())


CLAIMED: dict[str, Callable[[], Claimed]] = {
    "genoa-v5-vcek": lambda: of_sample("genoa-v5-vcek", "genoa"),
    "milan-v2-debug-policy": lambda: of_sample("milan-v2-debug-policy", "milan"),
    "milan-v2-vcek": lambda: of_sample("milan-v2-vcek", "milan"),
    "milan-v3-vcek": lambda: of_sample("milan-v3-vcek", "milan"),
    "milan-v3-vlek-aws": lambda: of_sample("milan-v3-vlek-aws", "milan", "asvk"),
    "turin-v5-vcek": lambda: of_sample("turin-v5-vcek", "turin"),
    "milan-v2-forged-vcek-legacy": lambda: of_sample("milan-v2-forged-vcek-legacy", "milan"),
    "milan-v2-forged-vcek-new": lambda: of_sample("milan-v2-forged-vcek-new", "milan"),
    "made": of_fake,
    "made-under-another-root": lambda: of_fake(world="other"),
}


def openssl(*arguments: str | Path) -> bool:
    done = subprocess.run(["openssl", *arguments], capture_output=True, timeout=30, check=False)
    return done.returncode == 0


def chain_holds(claimed: Claimed, folder: Path) -> bool:
    for name, der in (("vcek", claimed.vcek), ("ask", claimed.ask), ("ark", claimed.ark)):
        (folder / f"{name}.der").write_bytes(der)
        assert openssl("x509", "-inform", "DER", "-in", folder / f"{name}.der", "-out", folder / f"{name}.pem")
    files = ("-CAfile", folder / "ark.pem", "-untrusted", folder / "ask.pem", folder / "vcek.pem")
    return openssl("verify", "-attime", str(int(claimed.at)), *files)


def signature_holds(claimed: Claimed, folder: Path) -> bool:
    report, endorsement = parse_report(claimed.report), parse_endorsement(claimed.vcek)
    assert endorsement is not None
    pem = endorsement.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (folder / "key.pem").write_bytes(pem)
    (folder / "signed").write_bytes(claimed.report[:0x2A0])
    (folder / "signature").write_bytes(encode_dss_signature(report.r, report.s))
    files = ("-verify", folder / "key.pem", "-signature", folder / "signature", folder / "signed")
    return openssl("dgst", "-sha384", *files)


@pytest.mark.parametrize("name", CLAIMED)
def test_openssl_agrees(name: str, tmp_path: Path) -> None:
    claimed = CLAIMED[name]()
    anchors = vendor_anchors()
    if name.startswith("made"):
        anchors = TrustAnchors(amd={"Milan": (load_certificate(claimed.ark),)})
    result = appraise_snp(
        Evidence(EvidenceFormat.SNP_REPORT, claimed.report),
        collateral=Collateral(certificates=(claimed.vcek, claimed.ask)),
        policy=SnpPolicy(),
        expected=Expected(),
        anchors=anchors,
        now=verify_at(f"snp/{name}") if not name.startswith("made") else AT,
    )
    genuine = bool(result.measurements)
    assert genuine == (chain_holds(claimed, tmp_path) and signature_holds(claimed, tmp_path))
    assert genuine == (name not in {"made-under-another-root", *(n for n in CLAIMED if "forged" in n)})
