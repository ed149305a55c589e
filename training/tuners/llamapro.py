"""LLaMA Pro (Wu et al. 2024, arXiv:2401.02415): new layers between the model's own, which alone are trained.

Each is a copy of the layer before it, y = x' + W_down f(norm x') with x' = x + W_o attention(norm x), in which W_o and
W_down are zero: y = x, so that the longer model begins as the same function. Where a norm follows the two (Gemma 2 and
3, OLMo 2), its scale is zero in their place: the norm would make the smallest output as large as its scale.

What comes of it is a model like any other, with more layers.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any

from engines.errors import InvalidRequest, UnsupportedModel
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.params.tuner import LlamaproParams
from training.tuners.base import Examples, Tuned, Tuner
from training.tuners.full import Whole

BEFORE = frozenset({"input_layernorm", "post_attention_layernorm"})
"""Norms of a layer, each before attention or MLP."""
AFTER = frozenset({"post_attention_layernorm", "post_feedforward_layernorm"})
"""Norms of a layer, each after attention or MLP; others may come before, as in Gemma."""
GEMMA = BEFORE | AFTER | {"pre_feedforward_layernorm"}


class Llamapro(Tuner):
    name = "llamapro"
    makes = "model"
    mergeable = False
    reads = frozenset(LlamaproParams.model_fields)
    learning_rate = 1e-4

    def refusals(self, params: SftParams) -> list[Refusal]:
        found = []
        if params.adapters:
            found.append(("adapters", "train_type llamapro makes no adapter; merge it first"))
        if params.resume_only_model:
            found.append(("resume_only_model", "it would put in more layers: name the checkpoint as model for that"))
        if params.llamapro_num_new_blocks % _groups(params):
            message = f"{params.llamapro_num_new_blocks} new layers have no {_groups(params)} equal groups"
            found.append(("llamapro_num_groups", message))
        return found

    def check_config(self, params: SftParams, config: Any) -> None:
        layers, groups = config.get_text_config().num_hidden_layers, _groups(params)
        if layers % groups:
            given = "llamapro_num_groups" if params.llamapro_num_groups else "llamapro_num_new_blocks"
            choices = ", ".join(str(count) for count in range(1, layers + 1) if layers % count == 0)
            message = f"the model's {layers} layers have no {groups} equal groups; there may be {choices}"
            raise InvalidRequest(message, param=given)

    def attach(self, model: Any, params: SftParams, examples: Examples | None = None) -> Tuned:
        new = grow(model, new_layers=params.llamapro_num_new_blocks, groups=_groups(params))
        model.requires_grad_(False)
        for layer in new:
            layer.requires_grad_(True)
        if params.task_type == "seq_cls":
            model.score.requires_grad_(True)
        if params.gradient_checkpointing:
            model.enable_input_require_grads()  # else no gradient reaches a layer behind frozen embeddings
        return Grown(model, new, resumes=not params.save_only_model)


class Grown(Whole):
    def __init__(self, model: Any, new: Sequence[Any], *, resumes: bool) -> None:
        """`new`: layers of the `model` that were put in."""
        super().__init__(model, resumes=resumes)
        nothing = {id(weight): value for layer in new for weight, value in _adds_nothing(layer)}
        names = {name: id(weight) for name, weight in model.named_parameters()}
        self._nothing = {name: nothing[weight] for name, weight in names.items() if weight in nothing}

    @contextmanager
    def source(self, given: str) -> Iterator[str]:
        """A folder that is there for a while: no other has so many layers. They add nothing in it, as at first."""
        weights = dict(self.weights() or self.model.state_dict())
        weights |= {name: weights[name].new_full(weights[name].shape, value) for name, value in self._nothing.items()}
        with TemporaryDirectory(prefix="tuneserve-llamapro-") as folder:
            self.model.save_pretrained(folder, state_dict=weights)
            yield folder


def _groups(params: SftParams) -> int:
    return params.llamapro_num_groups or params.llamapro_num_new_blocks


def grow(model: Any, *, new_layers: int, groups: int) -> list[Any]:
    """Put `new_layers` layers into a `PreTrainedModel`, as many after each of `groups` equal groups of its own.

    Returns them. Raises UnsupportedModel where its layers are of a kind that is not known to allow that.
    """
    from torch import nn

    layers = _layers(model)
    size, more = len(layers) // groups, new_layers // groups
    origins = [old for old in range(len(layers)) for _ in range(1 + more * ((old + 1) % size == 0))]
    new = []
    grown: list[Any] = []
    for at, old in enumerate(origins):
        if at and origins[at - 1] == old:
            new.append(_begins_as_nothing(copy.deepcopy(layers[old])))
        grown.append(new[-1] if at and origins[at - 1] == old else layers[old])
        for module in grown[-1].modules():
            if hasattr(module, "layer_idx"):
                module.layer_idx = at
    model.base_model.layers = nn.ModuleList(grown)
    _describe(model.config.get_text_config(), origins)
    _check_described(model)
    return new


def _layers(model: Any) -> Any:
    layers = getattr(model.base_model, "layers", ())
    if not len(layers) or not all(_allows_it(layer) for layer in layers):
        kind = model.config.model_type
        message = f"layers of {kind} are of a kind that train_type llamapro does not know: choose another"
        raise UnsupportedModel(message, param="train_type")
    return layers


def _allows_it(layer: Any) -> bool:
    """Whether all that the layer adds comes through `self_attn.o_proj` and `mlp.down_proj`."""
    from torch import nn

    parts = {name for name, part in layer.named_children() if not isinstance(part, nn.Dropout)}
    linears = (getattr(getattr(layer, part, None), name, None) for part, name in _LAST)
    if not all(isinstance(linear, nn.Linear) for linear in linears):
        return False
    return parts - {part for part, _ in _LAST} in (BEFORE, AFTER, GEMMA, {"input_layernorm"})


_LAST = (("self_attn", "o_proj"), ("mlp", "down_proj"))


def _begins_as_nothing(layer: Any) -> Any:
    import torch

    with torch.no_grad():
        for weight, value in _adds_nothing(layer):
            weight.fill_(value)
    return layer


def _adds_nothing(layer: Any) -> Iterator[tuple[Any, float]]:
    """The weights by which a layer adds nothing, and the number that each is then made of."""
    if hasattr(layer, "post_feedforward_layernorm"):
        for name in sorted(AFTER):
            norm = getattr(layer, name)
            yield norm.weight, _scale_of_nothing(type(norm))
    else:
        for part, name in _LAST:
            yield from ((weight, 0.0) for weight in getattr(getattr(layer, part), name).parameters())


def _scale_of_nothing(norm: Any) -> float:
    """The weight with which a kind of norm answers zero: some scale by their weight, and Gemma's by one more."""
    import torch

    with torch.device("cpu"), torch.no_grad():
        tried = norm(1)
        tried.weight.zero_()
        return -1.0 if tried(torch.ones(1)).any() else 0.0


