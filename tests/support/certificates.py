"""A certificate authority of the tests' own, and what both sides make of it."""

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

__all__ = ["Tls", "make_tls"]


@dataclass(frozen=True)
class Tls:
    """Files for servers' settings and contexts for whoever speaks to them."""

    ca_file: Path
    certificate_file: Path
    key_file: Path

    def client_context(self) -> ssl.SSLContext:
        """Return a context that trusts the authority."""
        return ssl.create_default_context(cafile=self.ca_file)

    def server_context(self) -> ssl.SSLContext:
        """Return a context with the certificate for localhost."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate_file, self.key_file)
        return context


def make_tls(folder: Path) -> Tls:
    """Make the authority and a certificate for localhost."""
    tls = Tls(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    authority.cert_pem.write_to_path(tls.ca_file)
    for number, blob in enumerate(certificate.cert_chain_pems):
        blob.write_to_path(tls.certificate_file, append=number > 0)
    certificate.private_key_pem.write_to_path(tls.key_file)
    return tls
