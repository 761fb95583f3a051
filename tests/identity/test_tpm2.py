"""The TPM client, against a TPM in software, an emulated one, and one that answers anything."""

import contextlib
import errno
import hashlib
import os
import shutil
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from support.emulated_vtpm import AUTH_READ, OWNER_READ, EmulatedVtpm, hcl_report, served
from support.swtpm import extend, prepare, running_swtpm
from tresor.identity.source import EvidenceSourceError, SourceCode
from tresor.identity.sources.azure_vtpm import AK_HANDLE, HCL_REPORT_INDEX
from tresor.identity.sources.patience import Patience
from tresor.identity.sources.tpm2 import NvPublic, Tpm2, TpmDevice, TpmRefusedError

NONCE = hashlib.sha384(b"nonce").digest()
REPORT = hcl_report(2, bytes(range(256)) * 4, b'{"keys":[]}' + b" " * 600)  # more than one chunk; swtpm takes 2048


@pytest.fixture(scope="module")
def prepared_swtpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, rsa.RSAPublicKey]]:
    """A TPM as Azure prepares it, and the public half of its attestation key."""
    with running_swtpm(tmp_path_factory.mktemp("swtpm")) as path:
        modulus = int.from_bytes(prepare(path, REPORT)[-256:], "big")
        yield path, rsa.RSAPublicNumbers(65537, modulus).public_key()


@contextlib.contextmanager
def connected(path: Path) -> Iterator[Tpm2]:
    with contextlib.closing(TpmDevice.open(path)) as device:
        yield Tpm2(device)


class TestSwtpm:
    """A TPM that others wrote; it answers RETRY now and then, as hardware does."""

    until_done = staticmethod(Patience().until_done)

    def test_nv(self, prepared_swtpm: tuple[Path, rsa.RSAPublicKey]) -> None:
        with connected(prepared_swtpm[0]) as tpm:
            public = self.until_done(lambda: tpm.nv_read_public(HCL_REPORT_INDEX))
            assert public.size == len(REPORT)
            assert self.until_done(lambda: tpm.nv_read(HCL_REPORT_INDEX, public)) == REPORT
            as_owner = NvPublic(public.attributes & ~AUTH_READ, public.size)
            assert self.until_done(lambda: tpm.nv_read(HCL_REPORT_INDEX, as_owner)) == REPORT

    def test_quote_is_of_the_pcrs_that_are_read(self, prepared_swtpm: tuple[Path, rsa.RSAPublicKey]) -> None:
        path, key = prepared_swtpm
        extend(path, 11, hashlib.sha256(b"event").digest())
        with connected(path) as tpm:
            pcrs = self.until_done(tpm.pcr_read)
            quote = self.until_done(lambda: tpm.quote(AK_HANDLE, NONCE))
        assert pcrs[11] == hashlib.sha256(bytes(32) + hashlib.sha256(b"event").digest()).digest()
        assert pcrs[17] == b"\xff" * 32
        assert quote.message.endswith(b"\x00\x20" + hashlib.sha256(b"".join(pcrs)).digest())
        assert NONCE in quote.message
        key.verify(quote.signature, quote.message, padding.PKCS1v15(), hashes.SHA256())

    def test_tpm2_tools_agree(self, prepared_swtpm: tuple[Path, rsa.RSAPublicKey], tmp_path: Path) -> None:
        if shutil.which("tpm2_checkquote") is None:
            pytest.skip("tpm2_checkquote is not installed (Debian package tpm2-tools)")
        path, key = prepared_swtpm
        with connected(path) as tpm:
            quote = self.until_done(lambda: tpm.quote(AK_HANDLE, NONCE))
        pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        scheme = bytes.fromhex("0014000b0100")  # TPMT_SIGNATURE in front of the signature
        for name, data in {"key": pem, "message": quote.message, "signature": scheme + quote.signature}.items():
            (tmp_path / name).write_bytes(data)
        command = ["tpm2_checkquote", "-u", "key", "-m", "message", "-s", "signature", "-q"]
        for nonce, accepted in ((NONCE, True), (bytes(48), False)):
            checked = subprocess.run([*command, nonce.hex()], cwd=tmp_path, capture_output=True, check=False)
            assert (checked.returncode == 0) == accepted, checked.stderr

    def test_no_such_index_and_no_such_key(self, prepared_swtpm: tuple[Path, rsa.RSAPublicKey]) -> None:
        with connected(prepared_swtpm[0]) as tpm:
            for attempt in (lambda: tpm.nv_read_public(0x0140_0003), lambda: tpm.quote(0x8100_0009, NONCE)):
                with pytest.raises(TpmRefusedError, match="there is no such object") as caught:
                    self.until_done(attempt)
                assert caught.value.response_code == 0x08B


