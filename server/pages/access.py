"""Who may use a page: nobody who could not use the server behind it."""

import json
import socket
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass

from engines.errors import TuneserveError
from server.http.addresses import is_loopback
from training.params.app import AppParams

PROBE_SECONDS = 10


class WrongAccess(TuneserveError):
    """The page would let in more people than the server does."""

    code = "wrong_access"


def check_access(params: AppParams, *, asks_for_key: bool) -> None:
    """A page that asks for no key is for this machine alone, unless `params` let everybody in. Raises WrongAccess."""
    if asks_for_key or params.allow_anonymous or not _is_reached_by_others(params):
        return
    flag = "--share true" if params.share else f"--server_name {params.server_name}"
    where = "the server has no keys" if params.api_key is None else "the page sends its own key"
    raise WrongAccess(
        f"{flag}: everybody who reaches the page could use the server, for {where}; have visitors give keys of the "
        "server, or let everybody in, by --allow_anonymous true"
    )


def _is_reached_by_others(params: AppParams) -> bool:
    if params.share:
        return True
    try:
        found = socket.getaddrinfo(params.server_name, None)
    except OSError:
        raise WrongAccess(f"--server_name {params.server_name}: no address of this machine") from None
    return not all(is_loopback(str(address[0])) for *_, address in found)


@dataclass(frozen=True, slots=True)
class Found:
    """What a server that is asked without more says."""

    wants_key: bool
    """Whether it lets nobody in, with the key that it was given."""
    model: str | None
    """The first that it names."""


def ask(base_url: str, key: str | None) -> Found:
    """Raises WrongAccess where the server cannot be asked."""
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models", headers=headers)
    host = urllib.parse.urlsplit(base_url).hostname or ""
    here = host == "localhost" or is_loopback(host)
    opener = urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if here else []))
    try:
        with opener.open(request, timeout=PROBE_SECONDS) as answer:
            return Found(wants_key=False, model=json.load(answer)["data"][0]["id"])
    except urllib.error.HTTPError as error:
        return Found(wants_key=error.code in (401, 403), model=None)
    except (LookupError, TypeError, ValueError):
        raise WrongAccess(f"--base_url {base_url}: no server of OpenAI's API answers there") from None
    except OSError as error:
        raise WrongAccess(f"--base_url {base_url}: the server cannot be asked: {error}") from None
