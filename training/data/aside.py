"""How much of the training data is set aside for validation, where no val_dataset is named."""

from engines.params.data import DataParams
from training.params.sft import SftParams


def rows_aside(params: DataParams, rows: int) -> int:
    return int(rows * params.split_dataset_ratio)


def nothing_aside(params: SftParams, rows: int) -> str:
    """The note where no row is set aside."""
    return (
        f"split_dataset_ratio {params.split_dataset_ratio:g} sets none of {rows} rows aside, so that nothing is "
        "evaluated: raise it, or name a val_dataset"
    )
