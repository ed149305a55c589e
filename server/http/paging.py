"""How many a client may ask for of a list that comes in pages (`server/store/pages.py`)."""

from typing import Annotated

from fastapi import Query

Limit = Annotated[int, Query(ge=1, le=100)]
"""OpenAI's, for most of its lists."""
