"""The SEV guest device, emulated at its ioctl."""

import ctypes
import errno
from collections import deque
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from support.emulated_sev_guest import SNP_GET_EXT_REPORT, SNP_GET_REPORT, EmulatedSevGuest
from support.emulated_time import PassingTime
from tresor.identity.source import CollectedEvidence, EvidenceSourceError, SourceCode
from tresor.identity.sources.patience import Patience
from tresor.identity.sources.sev_guest import Ioctl, SevGuestSource

REPORT_DATA = bytes(range(64))
REPORT = bytes(0x50) + REPORT_DATA + bytes(1184 - 0x90)
VCEK = bytes.fromhex("63da758de6644564adc5f4b93be8accd")
DEVICE = Path("/dev/null")


@pytest.fixture
def kernel() -> EmulatedSevGuest:
    return EmulatedSevGuest()


@pytest.fixture
def source(kernel: EmulatedSevGuest, patience: Patience) -> SevGuestSource:
    return SevGuestSource(DEVICE, patience=patience, ioctl=kernel)


def table(size: int) -> bytes:
    """A certificate table of one VCEK, `size` bytes in all."""
    length = size - 48
    return VCEK + (48).to_bytes(4, "little") + length.to_bytes(4, "little") + bytes(24) + b"v" * length


def error_of(source: SevGuestSource) -> tuple[SourceCode, str]:
    with pytest.raises(EvidenceSourceError) as caught:
        source.collect(REPORT_DATA)
    return caught.value.code, str(caught.value)


def test_report_and_certificates(kernel: EmulatedSevGuest, source: SevGuestSource) -> None:
    kernel.table = table(2000)
    assert source.collect(REPORT_DATA) == CollectedEvidence(
        tee="sev-snp", parts={"snp_report": REPORT}, certificates=(b"v" * 1952,)
    )
    assert kernel.requests == [(SNP_GET_EXT_REPORT, 0x4000)]


def test_a_host_without_certificates_gives_none(source: SevGuestSource) -> None:
    assert source.collect(REPORT_DATA).certificates == ()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_more_room_for_certificates(kernel: EmulatedSevGuest, source: SevGuestSource, number: int) -> None:
    kernel.table, kernel.blob_max, kernel.invalid_len_errno = table(0x5001), 0x1_0000, number
    assert len(source.collect(REPORT_DATA).certificates[0]) == 0x5001 - 48
    assert kernel.requests == [(SNP_GET_EXT_REPORT, 0x4000), (SNP_GET_EXT_REPORT, 0x6000)]


def test_more_certificates_than_the_driver_takes_are_left_out(kernel: EmulatedSevGuest, source: SevGuestSource) -> None:
    kernel.table = table(0x5001)
    assert source.collect(REPORT_DATA) == CollectedEvidence(tee="sev-snp", parts={"snp_report": REPORT})
    assert kernel.requests[-1] == (SNP_GET_REPORT, 0)


def test_more_certificates_than_any_host_has_are_left_out(kernel: EmulatedSevGuest, source: SevGuestSource) -> None:
    kernel.table, kernel.blob_max = table(0x4_0001), 1 << 30
    assert source.collect(REPORT_DATA).certificates == ()
    assert kernel.requests == [(SNP_GET_EXT_REPORT, 0x4000), (SNP_GET_REPORT, 0)]


@pytest.mark.parametrize("wanted", [0, 1, 0x4000])
def test_a_host_that_wants_no_more_room_than_it_has(kernel: EmulatedSevGuest, patience: Patience, wanted: int) -> None:
    def ioctl(descriptor: int, command: int, argument: bytearray) -> int:
        if command == SNP_GET_REPORT:
            return kernel(descriptor, command, argument)
        request = int.from_bytes(argument[8:16], "little")
        ctypes.memmove(request + 104, wanted.to_bytes(4, "little"), 4)
        argument[24:] = (1 << 32).to_bytes(8, "little")
        raise OSError(errno.EIO, "room")

    evidence = SevGuestSource(DEVICE, patience=patience, ioctl=ioctl).collect(REPORT_DATA)
    assert evidence == CollectedEvidence(tee="sev-snp", parts={"snp_report": REPORT})


def test_a_driver_that_hands_out_no_certificates(kernel: EmulatedSevGuest, source: SevGuestSource) -> None:
    kernel.extended = False
    assert source.collect(REPORT_DATA).parts == {"snp_report": REPORT}


