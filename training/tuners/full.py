"""Training the model's own weights, all or some of them.

They learn in float32, and a checkpoint is a model in the type that they were loaded in: half of that size, most often.
What training goes on from is beside it, in `float32/`.
"""

import json
from pathlib import Path
from typing import Any

from engines.errors import InvalidRequest
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.params.tuner import FullParams
from training.tuners.base import Examples, Tuned, Tuner

INNER = "float32"
"""A checkpoint's folder of the weights as they are trained, where they are saved in another type."""


class Full(Tuner):
    name = "full"
    divisible = True
    makes = "model"
    mergeable = False
    reads = frozenset(FullParams.model_fields)
    learning_rate = 1e-5

    def refusals(self, params: SftParams) -> list[Refusal]:
        return [("adapters", "only train_type lora goes on with an adapter; merge it first")] if params.adapters else []

    def attach(self, model: Any, params: SftParams, examples: Examples | None = None) -> Tuned:
        _choose_weights(model, params)
        elsewhere = params.save_only_model or params.deepspeed is not None or params.fsdp is not None
        return Whole(model, resumes=not elsewhere)


class Whole(Tuned):
    def __init__(self, model: Any, *, resumes: bool) -> None:
        """`model`: as it was loaded. `resumes`: checkpoints are to be gone on from, and nothing else has what that
        takes."""
        super().__init__(model)
        self._resumes = resumes
        self._dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}

    def weights(self) -> dict[str, Any] | None:
        """In the types that they were loaded in."""
        if not self._changed():
            return None
        cast: dict[int, Any] = {}  # weights that are one stay one
        trained = self.model.state_dict(keep_vars=True)
        for name, tensor in trained.items():
            if id(tensor) not in cast:
                cast[id(tensor)] = tensor.detach().to("cpu", self._dtypes[name])
        return {name: cast[id(tensor)] for name, tensor in trained.items()}

    def as_loaded(self, weights: dict[str, Any]) -> dict[str, Any]:
        return {name: tensor.to(self._dtypes[name]) for name, tensor in weights.items()}

    def saved(self, checkpoint: Path) -> None:
        if not self._changed():
            return
        _write_dtype(checkpoint / "config.json", str(self._dtypes[next(iter(self._changed()))]).removeprefix("torch."))
        if self._resumes:
            from safetensors.torch import save_model

            (checkpoint / INNER).mkdir()
            save_model(self.model, str(checkpoint / INNER / "model.safetensors"))

    def resume(self, checkpoint: Path) -> Path:
        inner = checkpoint / INNER
        if inner.is_dir():
            return inner
        if not _named_as(self.model, checkpoint):
            restored = type(self.model).from_pretrained(checkpoint, dtype="auto")
            self.model.load_state_dict(restored.state_dict())
        return checkpoint

    def _changed(self) -> list[str]:
        """Names of the weights that are trained or kept in another type."""
        return [name for name, tensor in self.model.state_dict().items() if tensor.dtype != self._dtypes[name]]


def _named_as(model: Any, checkpoint: Path) -> bool:
    """Whether the weights in a checkpoint have the names of those in memory: experts that are one weight there are
    many in a file, which transformers' trainer would pass over."""
    from safetensors import safe_open

    known = model.state_dict().keys()
    for file in checkpoint.glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            if not known >= set(weights.keys()):
                return False
    return True


def _write_dtype(file: Path, dtype: str) -> None:
    """What transformers writes there is the type in memory."""
    config = json.loads(file.read_text())
    for part in (config, config.get("text_config", {})):
        if "dtype" in part:
            part["dtype"] = dtype
    file.write_text(json.dumps(config, indent=2) + "\n")


def _choose_weights(model: Any, params: SftParams) -> None:
    """Have those weights learn that the parameters say. Raises InvalidRequest."""
    weights = list(model.named_parameters())
    frozen_numel = params.freeze_parameters_ratio * sum(_size(weight) for _, weight in weights)
    seen = 0
    for name, weight in weights:
        seen += _size(weight)
        frozen = seen <= frozen_numel or name.startswith(params.freeze_parameters)
        weight.requires_grad_(not frozen or name.startswith(params.trainable_parameters))
    _check_prefixes("freeze_parameters", params.freeze_parameters, weights)
    _check_prefixes("trainable_parameters", params.trainable_parameters, weights)
    if not any(weight.requires_grad for _, weight in weights):
        raise InvalidRequest("every weight is frozen: nothing would be trained", param="freeze_parameters_ratio")


def _size(weight: Any) -> int:
    """Numbers of a weight, of which this process may hold a part (ZeRO-3)."""
    return int(getattr(weight, "ds_numel", weight.numel()))


def _check_prefixes(param: str, prefixes: tuple[str, ...], weights: list[tuple[str, Any]]) -> None:
    for prefix in prefixes:
        if not any(name.startswith(prefix) for name, _ in weights):
            raise InvalidRequest(f"no weight's name begins with {prefix!r}", param=param)
