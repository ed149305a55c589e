"""`tuneserve app` and `tuneserve web-ui`: a page, and the server behind it unless there is one."""

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

from engines.checkpoint.gguf.named import name_of
from engines.errors import TuneserveError
from engines.setup.install import require_pages
from server.commands.supported_of_pages import to_deploy
from server.pages.access import ask, check_access
from server.pages.process import Beside, become
from server.pages.settings import Settings
from training.params.app import AppParams

KEY = "TUNESERVE_API_KEY"
"""Environment variable of the key that the page sends to a server at `base_url`."""


def run(params: AppParams) -> int:
    """Show the page until a signal; return the exit status."""
    try:
        libraries = require_pages()
        if params.base_url is not None:
            _show_alone(params, params.base_url, libraries)
    except TuneserveError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return _show_beside_server(params, libraries)


def _show_alone(params: AppParams, base_url: str, libraries: Path) -> None:
    """Raises WrongAccess; else does not return."""
    key = params.api_key[0] if params.api_key else os.environ.get(KEY) or None
    found = ask(base_url, key)
    if key is not None and found.wants_key:
        raise TuneserveError(f"--base_url {base_url}: the server does not take the key of --api_key or {KEY}")
    check_access(params, asks_for_key=found.wants_key)
    os.environ.pop(KEY, None)
    become(
        Settings.of(params, base_url, model=found.model or "tuneserve", key=key, asks_for_key=found.wants_key),
        libraries,
    )


def _show_beside_server(params: AppParams, libraries: Path) -> int:
    from server.commands import deploy

    pages: list[Beside] = []

    def beside(address: str, keyed: bool) -> AbstractContextManager[None]:
        check_access(params, asks_for_key=keyed)
        assert params.model is not None, "the command line asks for one"
        name = params.served_model_name or name_of(params.model)
        settings = Settings.of(params, f"{address}/v1", model=name, key=None, asks_for_key=keyed)
        pages.append(Beside(settings, libraries))
        return pages[0]

    status = deploy.run(to_deploy(params), beside)
    return status or int(any(page.failed for page in pages))
