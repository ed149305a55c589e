"""What tuners have in common that put an adapter of PEFT's into the model."""

import json
import re
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from engines.adapters.folder import CHANGES_THE_BASE
from engines.adapters.source import fetch_adapter, name_adapters
from engines.adapters.spec import CONFIG
from engines.errors import InvalidAdapter, InvalidRequest
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.tuners.base import Examples, Tuned, Tuner

WHERE = frozenset({"target_modules", "target_regex", "modules_to_save"})
"""Parameters that say which modules are trained."""
ALL_LINEAR = "all-linear"
NOT_SHAPE = frozenset(
    {
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "auto_mapping",
        "peft_version",
        "total_step",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "loftq_config",
    }
)
"""Fields of PEFT's configurations that say nothing of what an adapter computes; those of its first values and of
dropout do not either."""


PEFT_TASKS = {"causal_lm": "CAUSAL_LM", "seq_cls": "SEQ_CLS"}


class AdapterTuner(Tuner):
    makes = "adapter"
    mergeable = True
    learning_rate = 1e-4
    size: ClassVar[str | None] = None
    """The parameter at fault where an adapter does not fit the layers that it is for."""

    @property
    def peft_type(self) -> str:
        """PEFT's name of it."""
        return self.name.upper()

    @abstractmethod
    def config(self, params: SftParams) -> Any:
        """PEFT's configuration of a new adapter. Raises InvalidRequest."""

    def refusals(self, params: SftParams) -> list[Refusal]:
        if params.target_regex is not None and "target_modules" in params.model_fields_set:
            return [("target_modules", "target_regex goes before it: give one of the two")]
        if ALL_LINEAR in params.target_modules and params.target_modules != (ALL_LINEAR,):
            return [("target_modules", f"{ALL_LINEAR} stands alone: name all modules, or use target_regex")]
        return []

    def begins_as_base(self, params: SftParams) -> bool:
        return True

    def attach(self, model: Any, params: SftParams, examples: Examples | None = None) -> Tuned:
        adapted = self._trained_before(model, params) if params.adapters else self.new(model, params, examples)
        if params.task_type == "seq_cls":  # PEFT also lists names that heads of other models have, each time anew
            config = adapted.peft_config["default"]
            config.modules_to_save = sorted(
                {*config.modules_to_save} & {name.rpartition(".")[2] for name, _ in model.named_modules()}
            )
        if params.gradient_checkpointing:
            adapted.enable_input_require_grads()  # else no gradient reaches a layer behind frozen embeddings
        return Adapted(adapted)

    def shape(self, model: Any) -> dict[str, Any]:
        config = model.peft_config["default"]
        named = config.target_modules
        where = {"target_regex": named} if isinstance(named, str) else {"target_modules": sorted(named or ())}
        return where | {"modules_to_save": list(config.modules_to_save or ())}

    def new(self, model: Any, params: SftParams, examples: Examples | None) -> Any:
        """A `PeftModel` with a new adapter."""
        return self.put_into(model, self.config(params), params)

    def put_into(self, model: Any, config: Any, params: SftParams) -> Any:
        """A `PeftModel` with the adapter that PEFT's `config` describes. Raises InvalidRequest."""
        from peft import get_peft_model

        _fit_quantized(config, model)
        _fit_experts(config, model)
        try:
            return get_peft_model(model, config)
        except ValueError as error:  # names that fit no module or one of another kind, or an adapter that fits none
            said, where = str(error).splitlines()[0], "target_regex" if params.target_regex else "target_modules"
            if "lora_dropout" in said:
                message = f"experts of {model.config.model_type} are adapted without dropout: set it to 0"
                raise InvalidRequest(message, param="lora_dropout") from error
            if "use_dora" in said:
                message = f"experts of {model.config.model_type} are adapted without DoRA: name other layers"
                raise InvalidRequest(message, param="use_dora") from error
            names_modules = self.size is None or "arget" in said
            raise InvalidRequest(said, param=where if names_modules else self.size) from error
        except TypeError as error:  # a layer of a kind that PEFT does not have it for
            message = f"{self.name} does not change such layers: {str(error).splitlines()[0]}"
            raise InvalidRequest(message, param="train_type") from error

    def _trained_before(self, model: Any, params: SftParams) -> Any:
        """A `PeftModel` with the adapter that `adapters` name. Raises InvalidAdapter, InvalidRequest."""
        from peft import PeftModel

        sources = list(name_adapters(params.adapters).values())
        if len(sources) > 1:
            raise InvalidRequest("training goes on with one adapter", param="adapters")
        folder = fetch_adapter(sources[0], token=params.hub_token)
        self._check_kind(folder, params)
        return PeftModel.from_pretrained(model, str(folder), is_trainable=True)

    def _check_kind(self, folder: Path, params: SftParams) -> None:
        try:
            config = json.loads((folder / CONFIG).read_bytes())
            kind, init = str(config["peft_type"]), str(config.get("init_lora_weights"))
            task = config.get("task_type") or PEFT_TASKS[params.task_type]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise InvalidAdapter(f"{folder.name!r} has no {CONFIG} that can be read", param="adapters") from None
        if kind != self.peft_type:
            message = f"the adapter {folder.name!r} is of type {kind}, and train_type {self.name} goes on with its own"
            raise InvalidRequest(message, param="train_type")
        if task != PEFT_TASKS[params.task_type]:
            wanted = PEFT_TASKS[params.task_type]
            message = f"the adapter {folder.name!r} is for the task {task}, and what is trained here for {wanted}"
            raise InvalidRequest(message, param="adapters")
        if init.lower().startswith(CHANGES_THE_BASE):
            message = f"{folder.name!r} belongs to a base model that init_lora_weights {init!r} has changed"
            raise InvalidAdapter(message, param="adapters")