def _describe(config: Any, origins: Sequence[int]) -> None:
    """Have `config` say what each layer is. `origins`: for each layer, the number that it or its original had."""
    before = config.num_hidden_layers
    for name, value in config.to_dict().items():
        if "layer" in name and isinstance(value, list) and len(value) == before:
            setattr(config, name, [value[old] for old in origins])
    if getattr(config, "max_window_layers", None) is not None:
        config.max_window_layers = sum(old < config.max_window_layers for old in origins)
    config.num_hidden_layers = len(origins)


def _check_described(model: Any) -> None:
    """Raises UnsupportedModel where what is loaded from the model's configuration would have other layers."""
    import torch

    written = type(model.config).from_dict(model.config.to_dict())
    with torch.device("meta"):
        loaded = type(model)(written)
    if [*map(_settings, model.base_model.layers)] != [*map(_settings, loaded.base_model.layers)]:
        message = f"config.json of {model.config.model_type} cannot say what each of more layers is: choose another"
        raise UnsupportedModel(message, param="train_type")


def _settings(layer: Any) -> list[tuple[str, dict[str, Any]]]:
    """Numbers and words in all modules of a layer, such as the window that its attention has."""
    others = {"training", "gradient_checkpointing"}
    return [
        (path, {
            name: value for name, value in vars(module).items()
            if isinstance(value, int | float | str | None) and not name.startswith("_") and name not in others
        })
        for path, module in layer.named_modules()
    ]  # fmt: skip
