"""`tresor release` as a program: arguments and files in, output, files and exit code out; nothing makes it crash."""

import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tresor.cli import release_io
from tresor.cli.release import run
from tresor.encodings import base64url_decode
from tresor.identity.simulated import SimulatedRoot

PROGRAM = Path(sys.executable).with_name("tresor")
VECTORS = Path(__file__).parents[1] / "vectors" / "trust"
PASSPHRASE = "twenty characters of it"
AT = "2026-03-01T00:00:00Z"
MEASUREMENT = "ab" * 48
DESCRIPTION = f"""
workload = "tresor-router"
manifests = ["identity.jws"]
manifest_keys = ["manifest-key.jwk"]
allowed_hw_measurements = ["{MEASUREMENT}"]

[hw_roots]
amd = "pinned"

[min_tcb]
Milan = {{ bl = 4, tee = 0, snp = 24, ucode = 219 }}
"""


@dataclass(frozen=True)
class Done:
    exit_code: int
    out: str
    err: str


@dataclass(frozen=True)
class Ceremony:
    """A folder with keys, a manifest and a description; commands run in it."""

    folder: Path

    def __call__(self, *arguments: str | Path, **options: Any) -> Done:
        done = subprocess.run(
            [PROGRAM, "release", *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            **options,
        )
        assert "Traceback" not in done.stderr
        return Done(done.returncode, done.stdout, done.stderr)

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    def claims(self, name: str) -> dict[str, Any]:
        claims: dict[str, Any] = msgspec.json.decode(base64url_decode(self.read(name).decode().split(".")[1]))
        return claims

    def bundle(self, out: str, *arguments: str | Path, at: str = AT) -> Done:
        key = ("--key", "root.pem", "--description", "bundle.toml", "--issued-at", at)
        return self("bundle", *key, "--out", out, *arguments)

    def inspect(self, *arguments: str | Path, at: str = AT) -> Done:
        return self("inspect", "--release-root", "root.jwk", "--at", at, *arguments)


MANIFEST = ("manifest", "--key", "manifest-key.pem", "--workload", "tresor-router", "--version", "0.2.0")
DIGESTS = ("--image-digest", f"sha256:{'1' * 64}", "--binary-digest", f"sha256:{'2' * 64}")


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ceremony = Ceremony(tmp_path_factory.mktemp("ceremony"))
    for name in ("root", "manifest-key", "other"):
        assert ceremony("keygen", "--out", f"{name}.pem").exit_code == 0
    assert ceremony(*MANIFEST, *DIGESTS, "--out", "identity.jws").exit_code == 0
    ceremony.write("bundle.toml", DESCRIPTION)
    assert ceremony.bundle("one.jws", "--first").exit_code == 0
    return ceremony.folder


@pytest.fixture
def ceremony(made_once: Path, tmp_path: Path) -> Ceremony:
    """A copy of a ceremony that is done once: root, manifest key, another key, a manifest and a first bundle."""
    for file in made_once.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
        (tmp_path / file.name).chmod(file.stat().st_mode & 0o777)
    return Ceremony(tmp_path)


def one_line(done: Done, exit_code: int, *parts: str) -> None:
    """Assert a refusal: its exit code, nothing on standard output, one line on standard error."""
    assert (done.exit_code, done.out) == (exit_code, ""), done.err
    assert done.err.startswith("tresor: ")
    assert done.err.count("\n") == 1
    for part in parts:
        assert part in done.err


# --- keygen ---------------------------------------------------------------------------------------------------------


def test_keygen(tmp_path: Path) -> None:
    done = Ceremony(tmp_path)("keygen", "--out", "root.pem")
    assert (done.exit_code, done.err) == (0, "")
    private, public, thumbprint = done.out.splitlines()
    assert private == "Private key:  root.pem (mode 600, NOT encrypted)"
    assert public == "Public key:   root.jwk"
    jwk = msgspec.json.decode((tmp_path / "root.jwk").read_bytes())
    assert thumbprint == f"Thumbprint:   {jwk['kid']}"
    assert set(jwk) == {"kty", "crv", "x", "kid", "alg", "use"}
    assert (tmp_path / "root.pem").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "root.pem").read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["root.jwk", "root.pem"]


