"""Makes what attests a node, router or sidecar, from its settings."""

import logging
from pathlib import Path
from typing import TypeVar

from tresor.attestation.hop import TRUST_BUNDLE_TARGET
from tresor.identity.attested_keys import AttestedKeys, Endorse, load_workload, spki_sha256
from tresor.identity.sources.detect import SourcePaths, open_source
from tresor.settings.load import LoadedNode
from tresor.settings.model import NodeSettings

__all__ = ["attested_keys", "trust_bundle_file"]

_log = logging.getLogger(__name__)

_Node = TypeVar("_Node", bound=NodeSettings)


def attested_keys(loaded: LoadedNode[_Node], endorse: Endorse, lock_file: Path) -> AttestedKeys:
    """Return the source of a node's keys, whose `[identity]` names a TEE.

    Raises:
        KeyNotAttestedError: the manifest or the TLS certificate cannot be used.
    """
    identity, server, tee = loaded.settings.identity, loaded.settings.server, loaded.settings.identity.tee
    if tee == "none" or identity.manifest_file is None or server.tls_certificate_file is None:
        raise RuntimeError("settings without TEE, manifest or certificate were let through")
    workload = load_workload(loaded.path(identity.manifest_file))
    if tee == "simulated":
        _log.warning("evidence is SIMULATED", extra={"workload": workload.name})
    paths = SourcePaths(
        tsm=Path(identity.tsm_path),
        sev_guest=Path(identity.sev_guest_path),
        tpm=Path(identity.tpm_path),
        simulated_root=loaded.path(identity.simulated_root_file),
    )
    return AttestedKeys(
        lambda: open_source(tee, paths, image_digest=workload.image_digest),
        workload,
        tls_spki_sha256=spki_sha256(loaded.path(server.tls_certificate_file)),
        trust_bundle_url=identity.trust_bundle_url or loaded.public_origin + TRUST_BUNDLE_TARGET,
        trust_bundle_file=trust_bundle_file(loaded),
        max_age_s=identity.max_age_seconds,
        endorse=endorse,
        lock_file=lock_file,
    )


def trust_bundle_file(loaded: LoadedNode[_Node]) -> Path | None:
    """Return the file of a node's trust bundle; None for none."""
    name = loaded.settings.identity.trust_bundle_file
    return None if name is None else loaded.path(name)
