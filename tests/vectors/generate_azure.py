"""Azure vectors: `cases()`, or `PYTHONPATH=tests python tests/vectors/generate_azure.py FOLDER` to write them down.

Reports are signed under `support.fake_amd` and `support.fake_intel`, quotes by `support.fake_tpm`, whose RSA keys are
made at run time: so the tests build each case when they run it, and nothing is kept.  Cases that are `real` change a
sample of real hardware instead.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from struct import Struct
from typing import Any, Final

from cryptography.hazmat.primitives.serialization import Encoding

from support.evidence import sample
from support.fake_amd import Chip, fake_amd, make_report
from support.fake_intel import AT, INTEL, body
from support.fake_tpm import PCRS, SHA1, SHA384, FakeTpm, azure_document, fake_tpm, hcl_report, tdreport
from tresor.attestation.evidence import Collateral
from tresor.attestation.roots import TrustAnchors

__all__ = ["AT", "Case", "World", "cases"]

NONCE: Final = b"challenge of the verifier, 32 b."
REPORT_DATA: Final = bytes(range(64))
GOOD_PCR4: Final = PCRS[4].hex()
OTHER: Final = "ab" * 32


class World:
    """Everything that is made for the vectors."""

    def __init__(self) -> None:
        self.amd = fake_amd("Milan")
        self.tpm: FakeTpm = fake_tpm()
        self.other_tpm: FakeTpm = fake_tpm("other")
        self.anchors = TrustAnchors(amd={"Milan": (self.amd.ark,)}, intel=(INTEL.root.certificate,))

    @cached_property
    def chip(self) -> Chip:
        return self.amd.vcek()

    @property
    def collateral(self) -> Collateral:
        return Collateral(certificates=(self.chip.der, *self.amd.issuers), tdx=(INTEL.collateral(),))

    def hcl(
        self, runtime_data: bytes | None = None, *, report: Mapping[str, Any] | None = None, **header: Any
    ) -> bytes:
        """Return an HCL report with an SNP report; `report` and `header` change them."""
        runtime_data = self.tpm.runtime_data() if runtime_data is None else runtime_data
        bound = hashlib.sha256(runtime_data).digest().ljust(64, b"\0")
        signed = self.chip.sign(make_report("Milan", **{"report_data": bound, **(report or {})}))
        return hcl_report(2, signed, runtime_data, **header)

    def snp(self, quote: Mapping[str, Any] | None = None, **changes: Any) -> bytes:
        """Return a document with an SNP report and a quote."""
        return azure_document(self.hcl(**changes), self.tpm.quote(NONCE) if quote is None else quote)

    def of_runtime_data(self, **members: Any) -> bytes:
        """Return a document with other runtime data, all bound as it should be."""
        return self.snp(runtime_data=self.tpm.runtime_data(**members))

    def tdx(
        self,
        *,
        attributes: int = 0,
        version: int = 4,
        quoted: Mapping[str, bytes] | None = None,
        report: Callable[[bytes], bytes] = lambda report: report,
        td_quote: Callable[[bytes], bytes | None] = lambda quote: quote,
        **later: bytes,
    ) -> bytes:
        """Return a document with a TDREPORT and a TDX quote; SEPT_VE_DISABLE is clear, as on Azure."""
        runtime_data = self.tpm.runtime_data()
        bound = hashlib.sha256(runtime_data).digest().ljust(64, b"\0")
        td = replace(body(attributes=attributes, report_data=bound), **later)
        quote = td_quote(INTEL.quote(td=replace(td, **(quoted or {})), version=version))
        members = {} if quote is None else {"tdx_quote_b64": base64.b64encode(quote).decode()}
        return azure_document(hcl_report(4, report(tdreport(td)), runtime_data), self.tpm.quote(NONCE), **members)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A document, what it is held against, and the verdict.

    Attributes:
        name: number and what is wrong.
        spec: section of docs/spec/attestation.md that decides.
        build: makes the document.
        code: of the refusal, or of what is missing; None where it is accepted.
        collateral: what endorses the hardware report.
        real: the sample whose instant, roots and certificates count in place of the world's.
    """

    name: str
    title: str
    spec: str
    build: Callable[[World], bytes]
    outcome: str = "rejected"
    code: str | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)
    snp: Mapping[str, Any] = field(default_factory=dict)
    tdx: Mapping[str, Any] = field(default_factory=dict)
    report_data: bytes | None = None
    nonce: bytes | None = None
    collateral: Callable[[World], Collateral] = lambda world: world.collateral
    real: str | None = None


def real(name: str) -> dict[str, Any]:
    """Return the document of a sample."""
    document: dict[str, Any] = json.loads((sample(name) / "evidence.json").read_bytes())  # noqa: TID251 - a sample
    return document


MILAN: Final = "azure/snp-milan-userdata"
GENOA: Final = "azure/snp-genoa"


