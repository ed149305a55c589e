"""Settings of pages."""

from typing import Any

from server.pages.settings import Settings
from training.params.app import AppParams, StudioParams


def settings(
    server: str, *, trains: bool = False, key: str | None = None, asks: bool = False, **given: Any
) -> Settings:
    """Of a page for the server at this address, as the command line makes them."""
    params = (StudioParams if trains else AppParams).model_validate({"base_url": f"{server}/v1", **given})
    return Settings.of(params, f"{server}/v1", model="echo", key=key, asks_for_key=asks)
