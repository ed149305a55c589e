"""Signatures of thinking blocks, which clients send back with them.

Anthropic's prove that a block is its own, and hold thinking that is not shown. Ours prove nothing, as nothing is kept
from a client that writes a block itself; they hold thinking that is not shown, so that it can come back.
"""

import base64
import binascii

SHOWN = "tuneserve"
"""The signature of thinking that the block shows."""
HIDDEN = f"{SHOWN}:"
"""The beginning of one that holds the thinking in Base64."""


def hide(thinking: str) -> str:
    return HIDDEN + base64.b64encode(thinking.encode()).decode()


def find_thinking(shown: str, signature: str) -> str:
    """The thinking of a block. Signatures of other servers hold none that could be read."""
    if shown or not signature.startswith(HIDDEN):
        return shown
    try:
        return base64.b64decode(signature.removeprefix(HIDDEN), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""
