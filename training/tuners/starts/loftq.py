"""LoftQ (Li et al. 2023, arXiv:2310.08659), of one round: the adapter starts as the part of low rank of what the
weights beside it lost when they were quantised."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engines.errors import UnsupportedModel
from training.params.refusal import Refusal
from training.params.sft import SftParams
from training.tuners.base import Examples
from training.tuners.starts.base import Start


class Loftq(Start):
    def __init__(self) -> None:
        super().__init__("loftq", True)

    def refusals(self, params: SftParams) -> Iterator[Refusal]:
        if params.quant_method != "bnb":
            yield "init_weights", "loftq makes up for what weights lose that are quantised: it needs quant_method bnb"
        if params.use_dora:
            yield "use_dora", "not together with init_weights loftq"

    def finish(self, adapted: Any, params: SftParams, examples: Examples | None) -> None:
        import torch
        from peft.tuners.lora import LoraLayer
        from peft.utils.integrations import dequantize_module_weight
        from peft.utils.loftq_utils import _SafetensorLoader

        try:
            original = _SafetensorLoader(adapted, _folder(params))
        except (OSError, ValueError) as error:
            message = f"loftq reads the weights as they were: {str(error).splitlines()[0]}"
            raise UnsupportedModel(message, param="init_weights") from error
        for path, layer in adapted.named_modules():
            if isinstance(layer, LoraLayer):
                kept = dequantize_module_weight(layer.get_base_layer()).detach().float()
                weight = original.get_tensor(f"{path.removeprefix('base_model.model.')}.weight")
                u, s, v = torch.linalg.svd(weight.to(kept) - kept, full_matrices=False)
                a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
                root = s[: len(a)].sqrt()
                a.data = (root[:, None] * v[: len(a)]).contiguous().to(a)
                b.data = (u[:, : len(a)] * root / layer.scaling["default"]).contiguous().to(b)


def _folder(params: SftParams) -> str:
    """Where the weights are that were quantised while they were loaded."""
    assert params.model is not None, "refused otherwise"
    local = Path(params.model).expanduser()
    if local.is_dir():
        return str(local)
    from huggingface_hub import snapshot_download

    return snapshot_download(
        params.model, revision=params.model_revision, token=params.hub_token, local_files_only=True
    )
