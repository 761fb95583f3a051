"""Puts the parts of one worker together, as the settings say."""

from collections.abc import Callable
from typing import Final, TypeVar

from tresor.accounts.api_keys import Authenticator
from tresor.accounts.rate_limits import RateLimiter
from tresor.app.attesting import Attesting
from tresor.app.context import Context
from tresor.app.identity import attested_keys, trust_bundle_file
from tresor.app.metrics import Metrics
from tresor.attestation.errors import PolicyError
from tresor.attestation.hop import HopPolicy
from tresor.attestation.policy import STRICT, parse_policy
from tresor.collateral.endorse import endorser
from tresor.errors import SettingsError
from tresor.http1.sweeper import Sweeper
from tresor.issuer.issuer import ReceiptIssuer
from tresor.issuer.key_files import KeySlot
from tresor.routing.catalogue import Catalogue
from tresor.settings.load import LoadedSettings
from tresor.settings.model import UpstreamSettings
from tresor.store.sqlite.store import SqliteStore
from tresor.trust.errors import TrustError
from tresor.trust.release_root import parse_public_key
from tresor.upstreams.channel import Endorse
from tresor.upstreams.pool import Attestation, UpstreamPool

__all__ = ["assemble"]

_LOCK_NAME: Final = "tresor-identity.lock"
_Content = TypeVar("_Content")


def assemble(loaded: LoadedSettings, sweeper: Sweeper) -> tuple[Context, Attesting]:
    """Make the parts of a worker; to be called inside its event loop.

    Raises:
        StoreUnavailableError, KeyFileError, KeyNotAttestedError: one of them cannot be made.
        SettingsError: a file that the settings name cannot be used.
    """
    settings, identity = loaded.settings, loaded.settings.identity
    store = SqliteStore(loaded.path(settings.store.path))
    metrics = Metrics()
    endorse = endorser(loaded.path(identity.collateral_directory), online=identity.fetch_collateral)
    attested = None
    if identity.tee != "none":
        lock_file = loaded.path(settings.store.path).with_name(_LOCK_NAME)
        attested = attested_keys(loaded, endorse, lock_file)
    issuer = ReceiptIssuer(
        store,
        attested or KeySlot(loaded.path(settings.receipts.key_directory)),
        max_pending=settings.limits.max_pending_receipts,
        rotation_days=settings.receipts.key_rotation_days,
        on_group=metrics.receipt_group,
    )
    pools = tuple(
        UpstreamPool(
            upstream,
            api_key=api_key,
            ca_file=None if upstream.ca_file is None else loaded.path(upstream.ca_file),
            limits=settings.limits,
            sweeper=sweeper,
            attestation=_attestation(loaded, upstream, endorse),
        )
        for upstream, api_key in zip(settings.upstreams, loaded.api_keys, strict=True)
    )
    context = Context(
        issuer_name=loaded.public_origin,
        limits=settings.limits,
        store=store,
        authenticator=Authenticator(store),
        rate_limiter=RateLimiter(store, settings.plans),
        issuer=issuer,
        catalogue=Catalogue(settings.upstreams),
        pools=pools,
        metrics=metrics,
        access_log=settings.log.access,
    )
    attesting = Attesting(
        issuer,
        attested,
        trust_bundle_file(loaded),
        nonces_per_minute=identity.nonces_per_minute,
    )
    return context, attesting


def _attestation(loaded: LoadedSettings, upstream: UpstreamSettings, endorse: Endorse) -> Attestation | None:
    """Return what an upstream must show; None where the operator asks for nothing."""
    if upstream.attestation == "none":
        return None

    def read(name: str | None, parse: Callable[[bytes], _Content]) -> _Content | None:
        try:
            return None if name is None else parse(loaded.path(name).read_bytes())
        except (PolicyError, TrustError) as error:
            raise SettingsError(f"{loaded.path(name or '')}: {error}") from error

    demands = HopPolicy(
        policy=read(upstream.policy_file, parse_policy) or STRICT,
        release_root=read(upstream.release_root_file, parse_public_key),
        workload=upstream.workload,
        allow_simulated=upstream.allow_simulated,
    )
    return Attestation(
        kind=upstream.attestation,
        policy=demands,
        trust_bundle=read(upstream.trust_bundle_file, bytes.strip),
        endorse=endorse,
    )
