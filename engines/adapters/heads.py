"""Models with a head that judges a whole text, such as reward models: which ones have it, and loading them.

The head may be the model's own or an adapter's, beside which config.json then says what its labels are.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.adapters.spec import MODEL_CONFIG, WEIGHTS
from engines.checkpoint.heads import HEAD_NAMES, is_classifier
from engines.checkpoint.loading import choose_dtype, load_config, load_model
from engines.errors import InvalidAdapter, UnsupportedModel

if TYPE_CHECKING:
    import torch

FIELDS = ("num_labels", "id2label", "label2id", "problem_type")
"""What a configuration says of a head."""


def labels_of(adapter: Path) -> int | None:
    """Number of outputs of the head that an adapter brings; None where it brings none. Raises InvalidAdapter."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(adapter / WEIGHTS, "pt") as weights:
            names: list[str] = list(weights.keys())
            heads = [name for name in names if name.endswith(tuple(f".{head}.weight" for head in HEAD_NAMES))]
            return int(weights.get_slice(heads[0]).get_shape()[0]) if heads else None
    except (OSError, SafetensorError) as error:
        message = f"{adapter.name!r} has no {WEIGHTS} that can be read: {error}"
        raise InvalidAdapter(message, param="adapters") from error


def take_head(config: Any, adapter: Path) -> bool:
    """Have `config`, the base model's, say what it is with an adapter that brings a head; whether it brings one.

    Raises InvalidAdapter.
    """
    labels = labels_of(adapter)
    if labels is None:
        return False
    config.num_labels = labels
    if (adapter / MODEL_CONFIG).is_file():
        said = load_config(str(adapter))
        for name in FIELDS:
            setattr(config, name, getattr(said, name))
        config.get_text_config().pad_token_id = said.get_text_config().pad_token_id
    return True


def load_with_head(
    model: str,
    *,
    adapter: Path | None = None,
    dtype: "torch.dtype | None" = None,
    device: str = "cpu",
    revision: str | None = None,
    token: str | None = None,
) -> Any:
    """A model that judges texts (a `PreTrainedModel`, or a `PeftModel` with the adapter), ready for inference.

    `dtype`: that of `choose_dtype` unless given. Raises UnsupportedModel for one without a head, InvalidAdapter.
    """
    config = load_config(model, revision=revision, token=token)
    brought = adapter is not None and take_head(config, adapter)
    if not brought and not is_classifier(config):
        message = f"{Path(model).name!r} has no head that judges texts: train one, by rlhf_type rm for one"
        raise UnsupportedModel(message, param="model")
    loaded = load_model(
        model,
        config=config,
        dtype=dtype or choose_dtype(None, config, device),
        device_map=device,
        task_type="seq_cls",
        revision=revision,
        token=token,
    )
    return loaded if adapter is None else put_on(loaded, adapter).eval()


def put_on(model: Any, adapter: Path) -> Any:
    """A `PeftModel` of `model` with the adapter in that folder. Raises InvalidAdapter where it does not fit."""
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about tied embeddings
            adapted = PeftModel.from_pretrained(model, str(adapter))
            loaded = adapted.load_adapter(str(adapter), "default")  # again, as only this says what found no place
    except (ValueError, RuntimeError, LookupError, AttributeError, TypeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InvalidAdapter(f"the adapter {adapter.name!r} cannot be loaded: {reason}", param="adapters") from error
    if strays := [*loaded.unexpected_keys, *loaded.missing_keys]:
        message = f"the adapter {adapter.name!r} does not fit the model: {strays[0]} belongs to one of them alone"
        raise InvalidAdapter(message, param="adapters")
    return adapted
