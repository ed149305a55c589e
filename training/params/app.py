"""Pages in a browser: to talk with a model, and to train one besides."""

from typing import Annotated, Literal

from engines.params.about import PAGE, About
from engines.params.deploy import DeployParams
from training.params.web_ui import WebUiParams


class AppParams(WebUiParams, DeployParams):
    """A page to talk with a model, served for the purpose or already served elsewhere."""

    base_url: Annotated[str | None, About(PAGE)] = None
    """Address of a running server to talk with, such as http://localhost:8000/v1; `api_key` is then the key that the
    page sends. `model` is served unless given."""
    studio_title: Annotated[str | None, About(PAGE)] = None
    """Title of the page. The model's name unless given."""
    is_multimodal: Annotated[bool | None, About(PAGE)] = None
    """Whether the page takes images, for a server at `base_url` whose model does. Text only unless given: the models
    that are served here take no images."""
    lang: Annotated[Literal["zh", "en"], About(PAGE)] = "en"
    """Language of the page: Chinese or English."""


class StudioParams(AppParams):
    """A page to train models from and to talk with them."""

    lang: Annotated[Literal["zh", "en"], About(PAGE)] = "zh"
    """Language of the page: Chinese or English."""