def test_keygen_with_a_passphrase_and_a_public_key_in_pem(tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path)
    ceremony.write("words", f"{PASSPHRASE}\n")
    done = ceremony("keygen", "--out", "k", "--public", "k.pub.pem", "--passphrase-file", "words")
    assert done.exit_code == 0
    assert "k (mode 600, encrypted)" in done.out
    assert ceremony.read("k").startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert ceremony.read("k.pub.pem").startswith(b"-----BEGIN PUBLIC KEY-----")
    sign = ("manifest", "--key", "k", "--workload", "w", "--version", "1", *DIGESTS, "--out", "m.jws")
    one_line(ceremony(*sign, stdin=subprocess.DEVNULL), 2, "give --passphrase-file")
    ceremony.write("wrong", "some other words of enough length")
    one_line(ceremony(*sign, "--passphrase-file", "wrong"), 1, "does not open the key")
    assert not (tmp_path / "m.jws").exists()
    assert ceremony(*sign, "--passphrase-file", "words").exit_code == 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [("", "holds no passphrase"), ("\n", "holds no passphrase"), ("short", "at least 20"), ("x" * 2000, "longer than")],
)
def test_passphrases_that_are_none(words: str, reason: str, tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path)
    ceremony.write("words", words)
    one_line(ceremony("keygen", "--out", "k.pem", "--passphrase-file", "words"), 2, reason)
    assert not (tmp_path / "k.pem").exists()


@pytest.mark.parametrize("there", ["k.pem", "k.jwk"])
def test_keys_are_never_overwritten(there: str, tmp_path: Path) -> None:
    ceremony = Ceremony(tmp_path)
    ceremony.write(there, "precious")
    one_line(ceremony("keygen", "--out", "k.pem"), 2, f"{there} is there already")
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert ceremony.read(there) == b"precious"


def test_both_halves_in_one_file(tmp_path: Path) -> None:
    one_line(Ceremony(tmp_path)("keygen", "--out", "k.jwk"), 2, "give --public")


