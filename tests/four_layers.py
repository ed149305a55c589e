"""The demo model's first four layers: its tokenizer and chat template, a fifth of its time, and adapters that change
it."""

import json
import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

NUM_LAYERS = 4
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def cut(whole: Path, folder: Path) -> Path:
    """Write the cut model into `folder`, and return that."""
    folder.mkdir(parents=True)
    weights = load_file(whole / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if _layer(name) < NUM_LAYERS}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text()) | {"num_hidden_layers": NUM_LAYERS}
    (folder / "config.json").write_text(json.dumps(config))
    for name in FILES:
        if (whole / name).exists():
            shutil.copy(whole / name, folder)
    return folder


def _layer(name: str) -> int:
    return int(name.split(".")[2]) if name.startswith("model.layers.") else 0


def write_adapter(model: Path, folder: Path, *, seed: int) -> Path:
    """Write an adapter of rank 8 on every linear layer, strong enough to be told by its log-probabilities."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules=LINEARS, task_type="CAUSAL_LM"))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.15)
    adapted.save_pretrained(folder)
    return folder


def reference(model: Path, adapter: Path | None, prompt_ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """What transformers continues greedily, the adapter merged by PEFT: tokens, and their log-probabilities."""
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if adapter is not None:
        network = PeftModel.from_pretrained(network, adapter).merge_and_unload()
    ids, logprobs = list(prompt_ids), []
    with torch.inference_mode():
        for _ in range(count):
            last = network.eval()(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
            ids.append(int(last.argmax()))
            logprobs.append(float(last.max()))
    return ids[len(prompt_ids) :], logprobs
