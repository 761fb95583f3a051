"""Certificates and revocation lists: strict loading, chains to a pinned root, each rule by itself."""

import contextlib
import warnings
from base64 import encodebytes
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from support.evidence import sample
from support.fake_amd import AT, fake_amd
from tresor.attestation.errors import EvidenceForgedError, EvidenceMalformedError, EvidenceUndecidedError
from tresor.attestation.x509 import (
    MAX_CHAIN,
    build_chain,
    check_crl,
    load_certificate,
    load_certificates,
    load_crl,
    readable_certificates,
    split_certificates,
    validity,
)

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


def name_of(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def issue(
    name: str,
    by: Authority | None = None,
    *,
    ca: bool | None = True,
    path_length: int | None = None,
    may_sign: bool | None = True,
    not_before: datetime = NOW - DAY,
    not_after: datetime = NOW + DAY,
    key: ec.EllipticCurvePrivateKey | None = None,
    private_oid: str | None = None,
) -> Authority:
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name_of(name))
        .issuer_name(name_of(name) if by is None else by.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )
    if ca is not None:
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
    if may_sign is not None:
        bits = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        usage = dict.fromkeys((*bits, "encipher_only", "decipher_only"), False)
        builder = builder.add_extension(x509.KeyUsage(**usage, key_cert_sign=may_sign, crl_sign=True), critical=True)
    if private_oid is not None:
        extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(private_oid), b"\x05\x00")
        builder = builder.add_extension(extension, critical=True)
    return Authority(builder.sign(key if by is None else by.key, hashes.SHA256()), key)


ROOT = issue("root")
MIDDLE = issue("middle", ROOT)
LEAF = issue("leaf", MIDDLE, ca=False)


def chain_of(leaf: Authority, *pool: Authority, roots: tuple[Authority, ...] = (ROOT,), **more: Any) -> int:
    return len(
        build_chain(
            leaf.certificate,
            [authority.certificate for authority in pool],
            roots=[authority.certificate for authority in roots],
            **({"now": NOW} | more),
        )
    )


def code_of(function: Callable[[], object]) -> str:
    try:
        function()
    except (EvidenceForgedError, EvidenceMalformedError, EvidenceUndecidedError) as error:
        return error.code
    return "accepted"


# --- Chains ---------------------------------------------------------------------------------------------------------


def test_a_chain_is_found_in_any_order_among_strangers() -> None:
    stranger = issue("stranger")
    assert chain_of(LEAF, stranger, LEAF, ROOT, MIDDLE, stranger) == 3
    assert chain_of(MIDDLE) == 2
    assert chain_of(ROOT) == 1


def test_names_are_not_unique() -> None:
    namesake = issue("middle", issue("root"))
    assert chain_of(LEAF, namesake, MIDDLE) == 3
    assert code_of(lambda: chain_of(LEAF, namesake)) == "chain_invalid"


def test_a_renewed_issuer_with_the_same_key_counts() -> None:
    old = issue("middle", ROOT, key=MIDDLE.key, not_after=NOW - timedelta(hours=1))
    assert chain_of(LEAF, old, MIDDLE) == 3
    assert code_of(lambda: chain_of(LEAF, old)) == "certificate_expired"


def test_roots_are_pinned_by_their_bytes() -> None:
    twin = issue("root", key=ROOT.key)  # name and key are the root's, the certificate is not
    assert code_of(lambda: chain_of(LEAF, MIDDLE, roots=())) == "root_not_pinned"
    assert code_of(lambda: chain_of(twin)) == "root_not_pinned"
    own = issue("leaf", own_root := issue("root"))
    assert code_of(lambda: chain_of(own, own_root)) == "root_not_pinned"
    assert code_of(lambda: chain_of(issue("leaf", other := issue("other")), other)) == "root_not_pinned"


def test_a_missing_issuer_is_no_verdict() -> None:
    with pytest.raises(EvidenceUndecidedError) as caught:
        chain_of(LEAF)
    assert caught.value.code == "endorsement_missing"