def versioned(world: World, *, version: int = 1, **members: Any) -> bytes:
    """Return a document in the form of confidential-containers/trustee."""
    hcl = base64.urlsafe_b64encode(world.hcl()).decode()
    document = {"version": version, "tpm_quote": world.tpm.quote(NONCE), "hcl_report": hcl, **members}
    return json.dumps(document).encode()


def numbers(world: World, **members: Any) -> bytes:
    """Return a document in its first form, arrays of numbers."""
    quote = world.tpm.quote(NONCE)
    document = {
        "quote": {
            "message": list(bytes.fromhex(quote["message"])),
            "signature": list(bytes.fromhex(quote["signature"])),
            "pcrs": [list(bytes.fromhex(value)) for value in quote["pcrs"]],
        },
        "report": list(world.hcl()),
        **members,
    }
    return json.dumps(document, indent=2).encode()


def signed_quote(world: World, message: bytes, *, pss: bool = False, digest: int = 0x000B, **members: Any) -> bytes:
    """Return a document with this TPMS_ATTEST, its signature a TPMT_SIGNATURE."""
    signature = world.tpm.sign_tpmt(message, pss=pss, digest=digest).hex()
    return world.snp({**world.tpm.quote(), "message": message.hex(), "signature": signature, **members})


def without_certificates(world: World) -> Collateral:
    """Leave all certificates out."""
    return replace(world.collateral, certificates=())


def only_issuers(world: World) -> Collateral:
    """Leave the VCEK out."""
    return replace(world.collateral, certificates=world.amd.issuers)


def without_tdx(world: World) -> Collateral:
    """Leave Intel's collateral out."""
    return replace(world.collateral, tdx=())


def good() -> Iterator[Case]:
    """Documents that are accepted."""

    def case(name: str, title: str, build: Callable[[World], bytes], **held: Any) -> Case:
        return Case(name=name, title=title, spec="5.4", build=build, outcome="accepted", **held)

    def bound(data: bytes) -> Callable[[World], bytes]:
        return lambda w: w.snp(w.tpm.quote(data))

    def hashed(hash_type: int, name: str) -> Callable[[World], bytes]:
        def build(world: World) -> bytes:
            digest = hashlib.new(name, world.tpm.runtime_data()).digest()
            return world.snp(hash_type=hash_type, report={"report_data": digest.ljust(64, b"\0")})

        return build

    sha256, sha384 = hashlib.sha256(NONCE).digest(), hashlib.sha384(NONCE).digest()
    yield case("001-snp", "an SNP report with a quote", lambda w: w.snp())
    yield case("002-nonce", "the qualifying data is the nonce", lambda w: w.snp(), nonce=NONCE)
    yield case("003-nonce-sha256", "the qualifying data is SHA-256 of the nonce", bound(sha256), nonce=NONCE)
    yield case("004-nonce-sha384", "the qualifying data is SHA-384 of the nonce", bound(sha384), nonce=NONCE)
    yield case(
        "005-report-data",
        "the qualifying data is SHA-384 of REPORT_DATA",
        bound(hashlib.sha384(REPORT_DATA).digest()),
        report_data=REPORT_DATA,
    )
    yield case(
        "006-registers-allowed",
        "registers hold allowed values, the first or another of the list",
        lambda w: w.snp(),
        policy={"skip_pcrs": False, "allowed_pcrs": {"4": [GOOD_PCR4], "11": [OTHER, PCRS[11].hex()]}},
    )
    yield case("007-tpmt-signature", "the signature is a TPMT_SIGNATURE", lambda w: signed_quote(w, w.tpm.attest()))
    yield case("008-rsapss", "the signature is RSAPSS", lambda w: signed_quote(w, w.tpm.attest(), pss=True))
    yield case(
        "009-sha384",
        "signature and digest of the registers are SHA-384",
        lambda w: signed_quote(w, w.tpm.attest(digest=hashlib.sha384(b"".join(PCRS.values())).digest()), digest=SHA384),
    )
    for number, hash_type, name in ((10, 2, "sha384"), (11, 3, "sha512")):
        yield case(
            f"0{number}-runtime-data-{name}",
            f"REPORT_DATA begins with {name} of the runtime data",
            hashed(hash_type, name),
        )
    yield case("012-hcl-version-1", "an HCL report of version 1", lambda w: w.snp(version=1))
    yield case("013-trustee-1", "trustee's form of version 1", versioned)
    yield case(
        "014-trustee-2-base64",
        "trustee's form of version 2, the report in base64 that is not padded",
        lambda w: versioned(w, version=2, hcl_report=base64.b64encode(w.hcl()).decode().rstrip("=")),
    )
    yield case("015-trustee-numbers", "trustee's first form", numbers)
    yield case(
        "016-vcek-inside",
        "the VCEK comes in the document alone",
        lambda w: versioned(w, vcek=base64.urlsafe_b64encode(w.chip.der).decode()),
        collateral=only_issuers,
    )
    yield case(
        "017-chain-inside",
        "VCEK and chain come in the document alone, as PEM",
        lambda w: azure_document(w.hcl(), w.tpm.quote(), vcek_chain_pem=_pem(w.chip.der, *w.amd.issuers)),
        collateral=without_certificates,
    )
    yield case("018-tdx", "a TDREPORT with its TDX quote and a TPM quote", lambda w: w.tdx(), nonce=NONCE)
    yield case(
        "019-tdx-1.5",
        "the same with a quote of version 5 and a body of TDX 1.5",
        lambda w: w.tdx(version=5, tee_tcb_svn2=bytes([6, 1, 3]) + bytes(13), mrservicetd=bytes(48)),
    )
    yield case(
        "020-few-registers",
        "the policy wants PCR4 quoted, and nothing else is",
        lambda w: w.snp(w.tpm.quote(b"", {4: PCRS[4]})),
        policy={"required_pcrs": [4]},
    )
    yield case(
        "021-secure-boot-off-allowed",
        "Secure Boot is off, and the policy says so",
        lambda w: w.of_runtime_data(**{"vm-configuration": {"secure-boot": False}}),
        policy={"require_secure_boot": False},
    )
    yield case(
        "022-other-bank-empty",
        "a bank is named of which nothing is selected",
        lambda w: w.snp(w.tpm.quote(selections=bytes.fromhex("00000002 0004 03 000000 000b 03 ffffff"))),
    )


