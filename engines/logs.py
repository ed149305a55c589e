"""The log of all processes of a server: to stderr, in one format, each line with the HTTP request that it is about."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(about)s"

_http_request_id: ContextVar[str | None] = ContextVar("http_request_id", default=None)


def configure_logging() -> None:
    """Log to stderr."""
    logging.basicConfig(level=logging.INFO, format=FORMAT)
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestFilter())


class RequestFilter(logging.Filter):
    """Gives each record `about`: the id of its HTTP request in brackets, or nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = _http_request_id.get()
        record.about = "" if request_id is None else f" [{request_id}]"
        return True


@contextmanager
def about(http_request_id: str | None) -> Iterator[None]:
    """Lines logged in the block, also by tasks and threads that begin there, are about this HTTP request."""
    token = _http_request_id.set(http_request_id)
    try:
        yield
    finally:
        _http_request_id.reset(token)


def current_http_request_id() -> str | None:
    return _http_request_id.get()
