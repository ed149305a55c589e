"""GPT-2's spelling of bytes, which byte-level vocabularies share: a printable character for each of the 256 bytes."""

from typing import cast


def byte_level_bytes(token: str) -> bytes:
    """What a token spells. One with any character that stands for no byte is text as it stands."""
    data = [BYTE_OF_CHARACTER.get(character) for character in token]
    return token.encode() if None in data else bytes(cast(list[int], data))


def byte_characters() -> dict[str, int]:
    """Printable Latin-1 characters stand for themselves, the other bytes for U+0100 onwards."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + position): byte for position, byte in enumerate(others)}


BYTE_OF_CHARACTER = byte_characters()
