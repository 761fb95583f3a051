"""REPORT_DATA byte by byte: the example of docs/spec/attestation.md 6.2, recomputed, and what must not be bound."""

import hashlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tresor.attestation.binding import channel_half, keys_half, report_data
from tresor.encodings import base64url_encode
from tresor.jose.jwk import thumbprint

SPEC = (Path(__file__).parents[2] / "docs" / "spec" / "attestation.md").read_text()
EXAMPLES = dict(re.findall(r"^```\w+ (binding-[\w-]+)\n(.*?)\n```$", SPEC, re.DOTALL | re.MULTILINE))
NAMES = ("binding-spki", "binding-tag", "binding-thumbprint", "binding-nonce")
digests = st.binary(min_size=32, max_size=32)


def example(name: str) -> bytes:
    return bytes.fromhex("".join(EXAMPLES[name].split()))


def test_the_example_of_the_specification() -> None:
    spki, tag, key, nonce = map(example, NAMES)
    assert base64url_encode(key) == base64url_encode(hashlib.sha256(EXAMPLES["binding-jwk"].encode()).digest())
    assert example("binding-channel") == hashlib.sha256(spki + tag).digest() == channel_half(spki, tag)
    message = b"tresor.receipt-key/v1\0" + key + nonce
    assert example("binding-keys") == hashlib.sha256(message).digest() == keys_half(key, nonce)
    whole = example("binding-channel") + example("binding-keys")
    assert whole == report_data(spki, tag, key, nonce)
    assert example("binding-qualifying-data") == hashlib.sha384(whole).digest()
    without = hashlib.sha256(b"tresor.receipt-key/v1\0" + key).digest()
    assert example("binding-keys-without-nonce") == without == keys_half(key, b"")


def test_the_thumbprint_of_the_example_is_that_of_its_key() -> None:
    found = re.fullmatch(r'\{"crv":"P-256","kty":"EC","x":"(.{43})","y":"(.{43})"\}', EXAMPLES["binding-jwk"])
    assert found is not None
    assert thumbprint(found[1], found[2]) == example("binding-thumbprint")


@given(spki=digests, tag=digests, key=digests, nonce=digests)
def test_every_part_counts_and_none_can_be_moved(spki: bytes, tag: bytes, key: bytes, nonce: bytes) -> None:
    whole = report_data(spki, tag, key, nonce)
    assert len(whole) == 64
    assert whole != report_data(spki, tag, key, b"")
    for number in range(4):
        parts = [spki, tag, key, nonce]
        parts[number] = bytes((parts[number][0] ^ 1,)) + parts[number][1:]
        assert report_data(*parts) != whole
    if spki != tag:
        assert channel_half(tag, spki) != whole[:32]
    if key != nonce:
        assert keys_half(nonce, key) != whole[32:]


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_parts_of_another_length_are_refused(size: int) -> None:
    good, bad = bytes(32), bytes(size)
    for parts in ((bad, good), (good, bad)):
        with pytest.raises(ValueError, match="32 bytes"):
            channel_half(*parts)
    with pytest.raises(ValueError, match="32 bytes"):
        keys_half(bad, b"")
    if size:
        with pytest.raises(ValueError, match="nonce of 0 or 32"):
            keys_half(good, bad)
