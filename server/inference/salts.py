"""Salts of the prefix cache, by which prompts of different owners never share prefixes.

Without them `cached_tokens`, or the time to the first token, would tell one owner how a prompt of another begins.
"""

import hashlib
import hmac
import secrets

import orjson


class Salts:
    """The salts of one run of the server. Nobody can predict them, whatever names and salts are chosen."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def of(self, owner: str | None, given: str | None) -> str | None:
        """The salt of an owner's requests; `given` is the one that a request itself asks for.

        None where all is one owner's, as on a server without keys, and nothing is asked for.
        """
        if owner is None and given is None:
            return None
        return hmac.new(self._secret, orjson.dumps([owner, given]), hashlib.sha256).hexdigest()
