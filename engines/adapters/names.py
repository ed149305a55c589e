"""Rules for the names of adapters and aliases."""

import re

from engines.errors import InvalidRequest

SEGMENT = r"[A-Za-z0-9_][A-Za-z0-9._:-]*"
NAME = re.compile(rf"{SEGMENT}(/{SEGMENT})*")
LONGEST = 200


def check_name(name: str, *, base_name: str) -> None:
    """Refuse what cannot be a name beside the base model's. Raises InvalidRequest."""
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        message = (
            f"{name[:LONGEST]!r} is not a name for an adapter: it has letters, digits and ._:-/, at most {LONGEST} of "
            "them, and begins with a letter, a digit or _, after each / too"
        )
        raise InvalidRequest(message, param="name")
    if name == base_name:
        raise InvalidRequest(f"{name!r} is the base model's name", param="name")
    if name.startswith(f"{base_name}:"):
        raise InvalidRequest(f"{name!r} would stand for the adapter {name[len(base_name) + 1 :]!r}", param="name")
