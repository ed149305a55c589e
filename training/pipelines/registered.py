"""What the files of `custom_register_path` are to register, looked up before anything is loaded."""

from training.methods import METHODS
from training.params.choices import TOKEN_LOSSES
from training.params.sft import SftParams
from training.plugins import load


def check_registered(params: SftParams) -> None:
    """Run the files. Raises InvalidRequest where one cannot be run, or none registers what a parameter names."""
    found = load(params.custom_register_path)
    if params.optimizer is not None:
        found.find("optimizer", params.optimizer)
    if params.metric is not None:
        found.find("metric", params.metric)
    learns_tokens = METHODS[params.method].rows in ("answers", "text")
    if learns_tokens and params.loss_type is not None and params.loss_type not in TOKEN_LOSSES:
        found.find("loss", params.loss_type, built_in=TOKEN_LOSSES)
