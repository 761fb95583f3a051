"""What the handlers of one worker process share."""

from dataclasses import dataclass

from tresor.accounts.api_keys import Authenticator
from tresor.accounts.rate_limits import RateLimiter
from tresor.app.metrics import Metrics
from tresor.issuer.issuer import ReceiptIssuer
from tresor.limits import Limits
from tresor.routing.catalogue import Catalogue
from tresor.store.base import Store
from tresor.upstreams.pool import UpstreamPool

__all__ = ["Context"]


@dataclass(slots=True, repr=False, kw_only=True)
class Context:
    """Parts of a worker, each made once.

    Attributes:
        issuer_name: the `iss` of receipts: the router's public origin.
        pools: connections, one pool per upstream in the order of the settings.
        access_log: whether every request is logged.
        draining: whether the process is about to end.
        store_ok: whether the store answered when it was asked last.
    """

    issuer_name: str
    limits: Limits
    store: Store
    authenticator: Authenticator
    rate_limiter: RateLimiter
    issuer: ReceiptIssuer
    catalogue: Catalogue
    pools: tuple[UpstreamPool, ...]
    metrics: Metrics
    access_log: bool
    draining: bool = False
    store_ok: bool = True
