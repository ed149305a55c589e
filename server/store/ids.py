"""Ids in OpenAI's style: what a thing is, then letters and digits that nobody can guess."""

import secrets
import string

ALPHABET = string.ascii_letters + string.digits


def new_id(prefix: str) -> str:
    """`new_id("file-")` is such as `file-4JmKQ...`: 24 letters and digits, 142 bits."""
    return prefix + "".join(secrets.choice(ALPHABET) for _ in range(24))
