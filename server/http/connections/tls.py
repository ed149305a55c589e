"""The server's certificate, which is read again once it has been renewed."""

import logging
import ssl
from pathlib import Path

from engines.errors import TuneserveError

logger = logging.getLogger(__name__)


class WrongCertificate(TuneserveError):
    """The files of the certificate and its key cannot be used."""

    code = "wrong_certificate"


class Certificate:
    """A certificate with its key, and the TLS context of connections; `reload` reads the files again."""

    def __init__(self, certificate: str, key: str | None = None, password: str | None = None) -> None:
        """Files in PEM; `key` is in the certificate's file unless given. Raises WrongCertificate."""
        self._certificate = Path(certificate).expanduser()
        self._key = None if key is None else Path(key).expanduser()
        self._password = password or ""
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._load(self.context)

    def reload(self) -> None:
        """New connections get what the files hold now. Where that cannot be used, what was read before stays."""
        try:
            self._load(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))  # one that fails half-way is spoilt
            self._load(self.context)
        except WrongCertificate as error:
            logger.error("The certificate stays as it was: %s", error)
        else:
            logger.info("Read the certificate again.")

    def _load(self, context: ssl.SSLContext) -> None:
        for name, file in (("ssl_certfile", self._certificate), ("ssl_keyfile", self._key)):
            _check_readable(name, file)
        asked: list[str] = []

        def password() -> str:
            """Never asked for on a terminal, as OpenSSL does by itself."""
            asked.append(self._password)
            return self._password

        try:
            context.load_cert_chain(self._certificate, self._key, password)
        except (ssl.SSLError, ValueError) as error:
            key = "" if self._key is None else f" and --ssl_keyfile {self._key}"
            why = _why(error, asked)
            raise WrongCertificate(f"--ssl_certfile {self._certificate}{key} cannot be used: {why}") from None


def read_certificate(certificate: str | None, key: str | None, password: str | None) -> Certificate | None:
    """What the parameters name, if anything. Raises WrongCertificate."""
    if certificate is not None:
        return Certificate(certificate, key, password)
    for name, value in (("ssl_keyfile", key), ("ssl_keyfile_password", password)):
        if value is not None:
            raise WrongCertificate(f"--{name} needs --ssl_certfile")
    return None


def _check_readable(name: str, file: Path | None) -> None:
    if file is None:
        return
    try:
        file.open("rb").close()
    except OSError as error:
        raise WrongCertificate(f"--{name} {file} cannot be read: {error.strerror}") from None


def _why(error: Exception, passwords: list[str]) -> str:
    """`passwords`: those that the key was tried with."""
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    if passwords:
        is_wrong, is_missing = "--ssl_keyfile_password is not that of the key", "the key needs --ssl_keyfile_password"
        return is_wrong if passwords[0] else is_missing
    return "they are no certificate and key in PEM"