def test_throttled(kernel: EmulatedSevGuest, source: SevGuestSource, time: PassingTime) -> None:
    kernel.errors = deque([(errno.EIO, 2 << 32), (errno.EAGAIN, 2 << 32)])
    assert source.collect(REPORT_DATA).parts == {"snp_report": REPORT}
    kernel.errors = deque([(errno.EIO, 2 << 32)] * 1000)
    code, message = error_of(source)
    assert code == SourceCode.BUSY
    assert "throttled" in message
    assert time.now < 22


@pytest.mark.parametrize(
    ("number", "exitinfo2", "words"),
    [
        (errno.EIO, 0x16, "firmware 0x16 (INVALID_PARAM), hypervisor 0x0 (no error)"),
        (errno.EIO, 0x99, "firmware 0x99 (unknown)"),
        (errno.EIO, 7 << 32, "hypervisor 0x7"),
        (errno.EBADMSG, 0, "Bad message: see"),
        (errno.ENOMEM, 0xFF, "Cannot allocate memory: see"),
    ],
)
def test_errors_are_decoded(
    kernel: EmulatedSevGuest, source: SevGuestSource, number: int, exitinfo2: int, words: str
) -> None:
    kernel.errors = deque([(number, exitinfo2)])
    code, message = error_of(source)
    assert code == SourceCode.FAILED
    assert words in message


def test_a_driver_that_gave_up_its_key(kernel: EmulatedSevGuest, source: SevGuestSource) -> None:
    kernel.errors = deque([(errno.EIO, 0x27)])
    error_of(source)
    code, message = error_of(source)
    assert code == SourceCode.FAILED
    assert "restart the VM" in message


def test_a_guest_that_is_not_at_vmpl_0(kernel: EmulatedSevGuest, source: SevGuestSource) -> None:
    kernel.level = 2
    assert error_of(source) == (SourceCode.FAILED, "firmware refuses a report: 0x16 (INVALID_PARAM)")


@pytest.mark.parametrize("size", [0, 100, 4000, 2**32 - 1])
def test_a_response_that_is_no_report(kernel: EmulatedSevGuest, source: SevGuestSource, size: int) -> None:
    kernel.size = size
    assert error_of(source)[0] == SourceCode.FAILED


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(EvidenceSourceError, match="load the module sev-guest") as caught:
        SevGuestSource(tmp_path / "sev-guest")
    assert caught.value.code == SourceCode.UNAVAILABLE
    with pytest.raises(EvidenceSourceError, match="Is a directory") as caught:
        SevGuestSource(tmp_path)
    assert caught.value.code == SourceCode.UNAVAILABLE


def test_a_device_that_is_something_else(patience: Patience) -> None:
    """The kernel itself says so, through the real ioctl."""
    code, message = error_of(SevGuestSource(DEVICE, patience=patience))
    assert code == SourceCode.FAILED
    assert "/dev/null: Inappropriate ioctl for device" in message
    assert "older than 5.19" in message


@pytest.mark.parametrize("size", [0, 63, 65])
def test_report_data_is_64_bytes(source: SevGuestSource, size: int) -> None:
    with pytest.raises(ValueError, match="want 64"):
        source.collect(bytes(size))


def answering(response: bytes, certificates: bytes, argument: bytes, number: int) -> Ioctl:
    """A kernel that writes any bytes wherever it was given room, and returns or fails."""

    def ioctl(_descriptor: int, _command: int, buffer: bytearray) -> int:
        request, answer = (int.from_bytes(buffer[at : at + 8], "little") for at in (8, 16))
        ctypes.memmove(answer, response, len(response))
        room = int.from_bytes(ctypes.string_at(request + 104, 4), "little")
        if room:
            ctypes.memmove(int.from_bytes(ctypes.string_at(request + 96, 8), "little"), certificates, len(certificates))
        ctypes.memmove(request + 104, argument[:4], len(argument[:4]))
        buffer[24 : 24 + len(argument[4:])] = argument[4:]
        if number:
            raise OSError(number, "refused")
        return 0

    return ioctl


@given(
    response=st.binary(max_size=4000),
    certificates=st.binary(max_size=0x4000),
    argument=st.binary(max_size=12),
    number=st.sampled_from([0, 0, errno.EIO, errno.ENOSPC, errno.EINVAL, errno.EAGAIN]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_of_the_kernel_give_evidence_or_our_error(
    patience: Patience, response: bytes, certificates: bytes, argument: bytes, number: int
) -> None:
    with suppress(EvidenceSourceError):
        source = SevGuestSource(DEVICE, patience=patience, ioctl=answering(response, certificates, argument, number))
        assert REPORT_DATA in source.collect(REPORT_DATA).parts["snp_report"]
