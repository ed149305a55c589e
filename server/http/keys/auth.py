"""Keys and roles. Once a key is set, every path needs one, but for the few that are public."""

from collections.abc import Callable, Iterator

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from engines.errors import TuneserveError
from server.http.errors import InsufficientPermissions, InvalidApiKey, error_response
from server.http.keys.caller import ALL_ROLES, ANYBODY, Caller, Role
from server.http.keys.keys import Keys
from server.http.paths import route_path

PUBLIC = frozenset({"/health", "/ping", "/ready"})
USERS = ALL_ROLES - {Role.METRICS}
ROLES_OF_PATHS: tuple[tuple[frozenset[str], str, frozenset[Role]], ...] = (
    # methods, start of the path, roles of which a key needs one
    (frozenset({"GET"}), "/v1/models", USERS),
    (frozenset({"GET"}), "/version", USERS),
    (frozenset({"GET"}), "/metrics", ALL_ROLES),
    (frozenset({"GET"}), "/openapi.json", USERS),
    (frozenset({"GET", "POST", "DELETE"}), "/v1/chat/completions/", frozenset({Role.INFER, Role.ADMIN})),
    (frozenset({"GET"}), "/v1/chat/completions", frozenset({Role.INFER, Role.ADMIN})),
    (frozenset({"POST"}), "/v1/chat/completions", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/v1/completions", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/v1/responses", frozenset({Role.INFER})),
    (frozenset({"GET", "DELETE"}), "/v1/responses/", frozenset({Role.INFER, Role.ADMIN})),
    (frozenset({"GET", "POST", "DELETE"}), "/v1/conversations", frozenset({Role.INFER, Role.ADMIN})),
    (frozenset({"POST"}), "/v1/embeddings", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/v1/classify", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/classify", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/v1/score", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/score", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/v1/rerank", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/v2/rerank", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/rerank", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/v1/messages", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/tokenize", frozenset({Role.INFER})),
    (frozenset({"POST"}), "/detokenize", frozenset({Role.INFER})),
    (frozenset({"GET", "POST", "DELETE"}), "/v1/files", USERS),
    (frozenset({"POST"}), "/v1/uploads", USERS),
    (frozenset({"GET", "POST"}), "/v1/batches", frozenset({Role.INFER, Role.ADMIN})),
    (frozenset({"GET", "POST", "DELETE"}), "/v1/evals", frozenset({Role.INFER, Role.ADMIN})),
    (frozenset({"DELETE"}), "/v1/models/", frozenset({Role.TRAIN, Role.ADMIN})),
    (frozenset({"GET", "POST"}), "/v1/fine_tuning/", frozenset({Role.TRAIN, Role.ADMIN})),
    (frozenset({"GET", "POST", "DELETE"}), "/v1/jobs", frozenset({Role.TRAIN, Role.ADMIN})),
    (frozenset({"POST"}), "/v1/load_lora_adapter", frozenset({Role.ADMIN})),
    (frozenset({"POST"}), "/v1/unload_lora_adapter", frozenset({Role.ADMIN})),
    (frozenset({"GET", "POST", "DELETE"}), "/v1/adapters", frozenset({Role.ADMIN})),
    (frozenset({"POST"}), "/sleep", frozenset({Role.ADMIN})),
    (frozenset({"POST"}), "/wake_up", frozenset({Role.ADMIN})),
    (frozenset({"GET"}), "/is_sleeping", frozenset({Role.ADMIN})),
)
"""What is not here needs a key with every role."""


def public_paths(*, metrics_auth: bool) -> frozenset[str]:
    """What needs no key."""
    return PUBLIC if metrics_auth else PUBLIC | {"/metrics"}


class Auth:
    """Lets a request through, or answers it with 401 or 403.

    `request.state.caller` is who asks.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        keys: Keys,
        metrics_auth: bool,
        on_request: Callable[[str | None], None],
        on_failure: Callable[[TuneserveError], None],
    ) -> None:
        """`on_request` is called with the name of each key that a request brings, `on_failure` with each error that one
        is refused with."""
        self._app = app
        self._keys = keys
        self._on_request = on_request
        self._on_failure = on_failure
        self._public = public_paths(metrics_auth=metrics_auth)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        scope["state"]["caller"] = ANYBODY
        if not self._keys or route_path(scope) in self._public:
            return await self._app(scope, receive, send)
        try:
            caller = self._find(scope)
            scope["state"]["caller"] = caller
            self._on_request(caller.name)
            _check_roles(caller, scope)
        except TuneserveError as error:
            self._on_failure(error)
            return await error_response(error, scope)(scope, receive, send)
        await self._app(scope, receive, send)

    def _find(self, scope: Scope) -> Caller:
        found = (self._keys.find(key) for key in _keys_of(Headers(scope=scope)))
        caller = next((caller for caller in found if caller is not None), None)
        if caller is None:
            raise InvalidApiKey("The request needs a valid API key: Authorization: Bearer KEY, or x-api-key: KEY.")
        return caller


def _keys_of(headers: Headers) -> Iterator[str]:
    """The keys that a request brings: in OpenAI's header, and in Anthropic's."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield key.strip()
    if "x-api-key" in headers:
        yield headers["x-api-key"].strip()


def _check_roles(caller: Caller, scope: Scope) -> None:
    needed = _needed_roles(scope["method"], route_path(scope))
    if not caller.roles & needed and caller.roles != ALL_ROLES:
        raise InsufficientPermissions(f"This API key lacks the role for {scope['method']} on this path.")


def _needed_roles(method: str, path: str) -> frozenset[Role]:
    rows = (roles for methods, start, roles in ROLES_OF_PATHS if method in methods and path.startswith(start))
    return next(rows, frozenset())
