"""A TPM 2.0 in software (Debian package swtpm), prepared as Azure prepares its vTPM."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from struct import Struct

import pytest

from tresor.identity.sources.azure_vtpm import AK_HANDLE, HCL_REPORT_INDEX
from tresor.identity.sources.tpm2 import TpmDevice

__all__ = ["extend", "prepare", "running_swtpm"]

SESSIONS = 0x8002
PASSWORD = bytes.fromhex("00000009 40000009 0000 00 0000".replace(" ", ""))
OWNER = 0x4000_0001
CREATE_PRIMARY, EVICT_CONTROL, NV_DEFINE_SPACE, NV_WRITE, PCR_EXTEND = 0x131, 0x120, 0x12A, 0x137, 0x182
AUTH_WRITE_READ_OWNER = 1 << 1 | 1 << 2 | 1 << 17 | 1 << 18  # OWNERWRITE, AUTHWRITE, OWNERREAD, AUTHREAD
CHUNK = 512


@contextlib.contextmanager
def running_swtpm(folder: Path) -> Iterator[Path]:
    """Run a fresh TPM; yields its UNIX socket.  It serves one connection after the other."""
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed (Debian package swtpm)")
    path = folder / "tpm"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear"]
    # Without `--server …,disconnect` it keeps serving after a connection has ended.
    process = subprocess.Popen([*command, "--server", f"type=unixio,path={path}"])
    try:
        end = time.monotonic() + 10
        while not path.exists():
            assert process.poll() is None, "swtpm ended"
            assert time.monotonic() < end, "swtpm did not start"
            time.sleep(0.01)
        yield path
    finally:
        process.kill()
        process.wait()


def prepare(path: Path, report: bytes) -> bytes:
    """Make the attestation key and store an HCL report; returns the key's TPMT_PUBLIC."""
    with contextlib.closing(TpmDevice.open(path)) as device:
        # TPMT_PUBLIC of a restricted RSA-2048 signing key, RSASSA with SHA-256, with an empty password.
        public = bytes.fromhex("0001 000b 00050072 0000 0010 0014 000b 0800 00000000 0000".replace(" ", ""))
        parameters = _sized(bytes(4)) + _sized(public) + bytes(2) + bytes(4)
        created = _run(device, CREATE_PRIMARY, [OWNER], parameters)
        handle, made = created[:4], created[8:]  # in front of the parameters: a handle, then their size
        _run(device, EVICT_CONTROL, [OWNER, int.from_bytes(handle, "big")], AK_HANDLE.to_bytes(4, "big"))
        space = Struct(">IHIHH").pack(HCL_REPORT_INDEX, 0x000B, AUTH_WRITE_READ_OWNER, 0, len(report))
        _run(device, NV_DEFINE_SPACE, [OWNER], bytes(2) + _sized(space))
        for offset in range(0, len(report), CHUNK):
            chunk = _sized(report[offset : offset + CHUNK]) + offset.to_bytes(2, "big")
            _run(device, NV_WRITE, [OWNER, HCL_REPORT_INDEX], chunk)
        return made[2 : 2 + int.from_bytes(made[:2], "big")]


def extend(path: Path, pcr: int, digest: bytes) -> None:
    """Extend a PCR of the SHA-256 bank."""
    with contextlib.closing(TpmDevice.open(path)) as device:
        _run(device, PCR_EXTEND, [pcr], bytes.fromhex("00000001000b") + digest)


def _run(device: TpmDevice, code: int, handles: list[int], parameters: bytes) -> bytes:
    body = b"".join(handle.to_bytes(4, "big") for handle in handles) + PASSWORD + parameters
    response = device(Struct(">HII").pack(SESSIONS, 10 + len(body), code) + body)
    assert response[6:10] == bytes(4), f"command {code:#x}: response code {response[6:10].hex()}"
    return response[10:]


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
