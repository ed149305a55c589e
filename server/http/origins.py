"""Keeps web pages of other origins away from the server.

A browser sends what any page tells it to, to any address that the browser reaches: also to a server on its own machine,
or in the network around it, where nobody from outside can connect. The page may not read the answer, but what the
request asks for is done: tokens are generated, a file is uploaded, a job is cancelled.

- Browsers add `Origin` and `Sec-Fetch-Site`, which tell where the page comes from and which no page can change. What is
  not a browser sends neither, and is let through: whether it may ask is a matter of its key.
- By DNS rebinding, a page has its own name lead to the server's address. It is of the server's origin then, and reads
  the answers, too; but `Host` has its name. Nobody can have an IP address, or `localhost`, lead elsewhere. A page has
  no key, so where there are keys, hosts are not looked at unless they are named.

JSON is taken as `Content-Type: application/json` only (`server.http.body`), for which a browser asks leave before it
sends; uploads and requests without a body rest on what is here alone.
"""

import socket
from collections.abc import Iterable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from server.http.addresses import parse_address
from server.http.errors import ForeignOrigin, UnknownHost, error_response
from server.http.keys.auth import PUBLIC
from server.http.keys.keys import Keys
from server.http.paths import route_path

OWN_SITES = ("none", "same-origin")
"""Values of Sec-Fetch-Site: the person typed the address, or the page is the server's own."""


class Origins:
    """Answers requests of web pages of other origins, and requests for unknown hosts, with 403. `*` allows all."""

    def __init__(
        self, app: ASGIApp, *, keys: Keys, address: str, allowed_origins: Iterable[str], allowed_hosts: Iterable[str]
    ) -> None:
        """`address`: what the server was told to listen on."""
        self._app = app
        self._keys = keys
        self._origins = frozenset(allowed_origins)
        self._named_hosts = frozenset(map(str.lower, allowed_hosts))
        self._known_hosts = self._named_hosts | {"localhost", address.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or route_path(scope) in PUBLIC:
            return await self._app(scope, receive, send)
        try:
            self._check_host(Headers(scope=scope))
            self._check_origin(Headers(scope=scope), scope["method"])
        except (ForeignOrigin, UnknownHost) as error:
            return await error_response(error, scope)(scope, receive, send)
        await self._app(scope, receive, send)

    def _check_host(self, headers: Headers) -> None:
        if (self._keys and not self._named_hosts) or "*" in self._named_hosts:
            return
        for host in map(_without_port, headers.getlist("host")):
            if not (host in self._known_hosts or host.endswith(".localhost") or parse_address(host)):
                raise UnknownHost(f"The host {host[:100]!r} is not known to this server; --allowed_hosts names others.")

    def _check_origin(self, headers: Headers, method: str) -> None:
        origin = headers.get("origin")
        if "*" in self._origins or origin in self._origins:
            return
        own_site = headers.get("sec-fetch-site", "none") in OWN_SITES
        if own_site and (origin is None or _is_own(origin, headers)):
            return
        if origin is None and _is_followed_link(headers, method):
            return
        whose = "another origin" if origin is None else f"the origin {origin[:100]!r}"
        raise ForeignOrigin(f"A web page of {whose} may not use this server; --allowed_origins names those that may.")


def _is_own(origin: str, headers: Headers) -> bool:
    """Whether the page came from the host that it now asks. A proxy before the server may have added the encryption."""
    host = headers.get("host", "").lower()
    return origin in (f"http://{host}", f"https://{host}")


def _is_followed_link(headers: Headers, method: str) -> bool:
    """A person went from a page to an address of ours: the answer takes the page's place, which does not see it."""
    to = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest"))
    return method == "GET" and to == ("navigate", "document")


def _without_port(host: str) -> str:
    """`localhost` for `localhost:8000`, `::1` for `[::1]:8000`."""
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    return name.lower().removesuffix(".")
