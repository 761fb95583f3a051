"""TDX vectors about the quote: good ones, its form, and the signatures in it."""

import dataclasses
import struct
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec
from tdx_case import COLLATERAL, QUOTE, Case, accepted, rejected, undecided

from support.fake_intel import (
    AT,
    INTEL,
    QE_VENDOR,
    Intel,
    Platform,
    body,
    make_quote,
    qe_identity,
    raw_signature,
    sgx_extension,
    tcb_info,
)

SIGNED: Final = 48 + 584
SIGNATURE: Final = SIGNED + 4
ATTESTATION_KEY: Final = SIGNATURE + 64
CERTIFICATION: Final = ATTESTATION_KEY + 64
QE_REPORT: Final = CERTIFICATION + 6
AUTHENTICATION: Final = QE_REPORT + 384 + 64
ORDER: Final = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
TDX_1_5: Final = body(tee_tcb_svn2=bytes([6, 1, 3]) + bytes(13), mrservicetd=bytes(48))
OTHER: Final = Intel(platform=Platform(fmspc=bytes.fromhex("0a0b0c0d0e0f")))


def at(offset: int, data: bytes, quote: bytes = QUOTE) -> bytes:
    """Return a quote with other bytes at an offset, signed as before."""
    return quote[:offset] + data + quote[offset + len(data) :]


def flip(offset: int, quote: bytes = QUOTE) -> bytes:
    """Return a quote with one bit changed."""
    return at(offset, bytes([quote[offset] ^ 1]), quote)


def header(version: int = 4, key_type: int = 2, tee_type: int = 0x81, vendor: bytes = QE_VENDOR) -> bytes:
    """Return a header."""
    return struct.pack("<HHI4x16s20s", version, key_type, tee_type, vendor, b"")


def good() -> Iterator[Case]:
    """Make quotes that are accepted."""
    yield accepted("001-good", "a good quote of version 4", "5.2")
    yield accepted("002-version-5", "a quote of version 5 about TDX 1.0", "5.2.1", quote=INTEL.quote(version=5))
    yield accepted(
        "003-tdx-1-5", "a quote of version 5 about TDX 1.5", "5.2.1", quote=INTEL.quote(version=5, td=TDX_1_5)
    )
    yield accepted(
        "004-zero-padding", "zeros up to 8000 bytes behind the quote", "5.2.1", quote=QUOTE.ljust(8000, b"\0")
    )
    both = (OTHER.collateral(), COLLATERAL)
    yield accepted("005-two-platforms", "collateral of two platforms", "5.2.4", collateral=both, dcap=None)
    old = INTEL.collateral(tcb=tcb_info(tcbEvaluationDataNumber=17))
    yield accepted(
        "006-two-evaluations",
        "an older evaluation beside one that is new enough",
        "5.2.4",
        collateral=(old, COLLATERAL),
        policy={"min_tcb_evaluation_data_number": 18},
    )
    last = AT + timedelta(days=29, seconds=-1)
    yield accepted("007-last-second", "the last second of the collateral", "5.2.4", at=last)
    yield accepted(
        "008-qe-identity-3",
        "QE identity of version 3",
        "5.2.4",
        collateral=(INTEL.collateral(qe=qe_identity(version=3)),),
    )
    processor = dataclasses.replace(INTEL.platform, flags=None)
    leaf = INTEL.issue("Intel SGX PCK Certificate", INTEL.processor_ca, extension=sgx_extension(processor))
    pem = INTEL.pem(leaf, INTEL.processor_ca, INTEL.root).encode()
    yield accepted(
        "009-processor-ca",
        "a platform of one package, whose certificate states no flags",
        "5.2.2",
        quote=make_quote(pck=leaf, certification=(5, pem)),
        collateral=(
            INTEL.collateral(
                pck_crl=INTEL.crl(INTEL.processor_ca), pck_crl_issuer_chain=INTEL.pem(INTEL.processor_ca, INTEL.root)
            ),
        ),
        policy={"allow_dynamic_platform": False, "allow_cached_keys": False, "allow_smt": False},
    )
    r, s = QUOTE[SIGNATURE : SIGNATURE + 32], int.from_bytes(QUOTE[SIGNATURE + 32 : ATTESTATION_KEY])
    yield accepted(
        "010-twin-signature",
        "the other signature of the same bytes, which anybody can compute: the same quote by its signed digest",
        "5.2.1",
        quote=at(SIGNATURE, r + (ORDER - s).to_bytes(32)),
    )


