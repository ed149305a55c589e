"""Why something could not be had from the Hugging Face hub, in one line."""

from collections.abc import Iterator

NEEDS_A_TOKEN = "if it is private or gated, give the hub_token of an account that may read it"


def hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises where the hub or the network does not do what was asked, or the disk."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, ValueError, HfHubHTTPError, httpx2.HTTPError


def reason_of(error: BaseException) -> str:
    """The first line of what `error` says, with what to do where the hub refused access."""
    text = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return f"{text.rstrip('.')}; {NEEDS_A_TOKEN}" if _refused(error) else text


def _refused(error: BaseException) -> bool:
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    for each in _chain(error):
        if isinstance(each, GatedRepoError | RepositoryNotFoundError):
            return True
        if isinstance(each, HfHubHTTPError) and each.response is not None and each.response.status_code in (401, 403):
            return True
    return False


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what it was raised for."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