def undecided() -> Iterator[Case]:
    """Documents for which something is missing."""

    def case(name: str, title: str, code: str, build: Callable[[World], bytes], **held: Any) -> Case:
        return Case(name=name, title=title, spec="5.4", build=build, outcome="undecided", code=code, **held)

    missing = "quote_missing"
    yield case("051-bare-hcl-report", "the HCL report alone", missing, lambda w: w.hcl())
    yield case("052-no-tpm-quote", "our form without a quote", missing, lambda w: azure_document(w.hcl()))
    yield case(
        "053-no-tpm-quote-nonce",
        "a nonce is expected, and there is no quote to hold it",
        missing,
        lambda w: w.hcl(),
        nonce=NONCE,
        report_data=REPORT_DATA,
    )
    yield case("054-no-tdx-quote", "a TDREPORT alone", missing, lambda w: w.tdx(td_quote=lambda _: None))
    yield case(
        "055-no-tdx-collateral",
        "all is well but for Intel's collateral",
        "collateral_missing",
        lambda w: w.tdx(),
        collateral=without_tdx,
    )
    yield case("056-no-vcek", "the VCEK is missing", "endorsement_missing", lambda w: w.snp(), collateral=only_issuers)


def documents() -> Iterator[Case]:
    """Bytes that are no document."""
    malformed = "evidence_malformed"

    def case(name: str, title: str, build: Callable[[World], bytes], code: str = malformed, **held: Any) -> Case:
        return Case(name=name, title=title, spec="5.4.3", build=build, code=code, **held)

    def ours(**members: Any) -> Callable[[World], bytes]:
        return lambda w: json.dumps({"hcl_report_b64": base64.b64encode(w.hcl()).decode(), **members}).encode()

    def quoted(**members: Any) -> Callable[[World], bytes]:
        return lambda w: w.snp({**w.tpm.quote(), **members})

    yield case("101-empty", "no bytes", lambda _: b"")
    yield case("102-binary", "neither JSON nor an HCL report", lambda w: w.hcl()[4:])
    yield case("103-array", "a JSON array", lambda _: b"[]")
    yield case("104-no-report", "an object of none of the forms", lambda _: b'{"evidence": {}}')
    yield case(
        "105-duplicate-member",
        "the report stands twice",
        lambda w: azure_document(w.hcl())[:-1] + b', "hcl_report_b64": "SENMQQ=="}',
    )
    yield case("106-unknown-member", "our form has a member that it does not know", ours(ak_pem="..."))
    yield case("107-base64-line-break", "a line break in base64", ours(hcl_report_b64="SENM\nQQ=="))
    yield case("108-base64-trailing-bits", "bits behind the last byte of base64", ours(hcl_report_b64="SENMQR=="))
    yield case("109-base64-padding", "base64 with too much padding", ours(hcl_report_b64="SENMQQ==="))
    yield case("110-tpm-quote-no-json", "tpm_quote_b64 is no JSON", ours(tpm_quote_b64="SENMQQ=="))
    yield case("111-hexadecimal-odd", "half a byte in hexadecimal", quoted(message="ff5"))
    yield case("112-hexadecimal-upper", "upper-case hexadecimal", quoted(message="FF54"))
    yield case("113-pcr-number", "a register is a number", quoted(pcrs=[1]))
    yield case("114-pcrs-endless", "97 registers", quoted(pcrs=["00" * 32] * 97))
    yield case("115-number-256", "a byte is 256", lambda w: numbers(w, report=[72, 67, 76, 65, 256]))
    yield case("116-version-3", "a version that nobody knows", lambda w: versioned(w, version=3))
    yield case("117-too-large", "more than 512 KiB", ours(vcek_chain_pem=" " * (512 * 1024)), "evidence_too_large")
    yield case(
        "118-pem-cut-off",
        "the certificate's end is missing",
        ours(vcek_chain_pem="-----BEGIN CERTIFICATE-----\nMIIB"),
        "certificate_malformed",
    )


