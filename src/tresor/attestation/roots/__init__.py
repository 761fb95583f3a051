"""The vendors' trust anchors, pinned by SHA-256 in the code (docs/spec/attestation.md, 4).

A file that does not have its pinned digest stops the import: a root can never be added or exchanged by a file alone,
and no configuration reaches here.  The simulated world has no root here; its roots come from a trust bundle that says
`"simulated": true`, and only to callers that opt in.

Sources, compared by SHA-256 over several public repositories: AMD KDS (also in google/go-sev-guest and virtee/sev),
Intel SGX Root CA, AWS Nitro Enclaves Root G1, NVIDIA device identity and CoRIM signing roots (NVIDIA/nvtrust), Azure
Virtual TPM root 2023.  Certificates are facts; their publishers allow use for verification.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final

from cryptography import x509

from tresor.attestation.x509 import load_certificate

__all__ = ["NRAS_INTERMEDIATES", "PINS", "TrustAnchors", "root", "vendor_anchors"]

PINS: Final = {
    "amd_genoa_ark": "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
    "amd_genoa_ask": "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521",
    "amd_genoa_asvk": "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372",
    "amd_milan_ark": "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
    "amd_milan_ask": "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b",
    "amd_milan_asvk": "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5",
    "amd_turin_ark": "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
    "amd_turin_ask": "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185",
    "amd_turin_asvk": "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c",
    "aws_nitro_root_g1": "641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b",
    "azure_tpm_root_2023": "e6c596b17f8ffefba5c300f714cfb1260c6028704ecf7becc4ab5018efb00e95",
    "intel_sgx_root_ca": "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
    "nvidia_device_identity_root": "102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48",
    "nvidia_rim_root": "12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1",
}
"""File name without `.der` to SHA-256 of its bytes."""

# NVIDIA does not publish the root of its remote attestation service; this intermediate signs its token keys until
# 2029-12-08.  SHA-256 of the certificate; it comes along in the key set.
NRAS_INTERMEDIATES: Final = frozenset({"2df8907cf4d6c277b855d407ec178a649930a8e73f7294e8fce66e6ee27c5175"})


@cache
def root(name: str) -> x509.Certificate:
    """Return the pinned certificate `name`, a key of `PINS`.

    Raises:
        RuntimeError: the installed file is not the pinned one.
    """
    der = files(__name__).joinpath(f"{name}.der").read_bytes()
    if hashlib.sha256(der).hexdigest() != PINS[name]:
        raise RuntimeError(f"the installed {name}.der is not the certificate that is pinned")
    return load_certificate(der)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustAnchors:
    """The roots that an appraisal trusts: all of them vendors', or all of them simulated.

    Attributes:
        amd: product (`Milan`, `Genoa`, `Turin`) to its ARKs.
        intel: roots of the PCK and TCB signing chains.
        nvidia_device: roots of device identity chains.
        nvidia_rim: roots of reference integrity manifests.
        nras_intermediates: SHA-256 of the certificates that may sign NVIDIA's token keys.
        nitro: roots of AWS Nitro documents.
        azure_tpm: roots of Azure vTPM attestation keys.
        simulated: roots of reports that no hardware made; beside a vendor's root they are an error.
    """

    amd: Mapping[str, tuple[x509.Certificate, ...]]
    intel: tuple[x509.Certificate, ...] = ()
    nvidia_device: tuple[x509.Certificate, ...] = ()
    nvidia_rim: tuple[x509.Certificate, ...] = ()
    nras_intermediates: frozenset[str] = frozenset()
    nitro: tuple[x509.Certificate, ...] = ()
    azure_tpm: tuple[x509.Certificate, ...] = ()
    simulated: tuple[x509.Certificate, ...] = ()

    def __post_init__(self) -> None:
        vendors = (*self.amd.values(), self.intel, self.nvidia_device, self.nvidia_rim, self.nitro, self.azure_tpm)
        if self.simulated and (any(vendors) or self.nras_intermediates):
            raise ValueError("simulated roots beside vendors' roots: a set of trust anchors is one world or the other")


@cache
def vendor_anchors() -> TrustAnchors:
    """Return the pinned roots of all vendors."""
    return TrustAnchors(
        amd={name: (root(f"amd_{name.lower()}_ark"),) for name in ("Milan", "Genoa", "Turin")},
        intel=(root("intel_sgx_root_ca"),),
        nvidia_device=(root("nvidia_device_identity_root"),),
        nvidia_rim=(root("nvidia_rim_root"),),
        nras_intermediates=NRAS_INTERMEDIATES,
        nitro=(root("aws_nitro_root_g1"),),
        azure_tpm=(root("azure_tpm_root_2023"),),
    )
