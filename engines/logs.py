"""What all processes of a server log alike: where to, in which form, and for which HTTP request."""

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
    """Gives each record `about`: the id of the HTTP request that it was logged for, in brackets, or nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = _http_request_id.get()
        record.about = "" if request_id is None else f" [{request_id}]"
        return True


@contextmanager
def about(http_request_id: str | None) -> Iterator[None]:
    """What is logged within, also by tasks and threads that begin there, is logged for this HTTP request."""
    token = _http_request_id.set(http_request_id)
    try:
        yield
    finally:
        _http_request_id.reset(token)


def current_http_request_id() -> str | None:
    return _http_request_id.get()
