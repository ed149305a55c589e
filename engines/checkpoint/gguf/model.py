"""A model in a GGUF file, loaded by transformers as if it were given its tensors."""

from typing import Any

import torch
from torch import Tensor, nn

from engines.checkpoint import integers
from engines.checkpoint.gguf.config import generation_config_of
from engines.checkpoint.gguf.file import GgufFile
from engines.checkpoint.gguf.weights import Weight, weights_in
from engines.checkpoint.integers import hollow


class _Lazy:
    """What `from_pretrained` takes for a tensor, and reads by `[...]`."""

    def __init__(self, weight: Weight, dtype: torch.dtype, *, hollow: bool) -> None:
        """`hollow`: only its shape is wanted, which takes no memory."""
        self._weight, self._dtype, self._hollow = weight, dtype, hollow

    def __getitem__(self, _: Any) -> Tensor:
        if self._hollow:
            return hollow(self._weight.stored.shape, self._dtype)
        return self._weight.values(self._dtype)


def load(
    file: GgufFile,
    classes: Any,
    *,
    config: Any,
    dtype: "torch.dtype | str",
    device_map: Any,
    keep_integers: bool,
    **more: Any,
) -> tuple[Any, dict[str, Any]]:
    """The model (a `PreTrainedModel`), and what `from_pretrained` tells of loading it.

    `classes`: one of transformers' Auto classes. `keep_integers`: linear layers whose weights are integers in the file
    keep them (`IntegersLinear`), on the CPU; otherwise all weights are of `dtype`. `more`: for `from_pretrained`.
    Raises UnsupportedModel.
    """
    kind = classes._model_mapping[type(config)]
    dtype = config.dtype if isinstance(dtype, str) else dtype
    with torch.device("meta"):
        empty = kind._from_config(config)
        weights = weights_in(file, empty)
    kept = _kept(empty, weights) if keep_integers and device_map != "meta" else {}
    hollow = weights.keys() if device_map == "meta" else {f"{path}.weight" for path in kept}
    model, info = kind.from_pretrained(
        None,
        config=config,
        dtype=dtype,
        device_map=device_map,
        state_dict={name: _Lazy(weight, dtype, hollow=name in hollow) for name, weight in weights.items()},
        output_loading_info=True,
        **more,
    )
    for path, weight in kept.items():
        model.get_submodule(path).integers = weight.integers
    integers.keep_integers(model)
    model.config.name_or_path = model.name_or_path = str(file.path)
    if model.can_generate():
        model.generation_config = generation_config_of(file)
    return model, info


def _kept(model: Any, weights: dict[str, Weight]) -> dict[str, Weight]:
    """Paths of linear layers, and the integers that they keep; a head that is tied has those of the embedding."""
    found = {}
    for path, layer in model.named_modules():
        name = f"{path}.weight"
        weight = weights.get(model.all_tied_weights_keys.get(name, name))
        if type(layer) is nn.Linear and weight is not None and weight.has_integers:
            found[path] = weight
    return found