def hcl_reports() -> Iterator[Case]:
    """HCL reports that are none."""
    malformed = "evidence_malformed"

    def case(name: str, title: str, build: Callable[[World], bytes], code: str = malformed) -> Case:
        return Case(name=name, title=title, spec="5.4.1", build=build, code=code)

    def changed(offset: int, value: int, size: int = 4) -> Callable[[World], bytes]:
        def build(world: World) -> bytes:
            hcl = bytearray(world.hcl())
            hcl[offset : offset + size] = value.to_bytes(size, "little")
            return azure_document(bytes(hcl), world.tpm.quote(NONCE))

        return build

    yield case("201-short", "the header and nothing else", lambda w: w.hcl()[:1235])
    yield case("202-magic", "HCLB", lambda w: azure_document(b"HCLB" + w.hcl()[4:]))
    unsupported = "evidence_version_unsupported"
    yield case("203-version-3", "a version that nobody knows", changed(4, 3), unsupported)
    yield case("204-request-version-2", "a request of another version", changed(1220, 2), unsupported)
    yield case("205-vbs", "no hardware report (VBS)", changed(1224, 1), "evidence_kind_mismatch")
    yield case("206-hash-unknown", "a hash that nobody knows", changed(1228, 4), "algorithm_not_allowed")
    yield case("207-runtime-data-past-end", "runtime data longer than the report", lambda w: w.snp(size=4096))
    yield case("208-runtime-data-4-gib", "runtime data of 2^32-1 bytes", changed(1232, (1 << 32) - 1))
    yield case("209-lengths-contradict", "the request is a byte longer than its data", changed(1216, 99_999))
    yield case("210-report-bytes-contradict", "the report is a byte longer than its parts", changed(8, 99_999))
    reserved = "reserved_not_zero"
    yield case("211-bytes-behind", "bytes behind the runtime data", lambda w: w.snp(tail=b"\0\1"), reserved)
    yield case("212-header-reserved", "bytes in the reserved part of the header", changed(20, 1), reserved)
    yield case("213-status", "a status other than zero", changed(16, 1), reserved)
    yield case("214-request-type", "a request of another type", changed(12, 0), reserved)
    yield case(
        "215-bytes-behind-tdreport",
        "bytes between TDREPORT and request",
        lambda w: w.tdx(report=lambda report: report + b"\1"),
        reserved,
    )
    yield case(
        "216-snp-report-as-tdreport",
        "the report says TDX and holds an SNP report",
        lambda w: azure_document(hcl_report(4, make_report()[:1024], w.tpm.runtime_data()), w.tpm.quote()),
        "evidence_kind_mismatch",
    )
    yield case(
        "217-tdreport-as-snp-report",
        "the report says SNP and holds a TDREPORT",
        lambda w: azure_document(hcl_report(2, tdreport(body()), w.tpm.runtime_data()), w.tpm.quote()),
        unsupported,
    )
    yield case("218-too-large", "more than 16384 bytes", lambda w: w.snp(tail=bytes(16_384)), "evidence_too_large")


