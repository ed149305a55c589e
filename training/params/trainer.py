"""The optimisation loop: what transformers' trainer is told."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import THE_SERVER, TRAINING, About
from engines.params.base import JsonObject, Params
from training.params.choices import Reporters, Schedule

NO_OTHER_COLUMNS = (
    "prepared rows have no columns but those that training reads; only what judges answers (ppo, grpo, rloo) sees "
    "others: leave it out"
)

Deepspeed = Literal["zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload"]


class TrainerParams(Params):
    """The optimisation loop."""

    starred: ClassVar = frozenset(
        {
            "output_dir", "gradient_checkpointing", "deepspeed", "per_device_train_batch_size",
            "per_device_eval_batch_size", "learning_rate", "gradient_checkpointing_kwargs", "num_train_epochs",
            "gradient_accumulation_steps", "save_strategy", "save_steps", "eval_strategy", "eval_steps",
            "save_total_limit", "warmup_ratio", "resume_from_checkpoint", "ddp_backend", "ddp_find_unused_parameters",
            "dataloader_num_workers", "neftune_noise_alpha",
        }
    )  # fmt: skip

    output_dir: Annotated[str | None, About(TRAINING, one_run=True, not_in_api=THE_SERVER)] = None
    """Folder for checkpoints and logs. `output/` followed by the model's name unless given."""
    gradient_checkpointing: Annotated[bool, About(TRAINING, trainer=True)] = True
    """Compute activations a second time in the backward pass instead of keeping them: less memory, slower steps."""
    deepspeed: Annotated[Deepspeed | JsonObject | None, About(TRAINING, text=True, not_in_fine_tuning=THE_SERVER)] = (
        None
    )
    """Train with DeepSpeed: one of the configurations built in, or a configuration as a JSON object or the path of a
    JSON file."""
    per_device_train_batch_size: Annotated[int, About(TRAINING, trainer=True, most=256)] = Field(1, ge=1)
    """Samples of one forward pass on one device while training."""
    per_device_eval_batch_size: Annotated[int, About(TRAINING, trainer=True, most=256)] = Field(1, ge=1)
    """The same while evaluating."""
    weight_decay: Annotated[float, About(TRAINING, trainer=True)] = Field(0.1, ge=0)
    """Decoupled weight decay of the optimiser."""
    learning_rate: Annotated[float | None, About(TRAINING, openai="learning_rate_multiplier")] = Field(None, gt=0)
    """Peak learning rate. Unless given: 1e-5 where all weights are trained, 9e-4 with reft, 1e-4 otherwise."""
    lr_scheduler_type: Annotated[Schedule, About(TRAINING, trainer=True)] = "cosine"
    """How the learning rate goes after the warm-up, by transformers' names."""
    lr_scheduler_kwargs: Annotated[JsonObject | None, About(TRAINING, text=True, trainer=True)] = None
    """Further settings of that schedule."""
    gradient_checkpointing_kwargs: Annotated[JsonObject | None, About(TRAINING, text=True)] = None
    """Settings of torch.utils.checkpoint: `{"use_reentrant": false}`."""
    report_to: Annotated[
        Reporters, About(TRAINING, api_choices=("tensorboard", "none"), not_in_fine_tuning=THE_SERVER)
    ] = ("tensorboard",)
    """Where metrics go besides the job's events, by transformers' names: `tensorboard`, `wandb`, ...; `all` that are
    installed; `none`."""
    remove_unused_columns: Annotated[bool, About(prepares=True, not_in_training=NO_OTHER_COLUMNS)] = False
    """Drop the columns of the data that the model's forward does not take: in ppo, grpo and rloo, what judges an answer
    then sees the conversation or the text of its row, and no other column."""
    logging_first_step: Annotated[bool, About(TRAINING, trainer=True)] = True
    """Log the first step also where `logging_steps` would skip it."""
    logging_steps: Annotated[int | float, About(TRAINING, trainer=True)] = Field(5, gt=0)
    """Steps between two log lines; below 1: as a part of all steps."""
    metric_for_best_model: Annotated[str | None, About(TRAINING, text=True)] = None
    """By which metric of the evaluation the best checkpoint is told: `loss`, `token_accuracy` (with acc_strategy seq
    `sequence_accuracy`), with predict_with_generate `rouge-1`, `rouge-2`, `rouge-l`, `bleu-4`, in dpo also
    `rewards/margins` and its other metrics, in rm `margin`, of classifiers `accuracy`, of regressions `mse`. `loss`
    unless given, `rouge-l` where evaluation generates text."""
    greater_is_better: Annotated[bool | None, About(TRAINING, trainer=True)] = None
    """Whether more of that metric is better. Unless given, true for all but losses and errors."""
    num_train_epochs: Annotated[int | float, About(TRAINING, trainer=True, openai="n_epochs")] = Field(3, gt=0)
    """How often all data is gone through. `max_steps` goes before it."""
    gradient_accumulation_steps: Annotated[int, About(TRAINING, trainer=True, openai="batch_size")] = Field(1, ge=1)
    """Forward passes whose gradients are added up for one step."""
    save_strategy: Annotated[Literal["no", "steps", "epoch"], About(TRAINING, trainer=True)] = "steps"
    """When checkpoints are written: never, every `save_steps` steps, or after each epoch."""
    save_steps: Annotated[int | float, About(TRAINING, trainer=True)] = Field(500, gt=0)
    """Steps between two checkpoints; below 1: as a part of all steps."""
    eval_strategy: Annotated[Literal["no", "steps", "epoch"] | None, About(TRAINING)] = None
    """When the model is evaluated. As `save_strategy` unless given."""
    eval_steps: Annotated[int | float | None, About(TRAINING)] = Field(None, gt=0)
    """Steps between two evaluations. As `save_steps` unless given, where there is data to evaluate on."""
    save_total_limit: Annotated[int | None, About(TRAINING)] = Field(None, ge=1)
    """Keep this many checkpoints and delete older ones. All are kept unless given."""
    max_steps: Annotated[int, About(TRAINING, trainer=True)] = Field(-1, ge=-1)
    """Stop after this many steps; -1: when the epochs are over. Needed where the data is streamed."""
    warmup_ratio: Annotated[float, About(TRAINING)] = Field(0.0, ge=0, le=1)
    """The part of all steps in which the learning rate rises from 0 to its peak."""
    save_on_each_node: Annotated[bool, About(TRAINING, trainer=True, not_in_api=THE_SERVER)] = False
    """With several machines, write checkpoints on each, into a folder of its own, instead of on the first only, whose
    folder all others have to see."""
    save_only_model: Annotated[bool, About(TRAINING, trainer=True, not_in_fine_tuning=THE_SERVER)] = False
    """Write weights only, without the state of optimiser and schedule: smaller, but training cannot be resumed."""
    resume_from_checkpoint: Annotated[str | None, About(TRAINING, one_run=True, names="checkpoint")] = None
    """Folder of the checkpoint to go on from."""
    ddp_backend: Annotated[
        Literal["nccl", "gloo", "mpi", "ccl", "hccl", "cncl", "mccl"] | None,
        About(TRAINING, trainer=True, not_in_api=THE_SERVER),
    ] = None
    """How the processes of a training on several devices talk to one another. torch's choice for the device unless
    given."""
    ddp_find_unused_parameters: Annotated[bool | None, About(TRAINING, trainer=True)] = None
    """Let data-parallel training look for weights that a step did not use. transformers' choice unless given."""
    dataloader_num_workers: Annotated[int, About(TRAINING, trainer=True, processes=True)] = Field(0, ge=0)
    """Processes that make batches; 0: the training process does."""
    neftune_noise_alpha: Annotated[float, About(TRAINING)] = Field(0, ge=0)
    """Strength of the noise added to embeddings while training (NEFTune), often 5 to 15; 0: none."""
    average_tokens_across_devices: Annotated[bool, About(trainer=True)] = False
    """Divide the loss by the tokens of all devices together instead of by each device's own."""
    max_grad_norm: Annotated[float, About(TRAINING, trainer=True)] = Field(1.0, ge=0)
    """Gradients with a larger norm are scaled down to it; 0: never."""
    push_to_hub: Annotated[bool, About(TRAINING, one_run=True, not_in_api=THE_SERVER)] = False
    """Upload each checkpoint to the hub, with hub_token or the account that is logged in there, while training goes on:
    the repository then has the newest one. What cannot be uploaded is told, and changes nothing else."""
    hub_model_id: Annotated[str | None, About(TRAINING, one_run=True, not_in_api=THE_SERVER)] = None
    """Name of the repository that is uploaded to, which is made where it is not there yet. That of the folder of the
    run unless given."""
    hub_private_repo: Annotated[bool, About(TRAINING, one_run=True, not_in_api=THE_SERVER)] = False
    """Make that repository private, where it has to be created."""
