"""Modules of ours in a model of transformers: put in, switched off, saved, and loaded by anybody.

They hang on modules of the model, and change what these come to. The weights of the model stay as they are and where
they are. A folder has `inserted_model.safetensors`, weights by their names in the model, and `inserted_config.json`:

    {"version": 1, "kind": "reft", "base_model_name_or_path": "...", "settings": {...}}

`settings` are the tuner's parameters, which say all of the modules' shape.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from engines.adapters.spec import INSERTED_CONFIG as CONFIG
from engines.adapters.spec import INSERTED_WEIGHTS as WEIGHTS
from engines.errors import InvalidAdapter, InvalidRequest, UnsupportedModel
from training.layers.bottleneck import Bottleneck
from training.layers.interventions import INTERVENTIONS
from training.layers.reft import Edit

VERSION = 1
NAME = "inserted"
"""What a module is called in the module of the model that it hangs on."""
Settings = Mapping[str, Any]


def _reft(model: Any, settings: Settings) -> Iterator[tuple[nn.Module, nn.Module]]:
    layers = _layers(model)
    asked = settings["reft_layers"]
    made_of = INTERVENTIONS[settings["reft_intervention_type"]]
    for number in range(len(layers)) if asked is None else asked:
        if not 0 <= number < len(layers):
            message = f"the model has no layer {number}: its layers are 0 to {len(layers) - 1}"
            raise InvalidRequest(message, param="reft_layers")
        yield layers[number], Edit(_width(model), settings["reft_rank"], made_of, **settings["reft_args"] or {})


def _houlsby(model: Any, settings: Settings) -> Iterator[tuple[nn.Module, nn.Module]]:
    for layer in _layers(model):
        for part in ("self_attn", "mlp"):
            if not hasattr(layer, part):
                message = f"layers of {model.config.model_type} have no {part}, behind which an adapter would be"
                raise UnsupportedModel(message, param="train_type")
            bottleneck = Bottleneck(
                _width(model), length=settings["adapter_length"], activation=settings["adapter_act"]
            )
            yield getattr(layer, part), bottleneck


KINDS: dict[str, Callable[[Any, Settings], Iterator[tuple[nn.Module, nn.Module]]]] = {
    "reft": _reft,
    "adapter": _houlsby,
}
"""`train_type` -> the modules to hang on, each with what hangs there."""


def insert(model: Any, kind: str, settings: Settings) -> None:
    """Put new modules into `model`, a `PreTrainedModel`. Raises InvalidRequest, UnsupportedModel."""
    model.inserted_as = dict(settings)
    for module, added in KINDS[kind](model, settings):
        weight = next(module.parameters())
        module.add_module(NAME, added.to(weight.device))
        module.register_forward_hook(_after)


def _after(module: Any, given: Any, came: Any) -> Any:
    added = getattr(module, NAME)
    if getattr(added, "off", False):
        return came
    return (added(came[0]), *came[1:]) if isinstance(came, tuple) else added(came)


def _layers(model: Any) -> Any:
    layers = getattr(model.get_decoder(), "layers", None) or getattr(model.get_decoder(), "h", None)
    if not isinstance(layers, nn.ModuleList):
        message = f"the layers of {model.config.model_type} were not found: choose another train_type"
        raise UnsupportedModel(message, param="train_type")
    return layers


def _width(model: Any) -> int:
    width: int = model.config.get_text_config().hidden_size
    return width


def inserted(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that were put in, by their names in the model."""
    return {name: weight for name, weight in model.named_parameters() if f".{NAME}." in name}


@contextmanager
def switched_off(model: nn.Module) -> Iterator[None]:
    """The model as it is without them."""
    added = [module for name, module in model.named_modules() if name.endswith(f".{NAME}")]
    for module in added:
        module.off = True
    try:
        yield
    finally:
        for module in added:
            module.off = False


def write_config(folder: Path, kind: str, settings: Settings, base: str | None) -> None:
    said = {"version": VERSION, "kind": kind, "base_model_name_or_path": base, "settings": dict(settings)}
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n")


def read_config(folder: Path) -> tuple[str, dict[str, Any]]:
    """Kind and settings. Raises InvalidAdapter."""
    try:
        said = json.loads((folder / CONFIG).read_bytes())
        version, kind, settings = said["version"], said["kind"], dict(said["settings"])
    except (OSError, ValueError, LookupError, TypeError):
        raise InvalidAdapter(f"{folder.name!r} has no {CONFIG} that can be read", param="adapters") from None
    if version != VERSION or kind not in KINDS:
        message = f"{folder.name!r} is of kind {kind!r}, version {version}; known is version {VERSION} of "
        raise InvalidAdapter(message + " and ".join(KINDS), param="adapters")
    return kind, settings


def load_weights(model: nn.Module, folder: Path) -> None:
    """The weights in `folder` into modules that were put in. Raises InvalidAdapter where they do not fit."""
    own = inserted(model)
    try:
        saved = load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise InvalidAdapter(f"{folder.name!r} has no {WEIGHTS} that can be read", param="adapters") from error
    for name in sorted(own.keys() | saved.keys()):
        if name not in own or name not in saved or own[name].shape != saved[name].shape:
            raise InvalidAdapter(f"{folder.name!r} does not fit the model: see {name[:200]}", param="adapters")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(saved[name])


def load_inserted(model: Any, folder: str | Path) -> Any:
    """`model`, a `PreTrainedModel`, with what a training has put into its like and saved in `folder`.

    The model itself is changed. It computes as the trained one does, at every position, in prompts and in answers.
    Raises InvalidAdapter, InvalidRequest, UnsupportedModel.
    """
    kind, settings = read_config(Path(folder))
    try:
        insert(model, kind, settings)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        message = f"settings in {CONFIG} of {Path(folder).name!r} make no module: {error}"
        raise InvalidAdapter(message, param="adapters") from error
    load_weights(model, Path(folder))
    return model.eval()
