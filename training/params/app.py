"""A page to talk with a model."""

from typing import Literal

from engines.params.deploy import DeployParams
from training.params.web_ui import WebUiParams


class AppParams(WebUiParams, DeployParams):
    """A page to talk with a model, served for the purpose or already served elsewhere."""

    base_url: str | None = None
    """Address of a running server to talk with, such as http://localhost:8000/v1. `model` is served unless given."""
    studio_title: str | None = None
    """Title of the page. The model's name unless given."""
    is_multimodal: bool | None = None
    """Whether the page takes images and other media. Found from the model unless given, else text only."""
    lang: Literal["zh", "en"] = "en"
    """Language of the page: Chinese or English."""
