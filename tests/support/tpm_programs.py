"""swtpm and tpm2_checkquote: those of the machine, or Debian's packages, fetched and unpacked but not installed."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

__all__ = ["find_tpm_programs"]

PROGRAMS: Final = ("swtpm", "tpm2_checkquote")
_TSS: Final = ("esys-3.0.2-0", "fapi1", "mu0", "rc0", "sys1", "tctildr0")
_PACKAGES: Final = (
    "swtpm",
    "swtpm-libs",
    "libtpms0",
    "tpm2-tools",
    "libseccomp2",
    "libglib2.0-0",
    "libjson-c5",
    *(f"libtss2-{name}" for name in _TSS),
)
_QUICKLY: Final = ("-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10")
_WRAPPER: Final = """#!/bin/sh
LD_LIBRARY_PATH="{libraries}" exec "{program}" "$@"
"""


def find_tpm_programs(folder: Path) -> Path:
    """Return a directory that holds the programs, below `folder` where they had to be fetched; skip without them."""
    if all(map(shutil.which, PROGRAMS)):
        return Path(shutil.which(PROGRAMS[0]) or "").parent
    if shutil.which("apt-get") is None or os.environ.get("TRESOR_TESTS_OFFLINE"):
        pytest.skip("swtpm and tpm2-tools are not installed, and cannot be fetched")
    root, programs = folder / "root", folder / "bin"
    programs.mkdir()
    fetched = subprocess.run(
        ["apt-get", "download", *_QUICKLY, *_PACKAGES], check=False, capture_output=True, cwd=folder, timeout=100
    )
    if fetched.returncode:
        pytest.skip("swtpm and tpm2-tools are not installed, and apt-get cannot download them")
    for package in folder.glob("*.deb"):
        subprocess.run(["dpkg", "--extract", package, root], check=True)
    libraries = [
        *root.glob("usr/lib/*-linux-gnu"),
        *root.glob("usr/lib/*-linux-gnu/swtpm"),
        *root.glob("lib/*-linux-gnu"),
    ]
    for name in PROGRAMS:
        wrapper = programs / name
        wrapper.write_text(
            _WRAPPER.format(libraries=":".join(map(str, libraries)), program=root / "usr" / "bin" / name)
        )
        wrapper.chmod(0o755)
        if subprocess.run([wrapper, "--version"], check=False, capture_output=True).returncode:
            pytest.skip(f"Debian's {name} does not run here")
    return programs