def hardware() -> Iterator[Case]:
    """Hardware reports that are refused; their own packages have more."""

    def case(name: str, title: str, code: str, build: Callable[[World], bytes], **held: Any) -> Case:
        return Case(name=name, title=title, spec="5.4.4", build=build, code=code, **held)

    def by_stranger(world: World) -> Collateral:
        other = fake_amd("Milan", "stranger")
        return Collateral(certificates=(other.certify(world.chip.key, hwid=world.chip.chip_id), *other.issuers))

    yield Case(
        name="301-wrong-chip",
        title="the VCEK is of another chip, and there is no quote",
        spec="5.4.4",
        build=lambda _: (sample("azure/snp-wrong-chip") / "hcl-report-snp.bin").read_bytes(),
        code="chip_id_mismatch",
        real="azure/snp-wrong-chip",
    )
    yield case(
        "302-snp-debug", "the guest may be debugged", "debug_enabled", lambda w: w.snp(report={"policy": 0xB0000})
    )
    yield case(
        "303-vmpl-2",
        "the guest above the paravisor made the report, and the SNP policy allows its level",
        "vmpl_not_allowed",
        lambda w: w.snp(report={"vmpl": 2}),
        snp={"allowed_vmpls": [0, 1, 2, 3]},
    )
    yield case(
        "304-vmpl-0-not-allowed",
        "the SNP policy wants another level than the paravisor's",
        "vmpl_not_allowed",
        lambda w: w.snp(),
        snp={"allowed_vmpls": [1]},
    )
    yield case(
        "305-measurement-not-allowed",
        "the firmware is not in its list",
        "measurement_not_allowed",
        lambda w: w.snp(),
        snp={"skip_measurement": False, "allowed_measurements": ["00" * 48]},
    )
    yield case(
        "306-signature-flipped", "one bit of the SNP report's signature is another", "signature_invalid", _flipped
    )
    yield case(
        "313-snp-root-self-made",
        "all names are right, all keys are another's",
        "root_not_pinned",
        lambda w: w.snp(),
        collateral=by_stranger,
    )
    yield case("307-td-debug", "the domain may be debugged", "debug_enabled", lambda w: w.tdx(attributes=1))
    yield case(
        "308-tdx-quote-of-another-domain",
        "the TDX quote binds the runtime data, and is of another domain than the TDREPORT",
        "runtime_data_mismatch",
        lambda w: w.tdx(quoted={"mrtd": bytes(48)}),
    )
    yield case(
        "309-tdx-quote-of-another-key",
        "the TDX quote binds other runtime data",
        "runtime_data_mismatch",
        lambda w: w.tdx(quoted={"report_data": bytes(64)}),
    )
    yield case(
        "310-tdreport-hash",
        "the TDREPORT contradicts its own hashes",
        "evidence_malformed",
        lambda w: w.tdx(report=lambda report: report[:-1] + b"\1"),
    )
    yield case(
        "311-tdx-quote-malformed",
        "the TDX quote is cut off",
        "evidence_malformed",
        lambda w: w.tdx(td_quote=lambda quote: quote[:-1]),
    )
    yield case(
        "312-tdx-quote-flipped",
        "one bit of the signature of the TDX quote is another",
        "signature_invalid",
        lambda w: w.tdx(td_quote=lambda quote: quote[:650] + bytes([quote[650] ^ 1]) + quote[651:]),
    )


def runtime_data() -> Iterator[Case]:
    """Runtime data that the hardware did not sign, or that are not usable."""
    mismatch, malformed = "runtime_data_mismatch", "evidence_malformed"

    def case(name: str, title: str, code: str, build: Callable[[World], bytes], **held: Any) -> Case:
        return Case(name=name, title=title, spec="5.4.4", build=build, code=code, **held)

    def keys(*jwks: Callable[[World], Mapping[str, Any]]) -> Callable[[World], bytes]:
        return lambda w: w.of_runtime_data(keys=[jwk(w) for jwk in jwks])

    yield case("401-one-byte-changed", "one character of the key is another", mismatch, _other_key_byte, real=MILAN)
    yield case(
        "402-report-data-second-half",
        "something stands behind the hash in REPORT_DATA",
        mismatch,
        lambda w: w.snp(report={"report_data": hashlib.sha256(w.tpm.runtime_data()).digest().ljust(64, b"\1")}),
    )
    yield case("403-other-hash", "the hash is not of the type stated", mismatch, lambda w: w.snp(hash_type=2))
    yield case(
        "404-report-data-unbound",
        "REPORT_DATA is something else",
        mismatch,
        lambda w: w.snp(report={"report_data": REPORT_DATA}),
    )
    yield case("411-no-key", "no keys", malformed, keys())
    yield case("412-only-ek", "the endorsement key alone", malformed, keys(lambda w: w.tpm.jwk("HCLEkPub")))
    yield case(
        "413-two-aks",
        "two attestation keys",
        malformed,
        keys(lambda w: w.tpm.jwk(), lambda w: w.other_tpm.jwk()),
    )
    yield case("414-ak-look-alike", "the name differs in case", malformed, keys(lambda w: w.tpm.jwk("hclakpub")))
    not_allowed = "algorithm_not_allowed"
    yield case(
        "415-ak-1024-bits", "an RSA key of 1024 bits", not_allowed, keys(lambda w: w.tpm.jwk(n=_short_modulus()))
    )
    yield case("416-ak-exponent-3", "the exponent is 3", not_allowed, keys(lambda w: w.tpm.jwk(e="Aw")))
    yield case("417-ak-ec", "a key of another type", not_allowed, keys(lambda w: w.tpm.jwk(kty="EC")))
    yield case("418-ak-padded", "base64url with padding", malformed, keys(lambda w: w.tpm.jwk(e="AQAB====")))
    yield case(
        "419-duplicate-member",
        "keys stands twice",
        malformed,
        lambda w: w.snp(runtime_data=w.tpm.runtime_data()[:-1] + b',"keys":[]}'),
    )
    yield case(
        "420-no-json", "the hardware signed something else", malformed, lambda w: w.snp(runtime_data=b"HCLAkPub")
    )
    yield case("421-empty", "no runtime data", malformed, lambda w: w.snp(runtime_data=b""))
    yield case(
        "422-user-data-short",
        "user-data is not 64 bytes",
        malformed,
        lambda w: w.of_runtime_data(**{"user-data": "00"}),
    )
    yield case(
        "423-ak-outside",
        "the document brings the key that signed, and the runtime data name another",
        "signature_invalid",
        lambda w: versioned(w, tpm_quote=w.other_tpm.quote(NONCE), keys=[w.other_tpm.jwk()], ak_pub="..."),
    )
    yield case(
        "431-secure-boot-off",
        "Secure Boot is off",
        "secure_boot_off",
        lambda w: w.of_runtime_data(**{"vm-configuration": {"secure-boot": False}}),
    )
    yield case(
        "432-secure-boot-not-stated",
        "nothing says whether Secure Boot is on",
        malformed,
        lambda w: w.of_runtime_data(**{"vm-configuration": {"tpm-enabled": True}}),
    )
    yield case(
        "433-secure-boot-text",
        "Secure Boot is a text",
        malformed,
        lambda w: w.of_runtime_data(**{"vm-configuration": {"secure-boot": "true"}}),
    )


