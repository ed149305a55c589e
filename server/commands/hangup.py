"""SIGHUP: what may change while the server runs is read again."""

from server.http.connections.tls import Certificate
from server.http.keys.keys import Keys


def read_again(keys: Keys, certificate: Certificate | None) -> None:
    """Each stays as it was where it cannot be used."""
    keys.reload()
    if certificate is not None:
        certificate.reload()
