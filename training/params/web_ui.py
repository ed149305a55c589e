"""A page to train and deploy models from."""

from typing import Literal

from pydantic import Field

from engines.params.base import Params


class WebUiParams(Params):
    """A page to train and deploy models from."""

    server_name: str = "0.0.0.0"
    """Address that the page listens on; 0.0.0.0: on all of the machine's."""
    server_port: int = Field(7860, ge=0, le=65535)
    """Port that the page listens on; 0: a free one."""
    share: bool = False
    """Make the page reachable from the internet through Gradio's tunnel."""
    lang: Literal["zh", "en"] = "zh"
    """Language of the page: Chinese or English."""