def quotes() -> Iterator[Case]:
    """Quotes that the attestation key did not sign, or that are none."""
    malformed = "evidence_malformed"

    def case(name: str, title: str, code: str, build: Callable[[World], bytes], **held: Any) -> Case:
        return Case(name=name, title=title, spec="5.4.4", build=build, code=code, **held)

    def signed(**attest: Any) -> Callable[[World], bytes]:
        return lambda w: w.snp(w.tpm.quote(NONCE, **attest))

    def with_message(change: Callable[[bytes], bytes]) -> Callable[[World], bytes]:
        def build(world: World) -> bytes:
            message = change(world.tpm.attest(NONCE))
            quote = {**world.tpm.quote(), "message": message.hex(), "signature": world.tpm.sign(message).hex()}
            return world.snp(quote)

        return build

    def with_signature(change: Callable[[bytes], bytes]) -> Callable[[World], bytes]:
        def build(world: World) -> bytes:
            quote = world.tpm.quote(NONCE)
            return world.snp({**quote, "signature": change(bytes.fromhex(quote["signature"])).hex()})

        return build

    def given(values: list[str]) -> Callable[[World], bytes]:
        return lambda w: w.snp({**w.tpm.quote(NONCE), "pcrs": values})

    yield case(
        "501-quote-of-another-machine", "the quote of another machine", "signature_invalid", _quote_of_genoa, real=MILAN
    )
    yield case("502-other-ak", "another key signed", "signature_invalid", lambda w: w.snp(w.other_tpm.quote(NONCE)))
    yield case(
        "503-qualifying-data-replaced",
        "the qualifying data was replaced after signing",
        "signature_invalid",
        lambda w: w.snp({**w.tpm.quote(b"old"), "message": w.tpm.attest(NONCE).hex()}),
    )
    yield case(
        "504-signature-flipped",
        "one bit of the signature is another",
        "signature_invalid",
        with_signature(lambda signature: signature[:-1] + bytes([signature[-1] ^ 1])),
    )
    yield case("505-signature-zero", "a signature of zeros", "signature_invalid", with_signature(lambda _: bytes(256)))
    yield case("506-signature-empty", "no signature", malformed, with_signature(lambda _: b""))
    yield case("507-signature-short", "a byte of the signature is missing", "algorithm_not_allowed", _short_signature)
    yield case(
        "508-magic",
        "not made by the TPM itself: any text can be signed so",
        malformed,
        signed(magic=b"\xffTCH"),
    )
    yield case("509-certify", "a TPM2_Certify by the same key", "evidence_kind_mismatch", signed(kind=0x8017))
    yield case("510-cut-off", "the last byte is missing", malformed, with_message(lambda message: message[:-1]))
    yield case("511-byte-behind", "a byte stands behind the structure", malformed, with_message(lambda m: m + b"\0"))
    yield case(
        "512-extra-data-endless",
        "qualifying data that says it has 65535 bytes",
        malformed,
        with_message(lambda message: message[:42] + b"\xff\xff" + message[44:]),
    )
    yield case(
        "513-banks-endless", "2^32-1 banks are selected", malformed, signed(selections=b"\xff" * 4 + b"\x00\x0b\x03")
    )
    yield case(
        "514-bank-twice",
        "the same bank is selected twice",
        malformed,
        signed(selections=bytes.fromhex("00000002 000b 03 ffffff 000b 03 ffffff")),
    )
    yield case(
        "515-bank-unknown",
        "a bank of a digest that nobody knows",
        "algorithm_not_allowed",
        signed(selections=bytes.fromhex("00000001 0099 03 ffffff")),
    )
    yield case(
        "516-register-above-23",
        "32 registers are selected",
        malformed,
        signed(selections=bytes.fromhex("00000001 000b 04 ffffffff")),
    )
    yield case(
        "517-signature-sha1",
        "RSASSA with SHA-1",
        "algorithm_not_allowed",
        lambda w: signed_quote(w, w.tpm.attest(), digest=SHA1),
    )
    yield case(
        "518-signature-ecdsa",
        "a TPMT_SIGNATURE of ECDSA",
        "algorithm_not_allowed",
        with_signature(lambda _: Struct(">HHH").pack(0x0018, 0x000B, 32) + bytes(32)),
    )
    yield case(
        "519-signature-hmac",
        "a TPMT_SIGNATURE of HMAC, keyed with the public key",
        "algorithm_not_allowed",
        with_signature(lambda _: Struct(">HH").pack(0x0005, 0x000B) + bytes(32)),
    )
    mismatch = "pcr_digest_mismatch"
    yield case("521-register-changed", "one register is another", mismatch, _other_register, real=MILAN)
    pcrs = [value.hex() for value in PCRS.values()]
    joined = "".join(pcrs)
    wrong = {
        "522-register-missing": ("one register is not given", pcrs[:-1]),
        "523-registers-missing": ("no register is given", []),
        "524-registers-exchanged": ("two registers are exchanged", [pcrs[1], pcrs[0], *pcrs[2:]]),
        "525-registers-shifted": ("the same bytes are cut elsewhere", [joined[:62], joined[62:128], *pcrs[2:]]),
        "526-registers-in-one": ("the same bytes in one value", [joined]),
    }
    for name, (title, values) in wrong.items():
        yield case(name, title, mismatch, given(values))


