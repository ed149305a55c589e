"""Errors that cross a package border. Each class says whose fault it is; the server maps classes to HTTP."""


class TuneserveError(Exception):
    """Base of all our errors. The message is written for the person who made the request."""

    code: str | None = None
    """The `error.code` of OpenAI's error body."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        if code is not None:
            self.code = code


class InvalidRequest(TuneserveError):
    """The client's fault: the request asks for something malformed or out of range."""

    code = "invalid_request"


class UnsupportedParameter(InvalidRequest):
    """The request is well-formed, but this engine or model does not support the parameter named by `param`."""

    code = "unsupported_parameter"


class ContextLengthExceeded(InvalidRequest):
    """The prompt (plus the output asked for) does not fit the model's context."""

    code = "context_length_exceeded"


class InvalidAdapter(InvalidRequest):
    """The adapter's files are broken, or the engine cannot serve such an adapter: `param` is the field at fault."""

    code = "invalid_adapter"


class NotFound(TuneserveError):
    """What the request names does not exist."""

    code = "not_found"


class ModelNotFound(NotFound):
    """No served model or adapter has this name."""

    code = "model_not_found"


class Conflict(TuneserveError):
    """The request is sound, but not in the present state of what it names."""

    code = "conflict"


class QueueFull(TuneserveError):
    """More requests wait than the queue holds. The client should come back after `retry_after` seconds."""

    code = "rate_limit_exceeded"
    retry_after: int = 1


class RateLimited(TuneserveError):
    """The client has reached a rate limit. It should come back after `retry_after` seconds."""

    code = "rate_limit_exceeded"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class QuotaExceeded(TuneserveError):
    """The client has reached a quota: something of its own must end or be deleted first."""

    code = "quota_exceeded"


class EngineUnavailable(TuneserveError):
    """The engine is starting, restarting, draining or stopped. Come back after `retry_after` seconds."""

    code = "service_unavailable"
    retry_after: int = 5


class StoreUnavailable(TuneserveError):
    """The database cannot be reached now. Come back after `retry_after` seconds."""

    code = "service_unavailable"
    retry_after: int = 5


class StorageFull(TuneserveError):
    """There is no room left on the server's disk."""

    code = "insufficient_storage"


class EngineFailure(TuneserveError):
    """Our fault: the engine failed while it ran a sound request."""

    code = "engine_error"


class UnsupportedModel(TuneserveError):
    """This engine cannot run this model, or not in the way that was asked for at start. Says why."""

    code = "unsupported_model"
