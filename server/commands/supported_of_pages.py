"""Which parameters `app` and `web-ui` support. One that nothing reads is refused, never ignored."""

from engines.params.about import PAGE, about
from engines.params.deploy import DeployParams
from server.commands import supported
from training.params.app import AppParams

NO_IMAGES = "the models that are served here take no images: it is for a server at --base_url whose model does"
ELSEWHERE = "the server at --base_url says so itself: leave it out"


def refusals(params: AppParams) -> list[str]:
    """One line for each parameter that was given in vain, or that is wrong."""
    return _served_here(params) if params.base_url is None else _served_elsewhere(params, params.base_url)


def to_deploy(params: AppParams) -> DeployParams:
    """What the server is told that is started for the page."""
    given = {name: getattr(params, name) for name in params.model_fields_set & DeployParams.model_fields.keys()}
    return DeployParams.model_validate(given)


def _served_here(params: AppParams) -> list[str]:
    images = [f"--is_multimodal: {NO_IMAGES}"] if params.is_multimodal else []
    missing = "--model: name the model to serve, or the server to talk with, by --base_url"
    return (
        images + ([] if params.model else [missing]) + (supported.refusals(to_deploy(params)) if params.model else [])
    )


def _served_elsewhere(params: AppParams, base_url: str) -> list[str]:
    fields = type(params).model_fields
    vain = [
        f"--{name}: {ELSEWHERE}"
        for name in sorted(params.model_fields_set)
        if not about(fields[name]).read_by(PAGE) and getattr(params, name) != fields[name].get_default()
    ]
    wrong = [] if base_url.startswith(("http://", "https://")) else [f"--base_url: {base_url!r} is no http(s) address"]
    keys = params.api_key or ()
    several = ["--api_key: the page sends one key: give one"] if len(keys) > 1 else []
    return wrong + vain + several