@pytest.mark.parametrize(
    ("middle", "code"),
    [
        ({"ca": False}, "chain_invalid"),
        ({"ca": None}, "chain_invalid"),
        ({"may_sign": False}, "chain_invalid"),
        ({"may_sign": None}, "accepted"),
        ({"path_length": 0}, "accepted"),
        ({"not_before": NOW + timedelta(seconds=1)}, "certificate_not_yet_valid"),
        ({"not_after": NOW - timedelta(seconds=1)}, "certificate_expired"),
        ({"not_before": NOW, "not_after": NOW}, "accepted"),
        ({"private_oid": "1.3.6.1.4.1.99999.1"}, "chain_invalid"),
    ],
)
def test_rules_for_an_issuer(middle: dict[str, Any], code: str) -> None:
    issuer = issue("middle", ROOT, **middle)
    assert code_of(lambda: chain_of(issue("leaf", issuer, ca=False), issuer)) == code


def test_path_length_counts_what_stands_below() -> None:
    above = issue("above", ROOT, path_length=0)
    between = issue("between", above)
    assert code_of(lambda: chain_of(issue("leaf", between, ca=False), above, between)) == "chain_invalid"


def test_private_critical_extensions_are_understood_by_name() -> None:
    oid = "1.3.6.1.4.1.99999.1"
    for marked in (issue("leaf", MIDDLE, private_oid=oid), issue("own", private_oid=oid)):
        roots = (ROOT,) if marked.certificate.issuer != marked.certificate.subject else (marked,)
        assert code_of(lambda: chain_of(marked, MIDDLE, roots=roots)) == "chain_invalid"  # noqa: B023 - called at once
        assert chain_of(marked, MIDDLE, roots=roots, understood={oid}) >= 1


def test_a_chain_has_an_end() -> None:
    authorities = [ROOT]
    for number in range(MAX_CHAIN):
        authorities.append(issue(f"issuer {number}", authorities[-1]))
    assert chain_of(authorities[MAX_CHAIN - 1], *authorities) == MAX_CHAIN
    assert code_of(lambda: chain_of(authorities[MAX_CHAIN], *authorities)) == "chain_invalid"


def test_a_circle_has_an_end() -> None:
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [issue("a", key=keys[0]), issue("b", key=keys[1])]
    first, second = issue("a", names[1], key=keys[0]), issue("b", names[0], key=keys[1])
    assert code_of(lambda: chain_of(issue("leaf", first), first, second)) == "endorsement_missing"


def test_validity_is_what_all_have_in_common() -> None:
    short = issue("short", not_before=NOW - timedelta(hours=1), not_after=NOW + timedelta(hours=1))
    assert validity([ROOT.certificate, short.certificate]) == (NOW - timedelta(hours=1), NOW + timedelta(hours=1))


# --- Loading --------------------------------------------------------------------------------------------------------


def pem_of(der: bytes) -> bytes:
    return b"-----BEGIN CERTIFICATE-----\n" + encodebytes(der) + b"-----END CERTIFICATE-----\n"


@pytest.mark.parametrize(
    "der",
    [
        b"",
        LEAF.der + b"\0",
        LEAF.der[:-1],
        b"\0" * 100,
        LEAF.der + LEAF.der,
        pem_of(LEAF.der),
        bytes(16 * 1024 + 1),
        LEAF.der.replace(b"\0" + LEAF.certificate.signature, b"\1" + LEAF.certificate.signature),  # unused bits
    ],
)
def test_not_one_der_certificate(der: bytes) -> None:
    assert code_of(lambda: load_certificate(der)) == "certificate_malformed"


def test_pem_is_split_without_looking_inside() -> None:
    vcek = (sample("snp/genoa-v5-vcek") / "vcek.der").read_bytes()
    text = b"a comment\n" + pem_of(LEAF.der) + pem_of(vcek).replace(b"\n", b"\r\n") + b"another\n"
    assert split_certificates(text) == [LEAF.der, vcek]
    assert split_certificates(LEAF.der) == [LEAF.der]
    assert [certificate.subject for certificate in load_certificates(pem_of(LEAF.der))] == [LEAF.certificate.subject]


@pytest.mark.parametrize(
    "text",
    [
        pem_of(LEAF.der)[:-30],
        pem_of(LEAF.der).replace(b"MII", b"M!I", 1),
        pem_of(LEAF.der) * 65,
        pem_of(b"x") + b"-----BEGIN CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nTQ\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\n" * 64 + b"A" * 1_000_000,
    ],
)
def test_pem_that_is_none(text: bytes) -> None:
    assert code_of(lambda: split_certificates(text)) == "certificate_malformed"


def test_readable_ones_are_picked_out_of_a_bag() -> None:
    vcek = (sample("snp/genoa-v5-vcek") / "vcek.der").read_bytes()
    assert readable_certificates([b"", LEAF.der, vcek, ROOT.der + b"\0", ROOT.der]) == [
        LEAF.certificate,
        ROOT.certificate,
    ]


