"""What draws answers from the model of a job."""

from typing import Any

from training.data.encode import stop_token_ids
from training.processes import Processes
from training.report import Stopped
from training.rewards.graded import asks_base
from training.rollouts.engine import EngineRollouts
from training.trainers.job import Training
from training.trainers.model import model_of


def rollouts_of(job: Training[Any], *, max_model_len: int | None = None, max_num_seqs: int = 256) -> EngineRollouts:
    """An engine for the model that `job` trains, on the device on which that is by now.

    A draw ends with Stopped where the job is told to stop; with several processes, of which each has its own engine, it
    goes on to its end, as they stop together.

    max_model_len: tokens of a prompt with its answer at most; None: what the model can
    max_num_seqs: answers that are drawn at a time
    Raises UnsupportedModel where the engine cannot run the model.
    """
    params = job.params
    alone = Processes.of_environment().count == 1

    def checkpoint() -> None:
        if alone and job.report.stop_requested:
            raise Stopped

    with job.tuned.source(model_of(params)) as source:
        return EngineRollouts(
            job.tuned.model,
            source=source,
            revision=params.model_revision,
            token=params.hub_token,
            dtype=job.precision.base,
            stop_token_ids=stop_token_ids(params, job.tokenizer),
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            tokenizer=job.tokenizer if asks_base(params) else None,
            checkpoint=checkpoint,
        )
