"""Gradients of models whose layers two processes divide, beside those of the whole: `python -m
tests.training.parallel.gradients FILE`, which is then {"MODEL": {"loss": ..., "norm": ..., "WEIGHT": ...}, ...}, the
differences, of gradients in parts of their largest number.

A step has two batches: what is summed over the processes is to be summed once.
"""

import copy
import json
import sys
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.distributed import TCPStore, init_process_group
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from engines.process.children import set_parent_death_signal
from tests.engines.pt.tiny import CONFIGS
from training.sharding.tensor import Parts, divide, meshes

LORA = " with LoRA"
MODELS = ["llama, tied", "phi3", "qwen2", "qwen3", "qwen3-moe", f"phi3{LORA}", f"qwen3{LORA}"]
"""With each way to divide a layer among them: biases, norms within heads, layers that are several in one, experts."""


def main(file: str) -> int:
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes = [get_context("fork").Process(target=_process, args=(rank, store.port, file)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return max(process.exitcode or 0 for process in processes)


def _process(rank: int, port: int, file: str) -> None:
    set_parent_death_signal()
    init_process_group("gloo", store=TCPStore("127.0.0.1", port), rank=rank, world_size=2)
    found = {name: _differences(name) for name in MODELS}
    if rank == 0:
        Path(file).write_text(json.dumps(found))


def _differences(name: str) -> dict[str, float]:
    whole = _model(name)
    divided, where = copy.deepcopy(whole), meshes("cpu", 2, 2)
    divide(divided, where.tensor, torch.device("cpu"))
    parts = Parts(divided, where)
    losses = [_step(model) for model in (whole, divided)]
    parts.share_gradients()
    norm = torch.nn.utils.get_total_norm([each.grad for each in whole.parameters() if each.grad is not None])

    found = {"loss": abs(losses[0] - losses[1]), "norm": abs(float(parts.clip(1.0) / norm) - 1)}
    torch.nn.utils.clip_grads_with_norm_(whole.parameters(), 1.0, norm)
    beside = dict(divided.named_parameters())
    for path, weight in whole.named_parameters():
        if weight.grad is not None:
            apart = (_whole(beside[path].grad) - weight.grad).abs().max()
            found[path] = float(apart / weight.grad.abs().max().clamp(min=1e-4))  # of keys' biases it is none
    return found


def _model(name: str) -> Any:
    kind, _, _ = name.replace(LORA, ",").partition(",")
    torch.manual_seed(0)
    config = CONFIGS[kind]()
    config.tie_word_embeddings |= name.endswith("tied")
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if not name.endswith(LORA):
        return model.train()
    lora = LoraConfig(target_modules="all-linear", r=4, task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(model, lora).train()


def _step(model: Any) -> float:
    ids = torch.arange(24).view(2, 12) * 7 % 300
    losses = [model(input_ids=batch, labels=batch, use_cache=False).loss for batch in (ids, ids.roll(1, 1))]
    for loss in losses:
        loss.backward()
    return float(losses[0] + losses[1])


def _whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
