"""The two models that judge answers in PPO. The reward model says how good a whole answer is; the value model begins as
the same, and learns to say of an answer that has come so far how good it is going to be. Where functions or graders
judge alone, it begins as the policy's base model with a new head.

Where all weights are trained, all of the value model's learn too. Where an adapter is, an adapter of the same shape and
the head of the value model learn: the weights behind them are the reward model's own, and in memory once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from engines.adapters.heads import load_with_head
from engines.adapters.source import fetch_adapter, name_adapters
from engines.errors import InvalidAdapter, InvalidRequest, TuneserveError, UnsupportedModel
from training.params.refusal import said_of
from training.params.rlhf import RlhfParams
from training.trainers.job.job import Training
from training.trainers.model import load_base_config, load_for_training, with_head
from training.trainers.reference import Reference, without_dropout
from training.trainers.weights.precision import hold
from training.tuners import tuner_of

FOLDER = "value_model"
"""A checkpoint's folder of what the value model has learned, which training goes on from. Serving has no use for it."""
WEIGHTS = "weights.safetensors"


class Judge(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """A model with a head of one output, asked at some positions."""

    def __init__(self, model: Any) -> None:
        """`model`: a `PreTrainedModel`, or a `PeftModel` over one."""
        super().__init__()
        self.model = model

    def forward(self, inputs: Mapping[str, Tensor], positions: Tensor) -> Tensor:
        """(positions,) float32, for `positions` (texts, tokens) bool: the head sees these only."""
        plain = self.model.get_base_model() if hasattr(self.model, "get_base_model") else self.model
        hidden = getattr(plain, plain.base_model_prefix)(**inputs, use_cache=False).last_hidden_state
        judged: Tensor = plain.score(hidden[positions])
        return judged.squeeze(-1).float()


class ValueModel:
    """The value model as it learns, and the reward model that it began as, where there is one."""

    def __init__(self, value: Judge, reward: Reference | None) -> None:
        self.value = value
        self._reward = reward

    def to(self, device: torch.device) -> None:
        self.value.to(device)
        if self._reward is not None:
            with self._reward.speaking() as model:
                model.to(device)

    def learning(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, weight) for name, weight in self.value.named_parameters() if weight.requires_grad]

    def scores(self, inputs: Mapping[str, Tensor], positions: Tensor) -> Tensor:
        """(texts,) float32: what the reward model says at `positions` (texts, tokens), one of each text."""
        assert self._reward is not None, "there is one"
        with self._reward.speaking() as model:
            return Judge(model)(inputs, positions)

    def save(self, checkpoint: Path) -> None:
        (checkpoint / FOLDER).mkdir()
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.learning()}
        save_file(weights, checkpoint / FOLDER / WEIGHTS)

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint. Raises InvalidRequest where it holds another value model, or none."""
        file, learning = checkpoint / FOLDER / WEIGHTS, dict(self.learning())
        saved = load_file(file) if file.is_file() else {}
        if {name: weight.shape for name, weight in saved.items()} != {
            name: weight.shape for name, weight in learning.items()
        }:
            message = f"{checkpoint.name} does not hold the value model that is trained here"
            raise InvalidRequest(message, param="resume_from_checkpoint")
        for name, weight in learning.items():
            weight.data.copy_(saved[name])


def value_model_of(job: Training[RlhfParams]) -> ValueModel:
    """The models for a training that begins. Raises InvalidRequest, UnsupportedModel, InvalidAdapter."""
    params, tuner = job.params, tuner_of(job.params)
    judged = params.reward_model is not None
    begins = _reward_model(job) if judged else _base_with_head(job)
    alone = None
    if tuner.makes == "adapter":
        asked = params.model_copy(update={"task_type": "seq_cls", "adapters": ()})
        value = tuner.attach(begins, asked).model
        alone = Reference(value, value.disable_adapter) if judged else None
    elif judged:
        value, alone = _reward_model(job).requires_grad_(True), Reference(begins)
    else:
        value = begins.requires_grad_(True)
    hold(value, job.precision)
    without_dropout(value)
    if params.gradient_checkpointing:
        kwargs = params.gradient_checkpointing_kwargs or {"use_reentrant": False}
        value.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return ValueModel(Judge(value), alone)


def _base_with_head(job: Training[RlhfParams]) -> Any:
    """The model that training begins with, on the CPU, with a new head of one output in place of its own."""
    config = load_base_config(job.params)
    return load_for_training(with_head(job.params, config, 1), config, job.precision.base).requires_grad_(False)


def _reward_model(job: Training[RlhfParams]) -> Any:
    """The reward model (a `PreTrainedModel`) on the CPU, its adapter merged, frozen. Raises as `value_model_of`."""
    params = job.params
    assert params.reward_model is not None, "refused otherwise"
    folder = Path(params.reward_model).expanduser()
    with said_of("reward_adapters"):
        adapters = [
            fetch_adapter(one, token=params.hub_token) for one in name_adapters(params.reward_adapters).values()
        ]
    if len(adapters) > 1:
        raise InvalidRequest("a reward model takes one adapter", param="reward_adapters")
    try:
        model = load_with_head(
            str(folder) if folder.is_dir() else params.reward_model,
            adapter=adapters[0] if adapters else None,
            dtype=job.precision.base,
            revision=params.reward_model_revision,
            token=params.hub_token,
        )
    except TuneserveError as error:
        error.param = "reward_adapters" if isinstance(error, InvalidAdapter) else "reward_model"
        raise
    merged = model.merge_and_unload() if adapters else model
    if not hasattr(merged, "score"):
        raise UnsupportedModel(f"{type(merged).__name__} has no head that judges each token", param="reward_model")
    _check(merged.config, job)
    return merged.requires_grad_(False)


def _check(config: Any, job: Training[RlhfParams]) -> None:
    """Whether a reward model with this configuration can judge what the policy says. Raises UnsupportedModel,
    InvalidRequest."""
    text_config, asked = config.get_text_config(), job.params.reward_model_type
    if config.num_labels != 1:
        message = f"its head has {config.num_labels} outputs, and a reward is one number"
        raise UnsupportedModel(message, param="reward_model")
    if asked not in (None, config.model_type, text_config.model_type):
        raise InvalidRequest(f"the reward model is of type {config.model_type}", param="reward_model_type")
    if text_config.vocab_size < len(job.tokenizer):
        message = (
            f"it knows {text_config.vocab_size} tokens, and the trained model's tokenizer has {len(job.tokenizer)}"
        )
        raise UnsupportedModel(f"{message}: it must have the same tokenizer", param="reward_model")
