"""What runs in vLLM's own worker processes, beside the model. vLLM adds it to its class of workers."""

from typing import Any


class WorkerExtension:
    get_model: Any

    def adapted(self, paths: list[str]) -> list[str]:
        """Return those of these layers, named as in transformers, that vLLM applies adapters to in this worker."""
        model = self.get_model()
        packed = model.lora_manager.packed_modules_mapping
        adapted = set()
        for name in model.lora_manager.modules:
            parent, dot, last = name.rpartition(".")
            adapted |= {f"{parent}{dot}{part}" for part in packed.get(last, [last])}
        mapper = getattr(model, "hf_to_vllm_mapper", None)
        rename = (lambda path: path) if mapper is None else mapper.get_rename_mapper().map_name
        return [path for path in paths if rename(path) in adapted]