def appraisals() -> Iterator[Case]:
    """Genuine quotes that are not wanted."""

    def case(name: str, title: str, code: str, build: Callable[[World], bytes] = World.snp, **held: Any) -> Case:
        return Case(name=name, title=title, spec="5.4.5", build=build, code=code, **held)

    def quoting(data: bytes) -> Callable[[World], bytes]:
        return lambda w: w.snp(w.tpm.quote(data))

    selection = "pcr_selection_not_allowed"
    yield case("601-selection-empty", "no register is quoted", selection, lambda w: w.snp(w.tpm.quote(b"", {})))
    sha1 = {index: bytes([index]) * 20 for index in range(24)}
    yield case("602-sha1", "the SHA-1 bank is quoted", selection, lambda w: w.snp(w.tpm.quote(b"", sha1, bank=SHA1)))
    yield case("603-sha1-beside", "the SHA-1 bank is quoted, too", selection, _two_banks)
    yield case(
        "604-register-not-quoted",
        "PCR7 is not quoted",
        selection,
        lambda w: w.snp(w.tpm.quote(b"", {index: value for index, value in PCRS.items() if index != 7})),
    )
    not_allowed = "register_not_allowed"
    for number, what, title, allowed in (
        (611, "register-not-allowed", "PCR4 is not in its list", {"4": [OTHER]}),
        (612, "list-empty", "the list of a register is empty", {"4": []}),
        (613, "no-register-named", "no list at all, and registers are not skipped", {}),
        (614, "one-of-two-not-allowed", "PCR4 is allowed, PCR11 is not", {"4": [GOOD_PCR4], "11": [OTHER]}),
    ):
        held: dict[str, Any] = {"skip_pcrs": False, "allowed_pcrs": allowed}
        yield case(f"{number}-{what}", title, not_allowed, policy=held)
    yield case(
        "615-allowed-register-not-quoted",
        "a register of the policy is not quoted",
        not_allowed,
        lambda w: w.snp(w.tpm.quote(b"", {index: PCRS[index] for index in range(8)})),
        policy={"skip_pcrs": False, "allowed_pcrs": {"4": [GOOD_PCR4], "11": [PCRS[11].hex()]}},
    )
    data = "report_data_mismatch"
    sha384 = hashlib.sha384(REPORT_DATA).digest()
    for number, what, title, qualifying in (
        (621, "report-data-other", "the qualifying data binds another REPORT_DATA", hashlib.sha384(b"").digest()),
        (622, "report-data-bare", "the qualifying data is REPORT_DATA and no hash of it", REPORT_DATA),
        (
            623,
            "report-data-sha256",
            "the qualifying data is SHA-256 of REPORT_DATA",
            hashlib.sha256(REPORT_DATA).digest(),
        ),
        (624, "report-data-truncated", "the qualifying data is the beginning of the hash", sha384[:32]),
        (625, "report-data-padded", "a zero stands behind the hash", sha384 + b"\0"),
        (626, "report-data-absent", "there is no qualifying data", b""),
    ):
        yield case(f"{number}-{what}", title, data, quoting(qualifying), report_data=REPORT_DATA)
    nonce = "nonce_mismatch"
    yield case(
        "631-nonce-other",
        "another nonce was expected",
        nonce,
        lambda _: json.dumps(real(MILAN)).encode(),
        nonce=NONCE,
        real=MILAN,
    )
    yield case("632-nonce-prefix", "the beginning of the nonce was expected", nonce, nonce=NONCE[:16])
    yield case("633-nonce-padded", "a zero stands behind the nonce", nonce, quoting(NONCE + b"\0"), nonce=NONCE)
    yield case("634-nonce-empty", "an empty nonce makes nothing fresh", nonce, quoting(b""), nonce=b"")
    yield case("635-nonce-hexadecimal", "the nonce was expected in digits", nonce, nonce=NONCE.hex().encode())