def test_nv_read_takes_chunks_and_the_authority_there_is() -> None:
    report = os.urandom(2600)
    for attributes, owner_password in ((AUTH_READ, True), (OWNER_READ, False), (AUTH_READ | OWNER_READ, True)):
        vtpm = EmulatedVtpm(report, attributes=attributes, owner_password=owner_password)
        tpm = Tpm2(vtpm)
        assert tpm.nv_read(HCL_REPORT_INDEX, tpm.nv_read_public(HCL_REPORT_INDEX)) == report
        assert vtpm.commands.count(0x14E) == 6


@pytest.mark.parametrize("delta", [-1, 1])
def test_nv_read_of_another_size_than_asked_for(delta: int) -> None:
    vtpm = EmulatedVtpm(os.urandom(600))

    def transmit(command: bytes) -> bytes:
        size = int.from_bytes(command[-4:-2], "big") + delta
        return vtpm(command[:-4] + size.to_bytes(2, "big") + bytes(2))

    with pytest.raises(EvidenceSourceError, match=rf"{99 + delta} bytes of NV index 0x1400001, want 99"):
        Tpm2(transmit).nv_read(HCL_REPORT_INDEX, NvPublic(AUTH_READ, 99))


def test_pcr_read_asks_until_it_has_all() -> None:
    vtpm = EmulatedVtpm(None)
    assert Tpm2(vtpm).pcr_read() == tuple(vtpm.pcrs)
    assert len(vtpm.commands) == 3


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (0x922, SourceCode.BUSY, "RETRY"),
        (0x908, SourceCode.BUSY, "YIELDED"),
        (0x90A, SourceCode.BUSY, "TESTING"),
        (0xB0922, SourceCode.BUSY, "RETRY"),  # as the kernel's resource manager says it
        (0xB0902, SourceCode.BUSY, "OBJECT_MEMORY"),
        (0x18B, SourceCode.FAILED, "no such object"),
        (0x98E, SourceCode.FAILED, "AUTH_FAIL"),
        (0x101, SourceCode.FAILED, "failure mode"),
        (0x149, SourceCode.FAILED, "NV_AUTHORIZATION"),
        (0xFFFF_FFFF, SourceCode.FAILED, "unknown"),
    ],
)
def test_response_codes(code: int, kind: SourceCode, words: str) -> None:
    with pytest.raises(TpmRefusedError, match=words) as caught:
        Tpm2(EmulatedVtpm(REPORT, codes=deque([code]))).nv_read_public(HCL_REPORT_INDEX)
    assert caught.value.code == kind


COMMANDS: dict[str, Callable[[Tpm2], object]] = {
    "NV_ReadPublic": lambda tpm: tpm.nv_read_public(HCL_REPORT_INDEX),
    "NV_Read": lambda tpm: tpm.nv_read(HCL_REPORT_INDEX, NvPublic(AUTH_READ, 600)),
    "PCR_Read": lambda tpm: tpm.pcr_read(),
    "Quote": lambda tpm: tpm.quote(AK_HANDLE, NONCE),
}