@pytest.mark.parametrize("serial", [b"\x02\x01\x00", b"\x02\x01\x80", b"\x02\x02\xff\x00"])
@pytest.mark.parametrize("action", ["error", "ignore", "default"])
def test_serial_numbers_are_positive_under_every_filter(serial: bytes, action: Any) -> None:
    vcek = (sample("snp/genoa-v5-vcek") / "vcek.der").read_bytes()
    assert vcek[8:16] == b"\xa0\x03\x02\x01\x02\x02\x01\x00"
    grown = len(serial) - 3
    tbs = vcek[8:13] + serial + vcek[16:]
    lengths = [int.from_bytes(vcek[offset : offset + 2]) + grown for offset in (2, 6)]
    der = b"\x30\x82" + lengths[0].to_bytes(2) + b"\x30\x82" + lengths[1].to_bytes(2) + tbs
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter(action)
        with pytest.raises(EvidenceMalformedError, match="serial number is not positive"):
            load_certificate(der)
    assert given == []


@given(st.binary(max_size=1024))
def test_any_bytes(data: bytes) -> None:
    for function in (load_certificate, load_certificates, split_certificates, load_crl):
        with contextlib.suppress(EvidenceMalformedError):
            function(data)


@given(st.lists(st.tuples(st.integers(0, len(LEAF.der) - 1), st.integers(0, 255)), max_size=4))
def test_any_edit_of_a_certificate(edits: list[tuple[int, int]]) -> None:
    data = bytearray(LEAF.der)
    for offset, value in edits:
        data[offset] = value
    accepted = code_of(lambda: build_chain(load_certificate(bytes(data)), [MIDDLE.certificate], **PINNED))
    assert (accepted == "accepted") == (data == LEAF.der)


PINNED: dict[str, Any] = {"roots": [ROOT.certificate], "now": NOW}
GOOD_CRL = fake_amd().crl([fake_amd().asvk])


@given(st.lists(st.tuples(st.integers(0, len(GOOD_CRL) - 1), st.integers(0, 255)), max_size=4))
def test_any_edit_of_a_revocation_list(edits: list[tuple[int, int]]) -> None:
    data = bytearray(GOOD_CRL)
    for offset, value in edits:
        data[offset] = value
    accepted = code_of(lambda: held(bytes(data)))
    assert (accepted == "accepted") == (data == GOOD_CRL)


# --- Revocation -----------------------------------------------------------------------------------------------------


def held(crl: bytes, *, now: datetime = AT) -> None:
    check_crl(load_crl(crl), [fake_amd().ask], issuer=fake_amd().ark, now=now)


def test_revocation_list() -> None:
    amd = fake_amd()
    assert code_of(lambda: held(amd.crl())) == "accepted"
    assert code_of(lambda: held(amd.crl([amd.ask]))) == "certificate_revoked"
    assert code_of(lambda: held(amd.crl([amd.ask]), now=AT + 100 * DAY)) == "certificate_revoked"
    assert code_of(lambda: held(amd.crl(), now=AT + 11 * DAY)) == "crl_expired"
    assert code_of(lambda: held(amd.crl(), now=AT - 11 * DAY)) == "crl_not_yet_valid"
    assert code_of(lambda: held(amd.crl(issuer="ask"))) == "crl_invalid"
    assert code_of(lambda: held(fake_amd("Genoa").crl())) == "crl_invalid"
    assert code_of(lambda: load_crl(bytes((4 << 20) + 1))) == "collateral_malformed"


def test_a_serial_number_counts_for_its_issuer_only() -> None:
    namesake = issue("another's", serial_of := issue("another"))
    assert serial_of.certificate.serial_number != namesake.certificate.serial_number
    crl = load_crl(fake_amd().crl([namesake.certificate]))
    check_crl(crl, [namesake.certificate], issuer=fake_amd().ark, now=AT)


def test_a_list_of_a_part_is_not_the_list() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    issuer = issue("issuer", key=key)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(NOW - DAY)
        .next_update(NOW + DAY)
        .add_extension(x509.DeltaCRLIndicator(1), critical=True)
    )
    delta = load_crl(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    assert code_of(lambda: check_crl(delta, [], issuer=issuer.certificate, now=NOW)) == "crl_invalid"
