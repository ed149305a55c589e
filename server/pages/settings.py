"""What a page's process is told when it starts: in one environment variable, which no other user sees."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict

from training.params.app import AppParams, StudioParams

VARIABLE = "TUNESERVE_PAGE"


class Settings(BaseModel):
    """Of one page, which talks with one server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    trains: bool
    """Whether models are trained on the page, too."""
    server: str
    """Address of the server's API, such as `http://127.0.0.1:8000/v1`."""
    certificate: str | None
    """File of the server's certificate, which alone is trusted then; None: those that the system trusts."""
    key: str | None
    """What the page sends to the server, for everybody who uses it."""
    asks_for_key: bool
    """Whether everybody gives a key of their own."""
    title: str
    lang: Literal["zh", "en"]
    takes_images: bool
    host: str
    port: int
    share: bool
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    ssl_certfile: str | None
    ssl_keyfile: str | None
    ssl_keyfile_password: str | None
    max_file_size: float
    """MiB of the largest file that can be uploaded."""
    system: str | None
    temperature: float | None
    max_tokens: int | None
    logs_requests: bool
    """Whether what is asked of the server is logged."""

    @classmethod
    def of(cls, params: AppParams, server: str, *, model: str, key: str | None, asks_for_key: bool) -> Self:
        """`model`: name of the first one that the server has."""
        own = params.base_url is None
        return cls(
            trains=isinstance(params, StudioParams),
            server=server.rstrip("/"),
            certificate=_whole(params.ssl_certfile) if own else None,
            key=key,
            asks_for_key=asks_for_key,
            title=params.studio_title or model,
            lang=params.lang,
            takes_images=bool(params.is_multimodal),
            host=params.server_name,
            port=params.server_port,
            share=params.share,
            allowed_hosts=params.allowed_hosts,
            allowed_origins=params.allowed_origins,
            ssl_certfile=_whole(params.ssl_certfile),
            ssl_keyfile=_whole(params.ssl_keyfile or params.ssl_certfile),
            ssl_keyfile_password=params.ssl_keyfile_password,
            max_file_size=params.max_file_size,
            system=params.system,
            temperature=params.temperature,
            max_tokens=params.max_new_tokens,
            logs_requests=params.verbose and not own,
        )


def _whole(path: str | None) -> str | None:
    """The page's process runs in a folder of its own."""
    return None if path is None else str(Path(path).expanduser().resolve())
