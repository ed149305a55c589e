"""Seals what a client keeps for the server: only this server can read it, and nobody can change it unseen."""

import os
from functools import cached_property
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from engines.adapters.disk import sync
from engines.adapters.state_folder import private_folder
from engines.errors import InvalidRequest


class Seal:
    def __init__(self, file: Path) -> None:
        """`file` holds the key, and is made with a new one where there is none."""
        self._file = file

    def close(self, text: str) -> str:
        """The text, sealed. Raises OSError where there is no key, and none can be made."""
        return self._fernet.encrypt(text.encode()).decode()

    def open(self, sealed: str) -> str:
        """Raises InvalidRequest for what this server has not sealed."""
        try:
            return self._fernet.decrypt(sealed.encode()).decode()
        except InvalidToken:
            raise InvalidRequest("This was not sealed by this server, or not with the key that it has now.") from None

    @cached_property
    def _fernet(self) -> Fernet:
        try:
            return Fernet(self._file.read_bytes())
        except FileNotFoundError:
            return Fernet(self._make_key())

    def _make_key(self) -> bytes:
        private_folder(self._file.parent)
        key, new = Fernet.generate_key(), self._file.with_suffix(".new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(key)
        sync(new)
        new.replace(self._file)
        sync(self._file.parent)
        return key
