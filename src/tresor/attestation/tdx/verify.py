"""Intel TDX quotes: signed by Intel's quoting enclave on a platform that Intel knows, or not (attestation.md, 5.2.2).

Implements the verification of Intel's "SGX and TDX DCAP Quote Verification Library" for quotes of trust domains:

    (2) PCK chain to a pinned root                  verify_signature -> SignedQuote
    (3) QE report by the PCK
    (4) attestation key by the QE report
    (5) header and body by the attestation key
    (6) collateral: texts, chains, dates, CRLs      verify_collateral -> GenuineCollateral
    (7) collateral is for this platform             verify_tcb -> GenuineTdxQuote
    (8) PCK chain against the CRLs
    (9) QE report and TDX module against Intel's identities
    (10) TCB level
    (11) the same by dcap-qvl, which must agree

A `SignedQuote` is not genuine: until (9) any enclave could have made it.  But what is wrong with it stays wrong, so a
forgery is refused for what it is even where collateral is missing.

dcap-qvl is called in this module only.  It answers with texts, accepts CRLs of the future, and does not judge domains
in debug mode or without SEPT_VE_DISABLE; so each refusal is classified by the checks here, and its part is to agree.

Not looked at: what the domain is and whether its TCB is good enough (`appraise.py`).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import dcap_qvl  # type: ignore[import-untyped]  # the package has stubs and does not say so (PEP 561)
import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from tresor.attestation.codes import AttestationCode
from tresor.attestation.errors import (
    AttestationError,
    EvidenceForgedError,
    EvidenceUndecidedError,
)
from tresor.attestation.evidence import Collateral
from tresor.attestation.tdx.abi import TdxQuote
from tresor.attestation.tdx.collateral import QeIdentity, TcbInfo, TcbStatus, TdxCollateral, parse_collateral
from tresor.attestation.tdx.pck import PckPlatform, parse_pck
from tresor.attestation.tdx.tcb import TcbVerdict, check_module, check_qe, evaluate_tcb
from tresor.attestation.x509 import build_chain, check_crl, load_certificates, validity

__all__ = [
    "GenuineCollateral",
    "GenuineTdxQuote",
    "SignedQuote",
    "pck_certificates",
    "verify_collateral",
    "verify_quote",
    "verify_signature",
    "verify_tcb",
]

_INTEL_QE_VENDOR: Final = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")
_PCK_CHAIN: Final = 5
_TCB_SIGNER: Final = "Intel SGX TCB Signing"

# Domains that dcap-qvl refuses whatever their collateral says: DEBUG and profiling, MIGRATABLE, SERVTD_EXT, reserved
# bits of TDATTRIBUTES, SEPT_VE_DISABLE clear, a service domain bound.
_DCAP_REFUSES: Final = 0x71 | 0x2002_0000 | 0x3FFF_FFFF_0780_FF8E
_SEPT_VE_DISABLE: Final = 1 << 28


@dataclass(frozen=True, slots=True)
class SignedQuote:
    """A quote that some enclave on a genuine platform signed; whether it was Intel's is for the collateral to say.

    Attributes:
        quote: the quote.
        chain: PCK certificate, its issuer, pinned root.
        platform: what the PCK certificate says.
    """

    quote: TdxQuote
    chain: tuple[x509.Certificate, ...]
    platform: PckPlatform


@dataclass(frozen=True, slots=True)
class GenuineCollateral:
    """Collateral that Intel signed and that is in force.

    Attributes:
        collateral: the collateral.
        valid_from: instant from which all of it is in force.
        valid_until: likewise, the end.
    """

    collateral: TdxCollateral
    valid_from: datetime
    valid_until: datetime


@dataclass(frozen=True, slots=True)
class GenuineTdxQuote:
    """A quote of Intel's quoting enclave; nothing says yet that its content or TCB is wanted.

    Attributes:
        quote: the quote.
        platform: what the PCK certificate says of the platform.
        collateral: what it was held against.
        tcb: what that says of the platform.
        seconded: dcap-qvl came to the same verdict; false for domains that it refuses to judge.
        valid_from: instant from which certificates and collateral are all in force.
        valid_until: likewise, the end.
    """

    quote: TdxQuote
    platform: PckPlatform
    collateral: TdxCollateral
    tcb: TcbVerdict
    seconded: bool
    valid_from: datetime
    valid_until: datetime


def verify_quote(
    quote: TdxQuote, *, collateral: Collateral, roots: Sequence[x509.Certificate], now: datetime
) -> GenuineTdxQuote:
    """Verify that Intel's quoting enclave signed `quote` on a platform that Intel knows: steps (2) to (11).

    Args:
        quote: what `parse_quote` read.
        collateral: a bag in which the collateral for this platform is looked for.
        roots: pinned roots of Intel.
        now: instant at which certificates and collateral must be in force (aware, UTC).

    Raises:
        EvidenceMalformedError: a certificate or the collateral cannot be read.
        EvidenceForgedError: a signature, chain, date or identity does not hold, or a certificate is revoked.
        EvidenceUndecidedError: no PCK certificate, or no collateral for its platform, and nothing else is wrong.
    """
    return verify_tcb(verify_signature(quote, roots=roots, now=now), collateral=collateral, roots=roots, now=now)


def pck_certificates(quote: TdxQuote) -> tuple[x509.Certificate, ...]:
    """Return the certificates that came with a quote, leaf first and unverified.

    Raises:
        EvidenceMalformedError: they cannot be read.
        EvidenceUndecidedError: the quote names its PCK without holding the certificate.
    """
    if quote.certification_type != _PCK_CHAIN:
        raise EvidenceUndecidedError(
            AttestationCode.ENDORSEMENT_MISSING,
            f"certification data of type {quote.certification_type} holds no PCK certificate chain, want {_PCK_CHAIN}",
        )
    return tuple(load_certificates(quote.certification_data.rstrip(b"\0")))


def verify_signature(quote: TdxQuote, *, roots: Sequence[x509.Certificate], now: datetime) -> SignedQuote:
    """Verify a quote as far as it goes without collateral: steps (2) to (5).

    Raises:
        EvidenceMalformedError: a certificate cannot be read.
        EvidenceForgedError: no chain to a pinned root, or a signature that does not hold.
        EvidenceUndecidedError: a certificate is missing.
    """
    if quote.qe_vendor_id != _INTEL_QE_VENDOR:
        raise EvidenceForgedError(
            AttestationCode.QE_IDENTITY_MISMATCH, f"QE vendor is {quote.qe_vendor_id.hex()}, want Intel's"
        )
    leaf, *rest = pck_certificates(quote)
    chain = build_chain(leaf, rest, roots=roots, now=now)  # (2)
    _verify_ecdsa(  # (3)
        _p256(leaf), quote.qe_report_signature, quote.qe_report_signed, AttestationCode.QE_REPORT_INVALID, "QE report"
    )
    bound = hashlib.sha256(quote.attestation_key + quote.qe_authentication_data).digest() + bytes(32)
    if quote.qe_report.report_data != bound:  # (4)
        raise EvidenceForgedError(
            AttestationCode.KEY_NOT_BOUND, "REPORT_DATA of the quoting enclave does not bind the attestation key"
        )
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + quote.attestation_key)
    except ValueError as error:
        raise EvidenceForgedError(AttestationCode.SIGNATURE_INVALID, "attestation key is no point of P-256") from error
    _verify_ecdsa(key, quote.signature, quote.signed, AttestationCode.SIGNATURE_INVALID, "TDX quote")  # (5)
    return SignedQuote(quote, chain, parse_pck(leaf))


def _p256(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey:
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceForgedError(
            AttestationCode.ALGORITHM_NOT_ALLOWED,
            f"the key of {certificate.subject.rfc4514_string()} is not on P-256",
        )
    return key


def _verify_ecdsa(
    key: ec.EllipticCurvePublicKey, signature: bytes, signed: bytes, code: AttestationCode, what: str
) -> None:
    """Verify ECDSA P-256 with SHA-256; r and s are 32 bytes each, big endian."""
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:])
    try:
        key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise EvidenceForgedError(code, f"signature of the {what} does not verify") from error


def verify_collateral(
    collateral: TdxCollateral, *, roots: Sequence[x509.Certificate], now: datetime
) -> GenuineCollateral:
    """Verify that Intel signed collateral and that all of it is in force: step (6).

    Which platform it is for is not looked at.

    Raises:
        EvidenceForgedError: a signature, chain, date or CRL does not hold, or a signer is revoked.
        EvidenceUndecidedError: a certificate is missing.
    """
    document = collateral.document
    dated: dict[str, TcbInfo | QeIdentity] = {
        "TCB information": collateral.tcb_info,
        "QE identity": collateral.qe_identity,
    }
    for name, content in dated.items():
        if now < content.issue_date:
            raise EvidenceForgedError(
                AttestationCode.COLLATERAL_NOT_YET_VALID,
                f"{name} was issued at {content.issue_date.isoformat()}, asked for {now.isoformat()}",
            )
        if now > content.next_update:
            raise EvidenceForgedError(
                AttestationCode.COLLATERAL_EXPIRED,
                f"{name} ended at {content.next_update.isoformat()}, asked for {now.isoformat()}",
            )
    chains = [
        _verify_text(text, signature, certificates, roots, now)
        for text, signature, certificates in (
            (document.tcb_info, document.tcb_info_signature, collateral.tcb_info_chain),
            (document.qe_identity, document.qe_identity_signature, collateral.qe_identity_chain),
        )
    ]
    issuer, *rest = collateral.pck_crl_chain
    chains.append(build_chain(issuer, rest, roots=roots, now=now))
    for chain in chains:
        check_crl(collateral.root_ca_crl, chain[:-1], issuer=chain[-1], now=now)
    check_crl(collateral.pck_crl, (), issuer=issuer, now=now)
    crls = (collateral.root_ca_crl, collateral.pck_crl)
    spans = [validity(chain) for chain in chains]
    return GenuineCollateral(
        collateral,
        valid_from=max(
            *(start for start, _ in spans),
            *(content.issue_date for content in dated.values()),
            *(crl.last_update_utc for crl in crls),
        ),
        valid_until=min(
            *(end for _, end in spans),
            *(content.next_update for content in dated.values()),
            *(crl.next_update_utc for crl in crls if crl.next_update_utc is not None),
        ),
    )


def _verify_text(
    text: str,
    signature: str,
    certificates: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    now: datetime,
) -> tuple[x509.Certificate, ...]:
    """Verify one signed text of collateral; its signer must have that role, for a PCK chains to the same root."""
    signer, *rest = certificates
    chain = build_chain(signer, rest, roots=roots, now=now)
    names = [name.value for name in signer.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    if names != [_TCB_SIGNER]:
        raise EvidenceForgedError(
            AttestationCode.CHAIN_INVALID, f"{signer.subject.rfc4514_string()} may not sign collateral"
        )
    _verify_ecdsa(
        _p256(signer),
        bytes.fromhex(signature),
        text.encode(),
        AttestationCode.COLLATERAL_SIGNATURE_INVALID,
        "collateral",
    )
    return chain


def verify_tcb(
    signed: SignedQuote, *, collateral: Collateral, roots: Sequence[x509.Certificate], now: datetime
) -> GenuineTdxQuote:
    """Hold a signed quote against Intel's collateral for its platform: steps (6) to (11).

    Of several documents that are genuine and in force the one of the highest TCB evaluation counts, and the CRLs of
    all.

    Raises:
        EvidenceMalformedError: collateral cannot be read, and none that can is for this platform.
        EvidenceForgedError: likewise for collateral that does not verify; or a revoked certificate, an enclave or
            module that is not Intel's, or a second verifier that comes to another verdict.
        EvidenceUndecidedError: there is no collateral for this platform.
    """
    genuine: list[GenuineCollateral] = []
    errors: list[AttestationError] = []
    others: list[str] = []
    for data in collateral.tdx:
        try:
            parsed = parse_collateral(data)
            if parsed.fmspc == signed.platform.fmspc:  # (7)
                genuine.append(verify_collateral(parsed, roots=roots, now=now))
            else:
                others.append(parsed.fmspc.hex())
        except AttestationError as error:
            errors.append(error)
    if not genuine:
        if errors:
            raise errors[0]
        raise EvidenceUndecidedError(
            AttestationCode.COLLATERAL_MISSING,
            f"no collateral for FMSPC {signed.platform.fmspc.hex()}, only for {', '.join(others) or 'no platform'}",
        )
    pck, issuer, *_ = signed.chain
    for candidate in genuine:  # (8)
        check_crl(candidate.collateral.root_ca_crl, signed.chain[:-1], issuer=signed.chain[-1], now=now)
        check_crl(candidate.collateral.pck_crl, (pck,), issuer=issuer, now=now)
    best = max(
        genuine, key=lambda item: (item.collateral.tcb_evaluation_data_number, item.collateral.tcb_info.issue_date)
    )
    return _judge(signed, best, now)


def _judge(signed: SignedQuote, genuine: GenuineCollateral, now: datetime) -> GenuineTdxQuote:
    quote, collateral = signed.quote, genuine.collateral
    if signed.platform.pceid != bytes.fromhex(collateral.tcb_info.pce_id):
        raise EvidenceForgedError(
            AttestationCode.COLLATERAL_MISMATCH,
            f"PCEID is {signed.platform.pceid.hex()}, collateral is for {collateral.tcb_info.pce_id}",
        )
    check_qe(quote.qe_report, collateral.qe_identity)  # (9)
    check_module(quote.body, collateral.tcb_info)
    tcb = evaluate_tcb(quote.body, quote.qe_report, signed.platform, collateral)  # (10)
    seconded = _second(signed, collateral, tcb, now)  # (11)
    start, end = validity(signed.chain)
    return GenuineTdxQuote(
        quote=quote,
        platform=signed.platform,
        collateral=collateral,
        tcb=tcb,
        seconded=seconded,
        valid_from=max(start, genuine.valid_from),
        valid_until=min(end, genuine.valid_until),
    )


class _DcapTcb(msgspec.Struct, frozen=True):
    status: str
    advisory_ids: frozenset[str]
    eval_data_number: int


class _DcapClaims(msgspec.Struct, frozen=True):
    tcb: _DcapTcb


def _second(signed: SignedQuote, collateral: TdxCollateral, tcb: TcbVerdict, now: datetime) -> bool:
    """Have dcap-qvl verify it all again; return whether it did, for some domains it does not judge.

    Raises:
        EvidenceForgedError: it refuses what it should judge, or its verdict is another one.
    """
    document, body = collateral.document, signed.quote.body
    now_s = int(now.timestamp())
    judged = (
        tcb.status not in {TcbStatus.REVOKED, TcbStatus.NOT_SUPPORTED}
        and not body.attributes & _DCAP_REFUSES
        and bool(body.attributes & _SEPT_VE_DISABLE)
        and not any(body.mrservicetd or b"")
    )
    try:
        claims = dcap_qvl.QuoteVerifier(signed.chain[-1].public_bytes(Encoding.DER)).verify_with_policy(
            signed.quote.raw,
            dcap_qvl.QuoteCollateralV3(
                document.pck_crl_issuer_chain,
                bytes.fromhex(document.root_ca_crl),
                bytes.fromhex(document.pck_crl),
                document.tcb_info_issuer_chain,
                document.tcb_info,
                bytes.fromhex(document.tcb_info_signature),
                document.qe_identity_issuer_chain,
                document.qe_identity,
                bytes.fromhex(document.qe_identity_signature),
            ),
            now_s,
            dcap_qvl.QuotePolicy.claims_only(now_s),
        )
    except ValueError as error:
        if judged:
            raise EvidenceForgedError(
                AttestationCode.VERIFIERS_DISAGREE, f"dcap-qvl refuses what all checks here accept: {error}"
            ) from error
        return False
    second = msgspec.json.decode(claims.to_json(), type=_DcapClaims).tcb
    ours = _DcapTcb(tcb.status, frozenset(tcb.advisories), collateral.tcb_evaluation_data_number)
    if second != ours:
        raise EvidenceForgedError(
            AttestationCode.VERIFIERS_DISAGREE, f"TCB is {ours.status} here and {second.status} to dcap-qvl"
        )
    return True