def forms() -> Iterator[Case]:
    """Make quotes that are not well-formed, or not of a trust domain."""
    malformed = "evidence_malformed"
    yield rejected("101-empty", "no bytes", "5.2.1", malformed, quote=b"")
    yield rejected("102-last-byte-missing", "the last byte is missing", "5.2.1", malformed, quote=QUOTE[:-1])
    behind = INTEL.quote(tail=b"\0" * 99 + b"x")
    yield rejected("103-bytes-behind", "bytes behind that are not zero", "5.2.1", malformed, quote=behind, dcap=True)
    kind = "evidence_kind_mismatch"
    yield rejected("104-version-3", "version 3, which is SGX only", "5.2.1", kind, quote=at(0, b"\3"))
    unsupported = "evidence_version_unsupported"
    yield rejected("105-version-6", "version 6", "5.2.1", unsupported, quote=INTEL.quote(header=header(6)))
    yield rejected("106-sgx", "TEE type of SGX", "5.2.1", kind, quote=INTEL.quote(header=header(tee_type=0)))
    yield rejected("107-tee-type", "unknown TEE type", "5.2.1", malformed, quote=INTEL.quote(header=header(tee_type=1)))
    yield rejected(
        "108-key-type",
        "attestation key on P-384",
        "5.2.1",
        "algorithm_not_allowed",
        quote=INTEL.quote(header=header(key_type=3)),
    )
    for number, title, code, kind_of_body, size in (
        (109, "body-type", unsupported, 4, 584),
        (110, "body-size", malformed, 2, 648),
        (111, "sgx-body", kind, 1, 384),
    ):
        yield rejected(
            f"{number}-{title}",
            f"version 5 with a body of type {kind_of_body} and {size} bytes",
            "5.2.1",
            code,
            quote=INTEL.quote(version=5, descriptor=struct.pack("<HI", kind_of_body, size)),
        )
    length = int.from_bytes(QUOTE[SIGNED:SIGNATURE], "little")
    for number, change in ((112, 1), (113, -1)):
        yield rejected(
            f"{number}-signature-data-length",
            f"signature data said to be {abs(change)} byte {'longer' if change > 0 else 'shorter'} than it is",
            "5.2.1",
            malformed,
            quote=at(SIGNED, (length + change).to_bytes(4, "little")),
        )
    yield rejected(
        "114-certification-type",
        "no QE report in the quote",
        "5.2.1",
        malformed,
        quote=INTEL.quote(outer_type=5),
        dcap=True,
    )
    outer = int.from_bytes(QUOTE[CERTIFICATION + 2 : QE_REPORT], "little")
    yield rejected(
        "115-certification-length",
        "certification data that leaves bytes over",
        "5.2.1",
        malformed,
        quote=at(CERTIFICATION + 2, (outer - 1).to_bytes(4, "little")),
    )
    yield rejected(
        "116-authentication-length",
        "QE authentication data said to reach past the end",
        "5.2.1",
        malformed,
        quote=at(AUTHENTICATION, b"\xff\xff"),
    )
    yield rejected(
        "117-too-large",
        "padded to more than 64 KiB",
        "5.2.1",
        "evidence_too_large",
        quote=QUOTE.ljust(65537, b"\0"),
        dcap=True,
    )
    yield rejected(
        "118-qe-vendor",
        "a quoting enclave of another vendor",
        "5.2.2",
        "qe_identity_mismatch",
        quote=INTEL.quote(header=header(vendor=bytes(16))),
    )
    yield undecided(
        "119-no-certificates",
        "a quote that names its PCK and has no certificate of it",
        "5.2.2",
        "endorsement_missing",
        quote=INTEL.quote(certification=(3, bytes(404))),
        dcap=False,
    )
    bare = INTEL.issue("Intel SGX PCK Certificate", INTEL.platform_ca)
    yield rejected(
        "120-no-sgx-extensions",
        "PCK certificate without SGX extensions",
        "5.2.2",
        "certificate_extension_missing",
        quote=INTEL.quote(pck=bare, certification=(5, INTEL.pem(bare, INTEL.platform_ca, INTEL.root).encode())),
    )
    partial = INTEL.issue(
        "Intel SGX PCK Certificate", INTEL.platform_ca, extension=sgx_extension(INTEL.platform, without=b"\x04")
    )
    yield rejected(
        "121-no-fmspc",
        "PCK certificate without FMSPC",
        "5.2.2",
        "certificate_malformed",
        quote=INTEL.quote(pck=partial, certification=(5, INTEL.pem(partial, INTEL.platform_ca, INTEL.root).encode())),
    )
    yield rejected(
        "122-certificates-unreadable",
        "certification data that is no certificate",
        "5.2.2",
        "certificate_malformed",
        quote=INTEL.quote(certification=(5, b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")),
    )


def signatures() -> Iterator[Case]:
    """Make quotes with a signature or a binding that does not hold."""
    invalid = "signature_invalid"
    yield rejected("201-report-data", "REPORT_DATA changed", "5.2.2", invalid, quote=flip(SIGNED - 64))
    yield rejected("202-mrtd", "MRTD changed", "5.2.2", invalid, quote=flip(184))
    yield rejected("203-user-data", "user data of the header changed", "5.2.2", invalid, quote=flip(47))
    yield rejected("204-signature", "signature changed", "5.2.2", invalid, quote=flip(SIGNATURE + 40))
    yield rejected("205-zero-signature", "r and s zero", "5.2.2", invalid, quote=at(SIGNATURE, bytes(64)))
    yield rejected("206-qe-report", "QE report changed", "5.2.2", "qe_report_invalid", quote=flip(QE_REPORT + 64))
    yield rejected(
        "207-qe-report-signature",
        "signature of the QE report changed",
        "5.2.2",
        "qe_report_invalid",
        quote=flip(QE_REPORT + 384 + 10),
    )
    stranger = Intel(world="stranger")
    yield rejected(
        "208-other-pck",
        "QE report signed by a PCK other than the certified one",
        "5.2.2",
        "qe_report_invalid",
        quote=INTEL.quote(pck=stranger.pck),
    )
    unbound = "key_not_bound"
    yield rejected(
        "209-key-not-bound", "a QE report that binds no key", "5.2.2", unbound, quote=INTEL.quote(bound=bytes(64))
    )
    ours = ec.derive_private_key(4711, ec.SECP256R1())
    public = ours.public_key().public_numbers()
    swapped = at(ATTESTATION_KEY, public.x.to_bytes(32) + public.y.to_bytes(32))
    yield rejected(
        "210-own-key",
        "an attestation key of the forger's own, with a good signature by it",
        "5.2.2",
        unbound,
        quote=at(SIGNATURE, raw_signature(swapped[:SIGNED], ours), swapped),
    )
    yield rejected(
        "211-authentication-data", "QE authentication data changed", "5.2.2", unbound, quote=flip(AUTHENTICATION + 2)
    )
    yield rejected(
        "212-forged-without-collateral",
        "REPORT_DATA changed, and no collateral: forged all the same",
        "5.2.2",
        invalid,
        quote=flip(SIGNED - 1),
        collateral=(),
        dcap=None,
    )