@pytest.mark.parametrize("command", COMMANDS)
class TestAnythingElse:
    """Each command against responses that are none."""

    def test_response_that_ends_early(self, command: str) -> None:
        vtpm, whole = EmulatedVtpm(REPORT), 0

        def cut(sent: bytes, *, end: int) -> bytes:
            nonlocal whole
            response = vtpm(sent)
            whole = whole or len(response)
            return response[:end]

        COMMANDS[command](Tpm2(partial(cut, end=4096)))
        for end in range(whole):
            with pytest.raises(EvidenceSourceError, match="cannot be read"):
                COMMANDS[command](Tpm2(partial(cut, end=end)))

    def test_any_bit_flipped_on_the_way(self, command: str) -> None:
        """Our error, or a value: bits of values are for verifiers to judge."""
        vtpm = EmulatedVtpm(REPORT)

        def flipped(sent: bytes, *, index: int) -> bytes:
            response = bytearray(vtpm(sent))
            response[index // 8 % len(response)] ^= 1 << index % 8
            return bytes(response)

        for index in range(0, 8 * 700, 5):
            with contextlib.suppress(EvidenceSourceError):
                COMMANDS[command](Tpm2(partial(flipped, index=index)))

    def test_bytes_behind_the_response(self, command: str) -> None:
        vtpm = EmulatedVtpm(REPORT)
        with pytest.raises(EvidenceSourceError, match="that says"):
            COMMANDS[command](Tpm2(lambda sent: vtpm(sent) + b"\0"))

    def test_other_tag(self, command: str) -> None:
        vtpm = EmulatedVtpm(REPORT)
        with pytest.raises(EvidenceSourceError, match="tag 0x8003"):
            COMMANDS[command](Tpm2(lambda sent: b"\x80\x03" + vtpm(sent)[2:]))

    @pytest.mark.parametrize(
        ("number", "kind"),
        [(errno.EBUSY, SourceCode.BUSY), (errno.ETIMEDOUT, SourceCode.BUSY), (errno.EIO, SourceCode.FAILED)],
    )
    def test_no_response(self, command: str, number: int, kind: SourceCode) -> None:
        def transmit(_command: bytes) -> bytes:
            raise OSError(number, os.strerror(number))

        with pytest.raises(EvidenceSourceError, match=f"does not answer {command}") as caught:
            COMMANDS[command](Tpm2(transmit))
        assert caught.value.code == kind


@given(command=st.sampled_from(sorted(COMMANDS)), body=st.binary(max_size=300), code=st.sampled_from([0, 0, 0, 0x922]))
def test_any_bytes_give_a_value_or_our_error(command: str, body: bytes, code: int) -> None:
    tag = b"\x80\x01" if command in ("NV_ReadPublic", "PCR_Read") else b"\x80\x02"
    response = tag + (10 + len(body)).to_bytes(4, "big") + code.to_bytes(4, "big") + body
    with contextlib.suppress(EvidenceSourceError):
        COMMANDS[command](Tpm2(lambda _: response))


@given(response=st.binary(max_size=60))
def test_any_framing_gives_our_error(response: bytes) -> None:
    with contextlib.suppress(EvidenceSourceError):
        Tpm2(lambda _: response).pcr_read()


def test_a_bank_that_is_not_there() -> None:
    def transmit(_command: bytes) -> bytes:
        body = bytes(4) + bytes.fromhex("00000001 000b 03 000000 00000000".replace(" ", ""))
        return b"\x80\x01" + (10 + len(body)).to_bytes(4, "big") + bytes(4) + body

    with pytest.raises(EvidenceSourceError, match=r"PCRs \[\] of the SHA-256 bank"):
        Tpm2(transmit).pcr_read()


class TestDevice:
    """Bytes to and from a TPM."""

    @staticmethod
    def answering(answer: Callable[[socket.socket], object]) -> tuple[TpmDevice, threading.Thread]:
        ours, theirs = socket.socketpair()

        def serve() -> None:
            with theirs:
                theirs.recv(4096)
                answer(theirs)

        thread = threading.Thread(target=serve)
        thread.start()
        return TpmDevice(ours.detach(), timeout_s=0.2), thread

    def ask(self, answer: Callable[[socket.socket], object]) -> bytes:
        device, thread = self.answering(answer)
        try:
            return device(b"command")
        finally:
            device.close()
            thread.join()

    def test_a_response_in_pieces(self) -> None:
        response = b"\x80\x01\0\0\0\x0c\0\0\0\0ab"
        assert self.ask(lambda peer: [peer.send(response[at : at + 1]) for at in range(12)]) == response

    def test_no_response(self) -> None:
        waiting = threading.Event()
        with pytest.raises(TimeoutError):
            self.ask(lambda _peer: waiting.wait(0.4))

    def test_half_a_response(self) -> None:
        with pytest.raises(BrokenPipeError):
            self.ask(lambda peer: peer.sendall(b"\x80\x01\0\0\0\x0c\0\0"))

    def test_a_response_that_says_it_is_endless(self) -> None:
        response = b"\x80\x01\xff\xff\xff\xff\0\0\0\0" + bytes(4096)
        assert len(self.ask(lambda peer: peer.sendall(response))) >= 4096

    def test_a_socket_is_connected_to(self, tmp_path: Path) -> None:
        with served(EmulatedVtpm(REPORT), tmp_path / "tpm") as path, connected(path) as tpm:
            assert tpm.nv_read_public(HCL_REPORT_INDEX).size == len(REPORT)
