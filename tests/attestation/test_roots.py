"""The pinned roots: the files are those, and no configuration reaches them."""

import hashlib
from importlib.resources import files

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from support.evidence import facts, sample
from support.fake_amd import AT, fake_amd
from tresor.attestation import roots
from tresor.attestation.roots import PINS, TrustAnchors, root, vendor_anchors
from tresor.identity.simulated import SimulatedRoot


def test_every_file_is_pinned_and_every_pin_has_its_file() -> None:
    installed = {path.name.removesuffix(".der") for path in files(roots).iterdir() if path.name.endswith(".der")}
    assert installed == set(PINS)
    for name, pin in PINS.items():
        assert hashlib.sha256(root(name).public_bytes(Encoding.DER)).hexdigest() == pin


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
@pytest.mark.parametrize("role", ["ark", "ask", "asvk"])
def test_amd_certificates_are_those_that_were_collected(product: str, role: str) -> None:
    file = f"{product}_{role}.der"
    assert root(f"amd_{product}_{role}").public_bytes(Encoding.DER) == (sample("roots/amd") / file).read_bytes()
    assert facts("roots/amd")["files"][file]["sha256"] == PINS[f"amd_{product}_{role}"]


@pytest.mark.parametrize("name", sorted(PINS))
def test_a_file_that_was_exchanged_stops_the_import(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PINS, name, hashlib.sha256(b"another").hexdigest())
    with pytest.raises(RuntimeError, match="not the certificate that is pinned"):
        root.__wrapped__(name)


def test_each_line_has_its_own_root() -> None:
    amd = vendor_anchors().amd
    assert {product: ark.subject.rfc4514_string().split(",")[0] for product, (ark,) in amd.items()} == {
        "Milan": "CN=ARK-Milan",
        "Genoa": "CN=ARK-Genoa",
        "Turin": "CN=ARK-Turin",
    }


def test_nothing_simulated_is_installed() -> None:
    assert vendor_anchors().simulated == ()
    assert not any("SIMULATED" in root(name).subject.rfc4514_string() for name in PINS)


def test_two_worlds_do_not_meet() -> None:
    simulated = (SimulatedRoot.create(AT).certificate,)
    assert TrustAnchors(amd={}, simulated=simulated).simulated == simulated
    for beside in (
        {"amd": {"Milan": (fake_amd().ark,)}},
        {"amd": {}, "intel": (root("intel_sgx_root_ca"),)},
        {"amd": {}, "nras_intermediates": roots.NRAS_INTERMEDIATES},
    ):
        with pytest.raises(ValueError, match="one world or the other"):
            TrustAnchors(**beside, simulated=simulated)