def _pem(*ders: bytes) -> str:
    begin, end = "-----BEGIN CERTIFICATE-----\n", "-----END CERTIFICATE-----\n"
    return "".join(f"{begin}{base64.encodebytes(der).decode()}{end}" for der in ders)


def _flipped(world: World) -> bytes:
    hcl = bytearray(world.hcl())
    hcl[32 + 0x2A0] ^= 1
    return azure_document(bytes(hcl), world.tpm.quote(NONCE))


def _other_key_byte(_world: World) -> bytes:
    document = real(MILAN)
    hcl = bytearray(base64.urlsafe_b64decode(document["hcl_report"]))  # noqa: TID251 - a sample
    place = hcl.index(b'"n":"') + 40
    hcl[place] = ord("A") if hcl[place] != ord("A") else ord("B")
    return json.dumps({**document, "hcl_report": base64.urlsafe_b64encode(hcl).decode()}).encode()


def _quote_of_genoa(_world: World) -> bytes:
    quote = real(GENOA)["quote"]
    hexadecimal = {"message": bytes(quote["message"]).hex(), "signature": bytes(quote["signature"]).hex()}
    pcrs = [bytes(value).hex() for value in quote["pcrs"]]
    return json.dumps({**real(MILAN), "tpm_quote": {**hexadecimal, "pcrs": pcrs}}).encode()


def _other_register(_world: World) -> bytes:
    document = real(MILAN)
    document["tpm_quote"]["pcrs"][4] = OTHER
    return json.dumps(document).encode()


def _short_modulus() -> str:
    return base64.urlsafe_b64encode((1 << 1023 | 1).to_bytes(128)).decode().rstrip("=")


def _short_signature(world: World) -> bytes:
    quote = world.tpm.quote(NONCE)
    return world.snp({**quote, "signature": "ffff" + quote["signature"][6:]})


def _two_banks(world: World) -> bytes:
    sha1 = [bytes([index]) * 20 for index in range(24)]
    values = [*sha1, *PCRS.values()]
    message = world.tpm.attest(
        digest=hashlib.sha256(b"".join(values)).digest(),
        selections=bytes.fromhex("00000002 0004 03 ffffff 000b 03 ffffff"),
    )
    quote = {"message": message.hex(), "signature": world.tpm.sign(message).hex()}
    return world.snp({**quote, "pcrs": [value.hex() for value in values]})


def cases() -> dict[str, Case]:
    """Return all cases by name.

    Raises:
        ValueError: two cases have one number.
    """
    families = (
        good(),
        undecided(),
        documents(),
        hcl_reports(),
        hardware(),
        runtime_data(),
        quotes(),
        appraisals(),
    )
    found = {case.name: case for family in families for case in family}
    if len({name[:3] for name in found}) != len(found):
        raise ValueError("two cases have one number")
    return found


def at(case: Case) -> datetime:
    """Return the instant of a case."""
    if case.real is None:
        return AT
    facts: dict[str, Any] = json.loads((sample(case.real) / "facts.json").read_bytes())  # noqa: TID251 - a sample
    return datetime.fromisoformat(facts["verify_at"])


def main(folder: str) -> None:
    """Write the roots and all cases below `folder`, which is made; each run has other keys."""
    root, world = Path(folder), World()
    root.mkdir(parents=True)
    (root / "ark.der").write_bytes(world.amd.ark.public_bytes(Encoding.DER))
    (root / "intel-root.der").write_bytes(INTEL.root.certificate.public_bytes(Encoding.DER))
    (root / "certificates.pem").write_text(_pem(*world.collateral.certificates))
    (root / "tdx-collateral.json").write_bytes(world.collateral.tdx[0])
    for case in cases().values():
        directory = root / case.name
        directory.mkdir()
        (directory / "evidence.bin").write_bytes(case.build(world))
        manifest = {
            "title": case.title,
            "spec": case.spec,
            "expect": {"outcome": case.outcome, "code": case.code},
            "verify_at": at(case).isoformat(),
            "evidence": "evidence.bin",
            "real": case.real,
            "policy": {"azure": case.policy, "snp": case.snp, "tdx": case.tdx},
            "report_data": None if case.report_data is None else case.report_data.hex(),
            "nonce": None if case.nonce is None else case.nonce.hex(),
        }
        (directory / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