class Adapted(Tuned):
    """A `PeftModel` whose adapter `default` is trained."""

    def resume(self, checkpoint: Path) -> Path:
        """Raises InvalidRequest where the adapter in `checkpoint` is of another shape: PEFT would load the weights, and
        keep the scale."""
        from peft import PeftConfig

        mine, theirs = _shape(self.model.peft_config["default"]), _shape(PeftConfig.from_pretrained(str(checkpoint)))
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                message = f"its adapter has {name} {theirs.get(name)}, and the one that is trained {mine.get(name)}"
                raise InvalidRequest(message, param="resume_from_checkpoint")
        return checkpoint


def conv1d_asked(asked: Any, config: Any) -> str | None:
    """The first layer of those that PEFT's configuration `asked` names which is no linear one but a `Conv1D`, in a
    model by `config`."""
    from peft.tuners.tuners_utils import check_target_module_exists

    from engines.checkpoint.structure import conv1ds

    everywhere = asked.target_modules == ALL_LINEAR
    return next((path for path in conv1ds(config) if everywhere or check_target_module_exists(asked, path)), None)


def _fit_quantized(config: Any, model: Any) -> None:
    """Name the quantised layers that PEFT's `all-linear` does not know.

    Raises InvalidRequest where one is to be trained whole.
    """
    import torch

    from engines.checkpoint.quantize import quantized_layers

    layers = quantized_layers(model)
    for name in getattr(config, "modules_to_save", None) or ():
        if whole := next((path for path in layers if f".{path}.".endswith(f".{name}.")), None):
            message = f"{whole} is quantised, and only weights that are not can be trained whole"
            raise InvalidRequest(message, param="modules_to_save")
    others = {path for path, layer in layers.items() if not isinstance(layer, torch.nn.Linear)}
    if config.target_modules == ALL_LINEAR and others:
        config.target_modules = others


def _fit_experts(config: Any, model: Any) -> None:
    """Name the layers that a regular expression fits, where PEFT would take their last names for it, and so adapt the
    layers that it leaves out.

    Raises InvalidRequest where PEFT would adapt experts in place of the layers that are asked for.
    """
    from peft import PeftType

    from engines.checkpoint.structure import expert_layers

    asked, experts = config.target_modules, expert_layers(model)
    if not experts or config.peft_type != PeftType.LORA or asked == ALL_LINEAR:
        return
    paths, names = experts.union(dict(model.named_modules())), {_leaf(path) for path in experts}
    if isinstance(asked, str):
        where, fitting = "target_regex", {path for path in paths if re.fullmatch(asked, path)}
        config.target_modules = fitting or asked
    else:  # a name alone means all layers that are called so
        where, longer = "target_modules", [name for name in asked if "." in name]
        fitting = {path for path in paths for name in longer if f".{path}".endswith(f".{name}")}
    for path in sorted(path for path in fitting if _leaf(path) in names):
        left_out = {each for each in experts - fitting if _leaf(each) == _leaf(path)}
        if left_out or path not in experts:
            message = f"it fits {path}, and PEFT adapts the {_leaf(path)} of all experts by that name: leave it out"
            raise InvalidRequest(message, param=where)


def _leaf(path: str) -> str:
    return path.rpartition(".")[2]


def _shape(config: Any) -> dict[str, Any]:
    fields = {name: _in_order(value) for name, value in config.to_dict().items() if name not in NOT_SHAPE}
    return {name: value for name, value in fields.items() if "dropout" not in name and "init" not in name}


def _in_order(value: Any) -> Any:
    """What was a set before it was written is a list when it is read; no names are none."""
    return sorted(value, key=str) or None if isinstance(value, list | set | tuple) else value


def saved_whole(params: SftParams) -> dict[str, Any]:
    """What PEFT is told of the modules that it saves whole: those named, and the head of a model that has one."""
    return {"task_type": PEFT_TASKS[params.task_type], "modules_to_save": list(params.modules_to_save) or None}


def targets(params: SftParams) -> str | list[str]:
    """PEFT's `target_modules`, which takes a text for a regular expression, `all-linear` aside."""
    if params.target_regex is not None:
        return params.target_regex
    return ALL_LINEAR if params.target_modules == (ALL_LINEAR,) else list(params.target_modules)
