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


def refusals(params: SftParams) -> list[Refusal]:
    """Reporters that cannot report here: transformers would say so once the model is loaded."""
    missing = [(name, each) for name in params.report_to for each in PACKAGES.get(name, ()) if find_spec(each) is None]
    return [("report_to", f"{name} needs the package {each}, which is not installed here") for name, each in missing]
