"""Signing keys on disk: one slot per process, and nothing but the owner's own P-256 key is taken for one."""

import base64
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from tresor.errors import KeyFileError
from tresor.issuer import key_files
from tresor.issuer.key_files import KeySlot, retire_lost_keys
from tresor.jose.jwk import public_jwk
from tresor.store.sqlite.store import SqliteStore

KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[KeySlot]:
    made = KeySlot(tmp_path / "keys")
    yield made
    os.close(made._lock)


@pytest.fixture
def file(tmp_path: Path, slot: KeySlot) -> Path:
    return tmp_path / "keys" / "slot-0.pem"


def pem(
    key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    encryption: KeySerializationEncryption | None = None,
) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def held(slot: KeySlot) -> ec.EllipticCurvePrivateNumbers:
    loaded = slot.load()
    assert loaded is not None
    return loaded[0].private_numbers()


def write(file: Path, content: bytes, mode: int = 0o600) -> None:
    file.write_bytes(content)
    file.chmod(mode)


def test_a_key_is_made_and_found_again(tmp_path: Path, slot: KeySlot, file: Path) -> None:
    assert slot.load() is None
    made = slot.make()
    assert held(slot) == made.private_numbers()
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert {entry.name for entry in file.parent.iterdir()} == {"slot-0.lock", "slot-0.pem"}
    assert repr(slot) == "<KeySlot slot-0.pem>"


def test_a_key_knows_since_when_it_is_there(slot: KeySlot, file: Path) -> None:
    slot.make()
    os.utime(file, (0, 1_800_000_000))
    loaded = slot.load()
    assert loaded is not None
    assert loaded[1] == 1_800_000_000


def test_a_new_key_takes_the_place_of_the_old(slot: KeySlot, file: Path) -> None:
    old = slot.make()
    file.with_suffix(".new").write_bytes(b"left by a process that was killed")
    new = slot.make()
    assert new.private_numbers() != old.private_numbers()
    assert held(slot) == new.private_numbers()


def test_each_process_has_a_slot_and_a_free_one_is_taken_again(tmp_path: Path) -> None:
    slots = [KeySlot(tmp_path) for _ in range(3)]
    assert [repr(slot) for slot in slots] == [f"<KeySlot slot-{number}.pem>" for number in range(3)]
    key = slots[1].make()
    os.close(slots[1]._lock)
    again = KeySlot(tmp_path)
    assert held(again) == key.private_numbers()
    for slot in (slots[0], slots[2], again):
        os.close(slot._lock)


def test_slots_come_to_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_files, "_MAX_SLOTS", 1)
    slot = KeySlot(tmp_path)
    with pytest.raises(KeyFileError, match="all 1 slots are in use"):
        KeySlot(tmp_path)
    os.close(slot._lock)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o777, 0o601])
def test_a_key_that_others_may_have_read_is_refused(slot: KeySlot, file: Path, mode: int) -> None:
    write(file, pem(KEY), mode)
    with pytest.raises(KeyFileError, match=f"has mode {mode:o}, want 600"):
        slot.load()


def unknown_curve() -> bytes:
    """Return KEY with the name of a curve that there is not."""
    der = KEY.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    p256 = bytes.fromhex("06082a8648ce3d030107")
    assert p256 in der
    return armour(der.replace(p256, p256[:-1] + b"\x7f"))


def armour(der: bytes) -> bytes:
    return b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(der) + b"-----END PRIVATE KEY-----\n"


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        pytest.param(b"", "no unencrypted PEM private key", id="empty"),
        pytest.param(b"\xff" * 100, "no unencrypted PEM private key", id="garbage"),
        pytest.param(pem(KEY)[:-60], "no unencrypted PEM private key", id="truncated"),
        pytest.param(armour(b"\x30\x00"), "no unencrypted PEM private key", id="another-structure"),
        pytest.param(pem(KEY, BestAvailableEncryption(b"x")), "no unencrypted PEM private key", id="encrypted"),
        pytest.param(
            KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
            "no unencrypted PEM private key",
            id="public-half",
        ),
        pytest.param(unknown_curve(), "no unencrypted PEM private key", id="unknown-curve"),
        pytest.param(pem(ec.generate_private_key(ec.SECP384R1())), "not P-256", id="p-384"),
        pytest.param(pem(ec.generate_private_key(ec.SECP256K1())), "not P-256", id="secp256k1"),
        pytest.param(pem(ed25519.Ed25519PrivateKey.generate()), "not P-256", id="ed25519"),
    ],
)
def test_what_is_no_key_of_ours_is_refused(slot: KeySlot, file: Path, content: bytes, fault: str) -> None:
    write(file, content)
    with pytest.raises(KeyFileError, match=fault) as caught:
        slot.load()
    assert str(file) in str(caught.value)
    assert "BEGIN" not in str(caught.value)


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(KeyFileError, match="key directory"):
        KeySlot(tmp_path / "file")


def test_a_file_that_cannot_be_read_is_said(slot: KeySlot, file: Path) -> None:
    file.mkdir()
    with pytest.raises(KeyFileError, match="Is a directory"):
        slot.load()


def test_where_no_key_can_be_made_the_old_one_stands(slot: KeySlot, file: Path) -> None:
    old = slot.make()
    file.with_suffix(".new").mkdir()
    with pytest.raises(KeyFileError):
        slot.make()
    assert held(slot) == old.private_numbers()


# Keys of which there is no file any more.


@pytest.mark.parametrize(("asked_at", "retired"), [(0, set()), (100, set()), (101, {"lost"}), (201, {"lost", "later"})])
def test_what_a_rotation_was_to_replace_and_no_slot_holds_is_retired(
    tmp_path: Path, slot: KeySlot, asked_at: int, retired: set[str]
) -> None:
    kid = public_jwk(slot.make().public_key()).kid
    store = SqliteStore(tmp_path / "tresor.db")
    for known, created_at in ((kid, 100), ("lost", 100), ("gone", 100), ("later", 200)):
        store.register_signing_key(known, "x", "y", now=created_at)
    store.retire_signing_key("gone", now=150)
    (tmp_path / "keys" / "slot-0.old.pem").write_bytes(b"a copy that somebody made is no slot")
    store.request_rotation(now=asked_at)
    retire_lost_keys(store, tmp_path / "keys", now=150)
    since = {known: 200 if known == "later" else 150 for known in retired}  # never before it was made
    expected = {kid: None, "lost": None, "later": None, "gone": 150} | since
    assert {key.kid: key.retired_at for key in store.signing_keys()} == expected
    store.close()


def test_a_key_directory_that_is_not_there_holds_no_key(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "tresor.db")
    store.register_signing_key("k", "x", "y", now=1)
    store.request_rotation(now=2)
    retire_lost_keys(store, tmp_path / "keys", now=3)
    assert store.signing_keys()[0].retired_at == 3
    store.close()


def test_what_cannot_be_read_retires_nothing(tmp_path: Path, slot: KeySlot, file: Path) -> None:
    kid = public_jwk(slot.make().public_key()).kid
    store = SqliteStore(tmp_path / "tresor.db")
    store.register_signing_key(kid, "x", "y", now=1)
    store.register_signing_key("lost", "x", "y", now=1)
    store.request_rotation(now=2)
    file.chmod(0o640)
    with pytest.raises(KeyFileError, match="mode 640"):
        retire_lost_keys(store, file.parent, now=3)
    with pytest.raises(KeyFileError, match="Not a directory"):
        retire_lost_keys(store, file, now=3)
    assert {key.retired_at for key in store.signing_keys()} == {None}
    store.close()
