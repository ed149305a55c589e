"""A page in a browser."""

from typing import Annotated, Literal

from pydantic import Field

from engines.params.about import PAGE, About
from engines.params.base import Params


class WebUiParams(Params):
    """A page in a browser: where it listens, and its language."""

    server_name: Annotated[str, About(PAGE)] = "127.0.0.1"
    """Address that the page listens on; 0.0.0.0: on all of the machine's. On one that other machines reach, the server
    behind the page needs keys, which visitors then give, or `allow_anonymous`. The reference listens on all
    addresses."""
    server_port: Annotated[int, About(PAGE)] = Field(7860, ge=0, le=65535)
    """Port that the page listens on; 0: a free one. A port that is taken is an error."""
    share: Annotated[bool, About(PAGE)] = False
    """Make the page reachable from the internet through Gradio's tunnel. What goes for an address that other machines
    reach goes for it too."""
    lang: Annotated[Literal["zh", "en"], About(PAGE)] = "zh"
    """Language of the page: Chinese or English."""
