"""What is kept, as text: JSON that may be long, and is then read in a thread."""

import asyncio
from typing import Any

import orjson

LONG = 64 << 10
"""Characters. Reading a longer text would hold up the event loop."""


def encode(value: Any) -> str:
    return orjson.dumps(value).decode()


async def decode(*texts: str) -> list[Any]:
    """The values of texts that `encode` has made."""
    if sum(map(len, texts)) > LONG:
        return await asyncio.to_thread(_decode, texts)
    return _decode(texts)


def _decode(texts: tuple[str, ...]) -> list[Any]:
    return [orjson.loads(text) for text in texts]
