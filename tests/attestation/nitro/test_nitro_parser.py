"""Any bytes give a document or our error, and what is read is what was written."""

import contextlib
import time
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.fake_nitro import CHAIN, GOOD, sign, statement
from tresor.attestation.errors import EvidenceMalformedError
from tresor.attestation.nitro.abi import parse_document

KEY = CHAIN[-1].key
MEMBERS = statement(CHAIN)

plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=64)
anything = st.recursive(
    plain,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@given(st.binary(max_size=2048))
def test_any_bytes(data: bytes) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        parse_document(data)


@given(st.integers(0, len(GOOD) - 1), st.binary(max_size=16), st.integers(0, 16))
def test_any_bytes_inside_a_good_document(start: int, inserted: bytes, removed: int) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        parse_document(GOOD[:start] + inserted + GOOD[start + removed :])


@given(anything)
def test_any_cbor(value: Any) -> None:
    for data in (cbor2.dumps(value), cbor2.dumps([b"", {}, cbor2.dumps(value), bytes(96)])):
        with pytest.raises(EvidenceMalformedError):
            parse_document(data)


@given(st.sampled_from(sorted(MEMBERS)), anything)
def test_any_member(name: str, value: Any) -> None:
    with contextlib.suppress(EvidenceMalformedError):
        document = parse_document(sign(cbor2.dumps({**MEMBERS, name: value}), KEY)).document
        assert getattr(document, name) == (tuple(value) if name == "cabundle" else value)


@given(
    st.dictionaries(st.integers(0, 31), st.binary(min_size=48, max_size=48), min_size=1),
    st.none() | st.binary(max_size=1024),
)
def test_what_is_written_is_read(pcrs: dict[int, bytes], nonce: bytes | None) -> None:
    payload = cbor2.dumps({**MEMBERS, "pcrs": pcrs, "nonce": nonce})
    unverified = parse_document(sign(payload, KEY))
    assert (unverified.document.pcrs, unverified.document.nonce, unverified.payload) == (pcrs, nonce, payload)


@pytest.mark.parametrize(
    "tag", [0, 1, 2, 3, 4, 5, 24, 25, 28, 29, 30, 35, 36, 37, 43, 100, 256, 258, 260, 55799, 1 << 40]
)
def test_no_tag_is_read(tag: int) -> None:
    with pytest.raises(EvidenceMalformedError):
        parse_document(sign(cbor2.dumps(cbor2.CBORTag(tag, [1, 1])), KEY))


@pytest.mark.parametrize(
    "data",
    [
        b"\x81" * 16_000,
        b"\x9b" + b"\xff" * 8,
        b"\x5b\x7f" + b"\xff" * 7,
        b"\xbb" + b"\xff" * 8,
        b"\xc4\x82\x1b" + b"\xff" * 8 + b"\x01",
        b"\xd8\x23\x70" + b"(a{1,9999}){999}",
    ],
)
def test_a_short_text_does_not_cost_much(data: bytes) -> None:
    began = time.perf_counter()
    with pytest.raises(EvidenceMalformedError):
        parse_document(data)
    assert time.perf_counter() - began < 10
