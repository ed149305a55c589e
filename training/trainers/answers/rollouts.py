"""What draws answers from the model of a job."""

from engines.checkpoint.quantization import quantization_of
from training.data.encode import stop_token_ids
from training.device import named_device
from training.params.rlhf import RlhfParams
from training.processes import Processes
from training.report import Stopped
from training.rewards.graded import asks_base
from training.rollouts.ahead import AheadRollouts
from training.rollouts.engine import EngineRollouts
from training.trainers.job.job import Training
from training.trainers.model import model_of


def rollouts_of(job: Training[RlhfParams]) -> EngineRollouts | AheadRollouts:
    """An engine for the model that `job` trains, on `rollout_device`, or else on the device on which that is by now.

    A draw ends with Stopped where the job is told to stop; with several processes, of which each has its own engine, it
    goes on to its end, as they stop together.

    Raises UnsupportedModel where the engine cannot run the model, InvalidRequest where there is no such device.
    """
    params = job.params
    alone = Processes.of_environment().count == 1

    def checkpoint() -> None:
        if alone and job.report.stop_requested:
            raise Stopped

    device = named_device(params.rollout_device, param="rollout_device")
    with job.tuned.source(model_of(params)) as source:
        engine = EngineRollouts(
            job.tuned.model,
            source=source,
            revision=params.model_revision,
            token=params.hub_token,
            dtype=job.precision.base,
            quantization=quantization_of(params),
            stop_token_ids=stop_token_ids(params, job.tokenizer),
            max_model_len=params.max_length if params.rope_scaling else None,
            rope_scaling=params.rope_scaling,
            max_num_seqs=params.rollout_max_num_seqs,
            device=device,
            tokenizer=job.tokenizer if asks_base(params) or params.response_format else None,
            judges=asks_base(params),
            checkpoint=checkpoint,
        )
    return engine if device is None else AheadRollouts(engine)
