"""Where metrics can go besides the job's events, and the package that each place needs."""

from importlib.util import find_spec

from training.params.refusal import Refusal
from training.params.sft import SftParams

PACKAGES: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard",),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Value of `report_to` -> the packages that transformers imports for it."""
DISTRIBUTIONS = {"azureml": "azureml-core", "comet_ml": "comet-ml"}
"""Package -> what pip calls it, where that is another name."""


def refusals(params: SftParams) -> list[Refusal]:
    """Reporters that cannot report here: transformers would say so once the model is loaded."""
    missing = [(name, each) for name in params.report_to for each in PACKAGES.get(name, ()) if find_spec(each) is None]
    return [("report_to", _missing(name, each)) for name, each in missing]


def _missing(name: str, package: str) -> str:
    installed = f"pip install {DISTRIBUTIONS.get(package, package)}"
    return f"{name} needs the package {package}, which is not installed here: {installed}"