def at_a_terminal(folder: Path, typed: bytes, *arguments: str) -> tuple[int, bytes]:
    """Run at a pseudo-terminal, type, and return the exit code and all that stood on the screen."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.execv(PROGRAM, [str(PROGRAM), "release", *arguments])  # noqa: S606 - a terminal takes a fork of its own
    screen = b""
    for line in typed.splitlines(keepends=True):
        while not screen.rstrip(b" ").endswith(b":"):
            screen += os.read(terminal, 1024)
        os.write(terminal, line)
        screen += b"|"
    while True:
        try:
            part = os.read(terminal, 1024)
        except OSError:  # how Linux says that the other end was closed
            break
        if not part:
            break
        screen += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), screen


def test_a_passphrase_is_asked_for(tmp_path: Path) -> None:
    words = PASSPHRASE.encode() + b"\n"
    exit_code, screen = at_a_terminal(tmp_path, words * 2, "keygen", "--out", "k.pem", "--encrypt")
    assert (exit_code, PASSPHRASE.encode() in screen) == (0, False)
    sign = ("manifest", "--key", "k.pem", "--workload", "w", "--version", "1", *DIGESTS, "--out", "m.jws")
    exit_code, screen = at_a_terminal(tmp_path, words, *sign)
    assert (exit_code, b"Passphrase of k.pem" in screen) == (0, True)
    exit_code, screen = at_a_terminal(tmp_path, words + b"x" + words, "keygen", "--out", "l.pem", "--encrypt")
    assert (exit_code, b"the two passphrases differ" in screen) == (2, True)
    assert not (tmp_path / "l.pem").exists()


# --- manifest -------------------------------------------------------------------------------------------------------


def test_manifest(ceremony: Ceremony) -> None:
    ceremony.write("image.raw", "the image")
    ceremony.write("program", "the program")
    files = ("--image", "image.raw", "--binary", "program")
    done = ceremony(*MANIFEST, *files, "--build-metadata", "commit=d6cd1e2", "--build-metadata", "x=a=b", "--out", "m")
    assert (done.exit_code, done.err) == (0, "")
    token = ceremony.read("m")
    assert done.out.splitlines()[-1] == f"Workload identity tag:  sha256:{sha256(token).hexdigest()}"
    assert ceremony.claims("m") == {
        "schema": "workload-identity/v1",
        "workload": "tresor-router",
        "version": "0.2.0",
        "image_digest": f"sha256:{sha256(b'the image').hexdigest()}",
        "binary_digest": f"sha256:{sha256(b'the program').hexdigest()}",
        "build_metadata": {"commit": "d6cd1e2", "x": "a=b"},
    }


def test_the_same_inputs_give_the_same_bytes(ceremony: Ceremony) -> None:
    order = (
        ("--build-metadata", "a=1", "--build-metadata", "b=2"),
        ("--build-metadata", "b=2", "--build-metadata", "a=1"),
    )
    for number, metadata in enumerate(order):
        assert ceremony(*MANIFEST, *DIGESTS, *metadata, "--out", f"{number}.jws").exit_code == 0
    assert ceremony.read("0.jws") == ceremony.read("1.jws")
    assert ceremony.bundle("again.jws", "--first").exit_code == 0
    assert ceremony.read("again.jws") == ceremony.read("one.jws")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        ((*DIGESTS, "--workload", "Tresor Router"), 1, "workload"),
        ((*DIGESTS, "--version", "two words"), 1, "version"),
        (("--image-digest", "1" * 64, "--binary", "identity.jws"), 1, "image_digest"),
        (("--image", "missing", "--binary", "identity.jws"), 2, "cannot read missing"),
        (("--image", ".", "--binary", "identity.jws"), 2, "Is a directory"),
        ((*DIGESTS, "--build-metadata", "a=1", "--build-metadata", "a=2"), 2, "one name twice"),
        ((*DIGESTS, "--key", "missing.pem"), 2, "cannot read missing.pem"),
        ((*DIGESTS, "--key", "root.jwk"), 2, "mode"),
        ((*DIGESTS, "--passphrase-file", "bundle.toml"), 1, "is not encrypted"),
        ((*DIGESTS, "--out", "identity.jws"), 2, "identity.jws is there already"),
        ((*DIGESTS, "--out", "nowhere/m.jws"), 2, "cannot write nowhere/m.jws"),
    ],
)
def test_manifests_that_are_refused(
    arguments: tuple[str, ...], exit_code: int, reason: str, ceremony: Ceremony
) -> None:
    before = {path.name: path.read_bytes() for path in ceremony.folder.iterdir()}
    one_line(ceremony(*MANIFEST, "--out", "m.jws", *arguments), exit_code, reason)
    assert {path.name: path.read_bytes() for path in ceremony.folder.iterdir()} == before


def test_force_replaces(ceremony: Ceremony) -> None:
    assert ceremony(*MANIFEST, *DIGESTS, "--build-metadata", "a=1", "--out", "identity.jws", "--force").exit_code == 0
    assert ceremony.claims("identity.jws")["build_metadata"] == {"a": "1"}


def test_a_key_that_others_can_read_is_not_used(ceremony: Ceremony) -> None:
    (ceremony.folder / "root.pem").chmod(0o640)
    one_line(ceremony.bundle("two.jws", "--previous", "one.jws"), 2, "mode 640, want 600")


# --- bundle ---------------------------------------------------------------------------------------------------------


def test_bundle(ceremony: Ceremony) -> None:
    claims = ceremony.claims("one.jws")
    tag = f"sha256:{sha256(ceremony.read('identity.jws')).hexdigest()}"
    assert (claims["version"], claims["issued_at"], claims["valid_until"]) == (1, AT, "2026-03-31T00:00:00Z")
    assert claims["allowed_workload_identity_tags"] == [tag]
    assert claims["hw_roots"]["amd"].count("BEGIN CERTIFICATE") == 3
    assert claims["manifest_keys"]["keys"] == [msgspec.json.decode(ceremony.read("manifest-key.jwk"))]
    done = ceremony.inspect("one.jws")
    assert (done.exit_code, done.out.splitlines()[0]) == (0, "PASS")


def test_versions_grow_and_changes_are_shown(ceremony: Ceremony) -> None:
    unchanged = ceremony.bundle("two.jws", "--previous", "one.jws", "--valid-days", "7")
    assert unchanged.out.splitlines()[1] == "Version:    2 (valid until 2026-03-08T00:00:00Z)"
    assert unchanged.out.splitlines()[-2:] == ["Changes since version 1:", "  none"]
    ceremony.write("bundle.toml", DESCRIPTION.replace("219", "220").replace(f'["{MEASUREMENT}"]', f'["{"cd" * 48}"]'))
    done = ceremony.bundle("three.jws", "--previous", "two.jws")
    assert done.out.splitlines()[4:] == [
        "Changes since version 2:",
        f"  - measurement: MEASUREMENT {MEASUREMENT}",
        f"  + measurement: MEASUREMENT {'cd' * 48}",
        "  - min_tcb Milan: bl 4, snp 24, tee 0, ucode 219",
        "  + min_tcb Milan: bl 4, snp 24, tee 0, ucode 220",
    ]
    assert ceremony.bundle("ten.jws", "--previous", "three.jws", "--bundle-version", "10").exit_code == 0
    assert ceremony.claims("ten.jws")["version"] == 10
    one_line(ceremony.bundle("x", "--previous", "ten.jws", "--bundle-version", "10"), 1, "want at least 11")


def test_an_expired_bundle_can_be_replaced(ceremony: Ceremony) -> None:
    assert ceremony.bundle("late.jws", "--previous", "one.jws", at="2027-01-01T00:00:00Z").exit_code == 0


def test_a_description_in_json(ceremony: Ceremony) -> None:
    ceremony.write("bundle.toml", msgspec.json.encode({
        "workload": "tresor-router",
        "manifests": ["identity.jws"],
        "manifest_keys": ["manifest-key.jwk"],
        "allowed_hw_measurements": [MEASUREMENT],
        "hw_roots": {"amd": "pinned"},
        "min_tcb": {"Milan": {"ucode": 219, "snp": 24, "tee": 0, "bl": 4}},
    }).decode())  # fmt: skip
    assert ceremony.bundle("json.jws", "--first").exit_code == 0
    assert ceremony.read("json.jws") == ceremony.read("one.jws")


def test_a_simulated_bundle_says_so_everywhere(ceremony: Ceremony) -> None:
    claims = msgspec.json.decode(base64url_decode((VECTORS / "010-simulated" / "bundle.jws").read_text().split(".")[1]))
    ceremony.write("simulated.pem", claims["hw_roots"]["simulated"])
    ceremony.write("bundle.toml", DESCRIPTION.replace('amd = "pinned"', 'simulated = "simulated.pem"'))
    one_line(ceremony.bundle("s.jws", "--first"), 1, "goes with `simulated`")
    ceremony.write("bundle.toml", f"simulated = true\n{ceremony.read('bundle.toml').decode()}")
    done = ceremony.bundle("s.jws", "--first")
    assert (done.exit_code, done.out.splitlines()[0][:10]) == (0, "SIMULATED:")
    for arguments, exit_code, first in (
        (("s.jws",), 1, "FAIL  simulated_not_allowed"),
        (("--allow-simulated", "s.jws"), 0, "PASS"),
    ):
        done = ceremony.inspect(*arguments)
        assert (done.exit_code, done.out.splitlines()[0]) == (exit_code, first)
        assert done.out.splitlines()[1].startswith("SIMULATED: ")


def test_of_a_file_of_roots_the_certificates_alone_are_published(ceremony: Ceremony) -> None:
    """The file of a simulated root, as a router makes it, holds its private key before its certificate."""
    root = SimulatedRoot.create(datetime(2026, 2, 1, tzinfo=UTC))
    ceremony.write("simulated-root.pem", root.private_bytes().decode())
    assert b"PRIVATE KEY" in ceremony.read("simulated-root.pem")
    description = DESCRIPTION.replace('amd = "pinned"', 'simulated = "simulated-root.pem"')
    ceremony.write("bundle.toml", f"simulated = true\n{description}")
    assert ceremony.bundle("s.jws", "--first").exit_code == 0
    published = {"simulated": root.certificate.public_bytes(Encoding.PEM).decode()}
    assert ceremony.claims("s.jws")["hw_roots"] == published


@pytest.mark.parametrize(
    ("replaced", "by", "exit_code", "reason"),
    [
        ("workload =", "workloads =", 1, "workloads"),
        ('"tresor-router"', '"tresor-audio"', 1, "is about 'tresor-router', want 'tresor-audio'"),
        ("identity.jws", "missing.jws", 2, "missing.jws"),
        ("identity.jws", "a\\u0000b", 2, "null byte"),
        ("identity.jws", "one.jws", 1, "typ"),
        ("manifest-key.jwk", "other.jwk", 1, "may not sign manifests"),
        ("manifest-key.jwk", "other.pem", 1, "private key"),
        ('["manifest-key.jwk"]', "[]", 1, "may not sign manifests"),
        (MEASUREMENT, MEASUREMENT[1:], 1, "96 lower-case hexadecimal digits"),
        (f'["{MEASUREMENT}"]', "[]", 2, "--allow-nothing"),
        ('manifests = ["identity.jws"]', "", 2, "--allow-nothing"),
        ('amd = "pinned"', 'acme = "pinned"', 1, "no vendor"),
        ('amd = "pinned"', 'amd = "missing.pem"', 2, "missing.pem"),
        ('amd = "pinned"', 'amd = "root.jwk"', 1, "not PEM text"),
        ('amd = "pinned"', "", 1, "hw_roots"),
        ("tee = 0, ", "", 1, "min_tcb.Milan: want bl, snp, tee, ucode"),
        ("Milan", "Rome", 1, "a known product"),
        ("[min_tcb]", "[min_tcb", 2, "neither JSON nor TOML"),
        ("\nworkload", "{", 2, "neither JSON nor TOML"),
    ],
)
def test_descriptions_that_are_refused(replaced: str, by: str, exit_code: int, reason: str, ceremony: Ceremony) -> None:
    assert replaced in DESCRIPTION
    ceremony.write("bundle.toml", DESCRIPTION.replace(replaced, by))
    one_line(ceremony.bundle("two.jws", "--previous", "one.jws"), exit_code, reason)
    assert not (ceremony.folder / "two.jws").exists()


def test_a_selfmade_once_root_is_not_signed_as_a_vendors(ceremony: Ceremony) -> None:
    claims = msgspec.json.decode(
        base64url_decode((VECTORS / "720-root-of-the-right-name" / "bundle.jws").read_text().split(".")[1])
    )
    ceremony.write("ark.pem", claims["hw_roots"]["amd"])
    ceremony.write("bundle.toml", DESCRIPTION.replace('"pinned"', '"ark.pem"'))
    one_line(ceremony.bundle("two.jws", "--previous", "one.jws"), 1, "is not one that is pinned for 'amd'")


def test_nothing_can_be_allowed_on_purpose(ceremony: Ceremony) -> None:
    ceremony.write("bundle.toml", DESCRIPTION.replace(f'["{MEASUREMENT}"]', "[]"))
    done = ceremony.bundle("stop.jws", "--previous", "one.jws", "--allow-nothing")
    assert done.exit_code == 0
    assert f"  - measurement: MEASUREMENT {MEASUREMENT}" in done.out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "exit_code", "reason"),
    [
        (("--previous", "identity.jws"), 1, "typ"),
        (("--previous", "missing.jws"), 2, "missing.jws"),
        (("--previous", "one.jws", "--key", "other.pem"), 1, "the release root is"),
        (("--previous", "one.jws", "--issued-at", "2026-02-28T00:00:00Z"), 2, "--issued-at lies before"),
        (("--previous", "one.jws", "--valid-days", "0"), 2, "want 1 to 366"),
        (("--previous", "one.jws", "--valid-days", "367"), 2, "want 1 to 366"),
        (("--first", "--bundle-version", "0"), 1, "want at least 1"),
    ],
)
def test_bundles_that_are_refused(arguments: tuple[str, ...], exit_code: int, reason: str, ceremony: Ceremony) -> None:
    one_line(ceremony.bundle("two.jws", *arguments), exit_code, reason)
    assert not (ceremony.folder / "two.jws").exists()


def test_a_bundle_of_another_workload_does_not_follow(ceremony: Ceremony) -> None:
    ceremony.write("bundle.toml", DESCRIPTION.replace('"tresor-router"', '"w"').replace('"identity.jws"', ""))
    done = ceremony.bundle("two.jws", "--previous", "one.jws", "--allow-nothing")
    one_line(done, 1, "the description is about 'w', the previous bundle 'tresor-router'")


# --- inspect --------------------------------------------------------------------------------------------------------


def test_inspect_without_a_root_decides_nothing(ceremony: Ceremony) -> None:
    for name in ("one.jws", "identity.jws"):
        done = ceremony("inspect", name)
        assert (done.exit_code, done.err) == (3, "")
        assert done.out.splitlines()[0] == "FAIL  could not be decided: release_root_missing"
        assert "Content, for which nobody vouches:" in done.out
    done = ceremony.inspect("identity.jws")
    assert (done.exit_code, done.out.splitlines()[0]) == (3, "FAIL  could not be decided: bundle_missing")


def test_inspect_a_manifest(ceremony: Ceremony) -> None:
    done = ceremony.inspect("--bundle", "one.jws", "identity.jws")
    assert (done.exit_code, done.out.splitlines()[0]) == (0, "PASS")
    tag = f"sha256:{sha256(ceremony.read('identity.jws')).hexdigest()}"
    assert f"  workload identity tag:  {tag}" in done.out.splitlines()
    assert ceremony(*MANIFEST, *DIGESTS, "--build-metadata", "a=1", "--out", "other.jws").exit_code == 0
    done = ceremony.inspect("--bundle", "one.jws", "other.jws")
    assert (done.exit_code, done.out.splitlines()[0]) == (1, "FAIL  tag_not_allowed")


def test_inspect_as_json(ceremony: Ceremony) -> None:
    report = msgspec.json.decode(ceremony.inspect("--json", "--min-version", "1", "one.jws").out)
    assert report["content"]["claims"] == ceremony.claims("one.jws")
    assert report["content"]["digest"] == f"sha256:{sha256(ceremony.read('one.jws')).hexdigest()}"
    assert report["not_checked"] == {"evidence": "no machine was looked at"}
    report = msgspec.json.decode(ceremony.inspect("--json", "--min-version", "2", "one.jws").out)
    assert (report["outcome"], report["code"], report["genuine"]) == ("rejected", "bundle_rolled_back", True)


def test_inspect_a_key(ceremony: Ceremony) -> None:
    kid = msgspec.json.decode(ceremony.read("root.jwk"))["kid"]
    done = ceremony("inspect", "root.jwk")
    assert (done.exit_code, done.out.splitlines()[0]) == (0, "PASS")
    assert kid in done.out
    done = ceremony("inspect", "root.pem")
    assert (done.exit_code, done.out.splitlines()[0]) == (1, "FAIL  key_private")


def test_a_token_with_a_line_end_is_the_same_token(ceremony: Ceremony) -> None:
    ceremony.write("edited.jws", f"{ceremony.read('one.jws').decode()}\r\n")
    assert ceremony.inspect("edited.jws").exit_code == 0


def test_what_is_not_signed_moves_no_terminal(ceremony: Ceremony) -> None:
    done = ceremony(*MANIFEST, *DIGESTS, "--build-metadata", "a=\x1b[2J\nPASS\u202e", "--out", "m.jws")
    assert done.exit_code == 0
    done = ceremony("inspect", "m.jws")
    assert done.out.replace("\n", "").isprintable()
    assert done.out.isascii()
    assert "PASS" not in {line.strip() for line in done.out.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("missing",), "cannot read missing"),
        (("--release-root", "missing", "one.jws"), "cannot read missing"),
        (("--release-root", "root.jwk", "root.jwk"), "--release-root says nothing about a public key"),
        (("--bundle", "one.jws", "one.jws"), "--bundle says nothing about a bundle"),
        (("/dev/zero",), "longer than"),
    ],
)
def test_inspect_cannot(arguments: tuple[str, ...], reason: str, ceremony: Ceremony) -> None:
    one_line(ceremony("inspect", *arguments), 2, reason)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("keygen",),
        ("keygen", "--out", "k.pem", "--encrypt", "--passphrase-file", "x"),
        ("manifest", "--key", "k.pem"),
        (*MANIFEST, *DIGESTS, "--image", "x", "--out", "m"),
        (*MANIFEST, *DIGESTS, "--build-metadata", "x", "--out", "m"),
        ("bundle", "--key", "k.pem", "--description", "d", "--out", "b"),
        ("bundle", "--key", "k.pem", "--description", "d", "--out", "b", "--first", "--previous", "p"),
        ("bundle", "--key", "k.pem", "--description", "d", "--out", "b", "--first", "--issued-at", "2026-03-01"),
        ("bundle", "--key", "k.pem", "--description", "d", "--out", "b", "--first", "--forc"),
        ("inspect",),
        ("inspect", "--at", "yesterday", "x"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["release", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("usage: tresor ")


@pytest.mark.parametrize(
    ("shell", "exit_code"),
    [
        pytest.param('"$0" release inspect "$1" >&-', 3, id="stdout-closed"),
        pytest.param('"$0" release inspect "$1" >/dev/full', 3, id="disk-full"),
        pytest.param('"$0" release inspect "$1" | true; exit "${PIPESTATUS[0]}"', 3, id="reader-gone"),
        pytest.param('"$0" release inspect /none 2>/dev/full', 2, id="stderr-full"),
        pytest.param('LC_ALL=C PYTHONIOENCODING=ascii "$0" release inspect "$1"', 3, id="ascii-terminal"),
    ],
)
def test_awkward_streams(shell: str, exit_code: int) -> None:
    done = subprocess.run(
        ["bash", "-c", shell, PROGRAM, VECTORS / "bundle.jws"], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == exit_code
    assert b"Traceback" not in done.stderr + done.stdout
    assert b"Exception" not in done.stderr + done.stdout


@given(data=st.one_of(st.binary(), st.text().map(str.encode)), as_json=st.booleans())
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_gets_a_verdict(
    data: bytes, as_json: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_bytes(data)
    assert run(["release", "inspect", *(["--json"] if as_json else []), str(file)]) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert out.isascii()
    assert out.replace("\n", "").isprintable()


@given(text=st.one_of(st.binary(), st.text().map(str.encode), st.just(DESCRIPTION.encode()).map(lambda d: d[:-9])))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_description_is_refused_in_our_words(
    text: bytes, made_once: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    description = tmp_path / "bundle.toml"
    description.write_bytes(text)
    line = ["--key", str(made_once / "root.pem"), "--description", str(description), "--out", str(tmp_path / "b.jws")]
    assert run(["release", "bundle", *line, "--first"]) in {1, 2}
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


# --- Files ----------------------------------------------------------------------------------------------------------


def failing_at(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os if call == "fsync" else Path, call, fail)


@pytest.fixture(params=["fsync", "replace"])
def full_disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    failing_at(request.param, monkeypatch)
    return iter(())


@pytest.mark.parametrize("force", [False, True])
def test_a_file_is_whole_or_not_there(force: bool, tmp_path: Path, full_disk: None) -> None:
    file = tmp_path / "bundle.jws"
    if force:
        file.write_bytes(b"before")
    with pytest.raises(release_io.InputError, match="No space left"):
        release_io.write_file(file, b"after", force=force)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == ({"bundle.jws": b"before"} if force else {})


# --- The base package -----------------------------------------------------------------------------------------------


def test_the_ceremony_needs_nothing_of_the_router() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['tresor', 'release', 'inspect', sys.argv[1]]\n"
        "sys.modules.update(dict.fromkeys(['httptools', 'uvloop', 'prometheus_client', 'httpx2', 'sqlite3']))\n"
        "from tresor.cli.main import main\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, VECTORS / "bundle.jws"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (3, "")
