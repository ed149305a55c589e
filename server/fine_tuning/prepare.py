"""A fine-tuning job whose data has been looked at: what its client left open is chosen."""

from pathlib import Path

from engines.errors import InvalidRequest
from engines.params.deploy import DeployParams
from server.fine_tuning.record import FineTuning
from server.fine_tuning.task import DataFiles, TooManyCheckpoints, final_task
from training.auto import choose
from training.folder import Validation
from training.methods import BY_OPENAI_NAME
from training.params.task import TrainingTask


def data_files(folder: Path, record: FineTuning) -> DataFiles:
    """Where in the job's folder of data the copies of what it uses lie."""
    return DataFiles(
        training=folder / "training_file.jsonl",
        validation=None if record.validation_file is None else folder / "validation_file.jsonl",
        adapter=folder / "adapter" if record.from_adapter else None,
    )


def prepare(
    record: FineTuning, folder: Path, validation: Validation, served: DeployParams
) -> tuple[FineTuning, TrainingTask]:
    """The record with a number for each `"auto"`, and the whole task. Raises InvalidRequest."""
    chosen = choose(
        record.wanted,
        method=BY_OPENAI_NAME[record.method],
        rows=validation.rows,
        model_parameters=validation.model_parameters,
    )
    record = record.model_copy(update={"chosen": chosen})
    try:
        task = final_task(record, data_files(folder, record), served, chosen=chosen, rows=validation.rows)
    except TooManyCheckpoints as error:
        raise InvalidRequest(str(error), param="parameters.save_steps", code="invalid_parameters") from None
    return record, task
