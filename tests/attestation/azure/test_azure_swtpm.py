"""Quotes of a TPM that is none of ours: swtpm makes them, tpm2_checkquote is asked for a second opinion.

What our own source collects from it, `appraise_azure` accepts, under an HCL report that names the TPM's key.
"""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from support.evidence import sample
from support.fake_amd import AT, fake_amd, make_report
from support.fake_tpm import azure_document, fake_tpm, hcl_report
from support.swtpm import extend, prepare, running_swtpm
from support.tpm_programs import find_tpm_programs
from tresor.attestation.azure.abi import parse_hcl_report, parse_runtime_data
from tresor.attestation.azure.documents import UnverifiedQuote, parse_document
from tresor.attestation.azure.policy import AzurePolicy
from tresor.attestation.azure.verifier import appraise_azure
from tresor.attestation.azure.verify import verify_quote
from tresor.attestation.errors import AttestationError
from tresor.attestation.evidence import Collateral, Evidence, EvidenceFormat, Expected
from tresor.attestation.results import AttestationResult
from tresor.attestation.snp.policy import SnpPolicy
from tresor.attestation.tdx.policy import TdxPolicy
from tresor.encodings import base64url_encode
from tresor.identity.sources.azure_vtpm import AK_HANDLE
from tresor.identity.sources.patience import Patience
from tresor.identity.sources.tpm2 import Tpm2, TpmDevice

REPORT_DATA = bytes(range(64))
QUALIFYING_DATA = hashlib.sha384(REPORT_DATA).digest()
RSA_TPMT_PUBLIC_MODULUS = 24  # offset of the TPM2B with the modulus in a TPMT_PUBLIC without a policy


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return find_tpm_programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture(scope="module")
def quoted(programs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[rsa.RSAPublicKey, UnverifiedQuote]:
    """A quote of swtpm, and its key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(programs), prepend=":")
        with running_swtpm(tmp_path_factory.mktemp("tpm")) as path:
            public = prepare(path, b"HCLA")
            extend(path, 11, hashlib.sha256(b"a kernel").digest())
            device = TpmDevice.open(path)
            tpm = Tpm2(device)
            quote = Patience().until_done(lambda: tpm.quote(AK_HANDLE, QUALIFYING_DATA))
            pcrs = tpm.pcr_read()
            device.close()
    assert public[18:22] == bytes(4), "the default exponent"
    n = int.from_bytes(public[RSA_TPMT_PUBLIC_MODULUS:])
    return rsa.RSAPublicNumbers(65537, n).public_key(), UnverifiedQuote(quote.message, quote.signature, pcrs)


def appraised(key: rsa.RSAPublicKey, quote: UnverifiedQuote, expected: Expected, **policy: Any) -> AttestationResult:
    amd = fake_amd("Milan")
    chip = amd.vcek()
    n = base64url_encode(key.public_numbers().n.to_bytes(256))
    runtime_data = fake_tpm().runtime_data(keys=[{"kid": "HCLAkPub", "kty": "RSA", "n": n, "e": "AQAB"}])
    bound = hashlib.sha256(runtime_data).digest().ljust(64, b"\0")
    report = chip.sign(make_report("Milan", report_data=bound))
    members = {
        "message": quote.message.hex(),
        "signature": quote.signature.hex(),
        "pcrs": [value.hex() for value in quote.pcrs],
    }
    return appraise_azure(
        Evidence(EvidenceFormat.AZURE_VTPM, azure_document(hcl_report(2, report, runtime_data), members)),
        collateral=Collateral(certificates=(chip.der, *amd.issuers)),
        policy=AzurePolicy(**policy),
        snp=SnpPolicy(),
        tdx=TdxPolicy(),
        expected=expected,
        anchors=amd.anchors,
        now=AT,
    )


def test_a_quote_of_swtpm_is_accepted(quoted: tuple[rsa.RSAPublicKey, UnverifiedQuote]) -> None:
    result = appraised(*quoted, Expected(report_data=REPORT_DATA))
    assert result.outcome == "accepted", result.checks
    kernel = hashlib.sha256(bytes(32) + hashlib.sha256(b"a kernel").digest()).hexdigest()
    assert result.measurements["PCR11"] == kernel


def test_its_registers_are_held(quoted: tuple[rsa.RSAPublicKey, UnverifiedQuote]) -> None:
    result = appraised(*quoted, Expected(), skip_pcrs=False, allowed_pcrs={"11": ("00" * 32,)})
    assert result.code == "register_not_allowed"


def check(programs: Path, folder: Path, key: rsa.RSAPublicKey, quote: UnverifiedQuote, qualifying_data: bytes) -> bool:
    """Ask tpm2_checkquote, which reads values in the layout of a little-endian machine, eight to a list."""
    banks = (1).to_bytes(4, "little") + bytes.fromhex("0b00 03 ffffff 0000")
    lists = [quote.pcrs[start : start + 8] for start in range(0, len(quote.pcrs), 8)]
    values = b"".join(
        len(part).to_bytes(4, "little")
        + b"".join((32).to_bytes(2, "little") + value.ljust(64, b"\0") for value in part)
        for part in lists
    )
    files = {
        "key.pem": key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "message": quote.message,
        "signature": quote.signature,
        "pcrs": banks.ljust(4 + 16 * 8, b"\0") + len(lists).to_bytes(4, "little") + values,
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    program: list[str | Path] = [programs / "tpm2_checkquote", "-u", "key.pem", "-m", "message", "-s", "signature"]
    line = [*program, "-f", "pcrs", "-F", "values", "-g", "sha256", "-q", qualifying_data.hex()]
    return subprocess.run(line, cwd=folder, check=False, capture_output=True).returncode == 0


def of_sample(name: str) -> tuple[rsa.RSAPublicKey, UnverifiedQuote]:
    document = parse_document((sample(name) / "evidence.json").read_bytes())
    assert document.quote is not None
    return parse_runtime_data(parse_hcl_report(document.hcl_report).runtime_data).ak, document.quote


@pytest.mark.parametrize("name", ["swtpm", "azure/snp-genoa", "azure/snp-milan-userdata", "azure/tdx-2023"])
def test_tpm2_checkquote_agrees(
    name: str, programs: Path, tmp_path: Path, quoted: tuple[rsa.RSAPublicKey, UnverifiedQuote]
) -> None:
    key, quote = quoted if name == "swtpm" else of_sample(name)
    data = verify_quote(quote, key).quote.extra_data
    assert check(programs, tmp_path, key, quote, data)
    assert not check(programs, tmp_path, key, quote, data[:-1] + bytes([data[-1] ^ 1]))
    flipped = bytearray(quote.message)
    flipped[-1] ^= 1
    for broken in (
        UnverifiedQuote(bytes(flipped), quote.signature, quote.pcrs),
        UnverifiedQuote(quote.message, quote.signature, (b"\x55" * 32, *quote.pcrs[1:])),
    ):
        with pytest.raises(AttestationError):
            verify_quote(broken, key)
        assert not check(programs, tmp_path, key, broken, data)
