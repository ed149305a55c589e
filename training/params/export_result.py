"""What an export made of a model, in a word, and the folder that it is written to."""

from pathlib import Path

from engines.adapters.source import name_adapters
from engines.errors import Conflict
from training.params.export import ExportParams
from training.params.export_quantization import bits_of


def made_of(params: ExportParams) -> str:
    """What is done to the model, in a word for the name of a folder: `merged-gptq-int4`, `gguf-q4_k_m`."""
    done = ["merged"] if params.merge_lora else []
    if params.quant_method is not None:
        bits = bits_of(params)
        done.append(
            params.quant_method if params.quant_method in ("fp8", "w8a8") else f"{params.quant_method}-int{bits}"
        )
    if params.to_gguf is not None:
        done.append(f"gguf-{params.to_gguf}")
    done += [word for word, asked in (("ollama", params.to_ollama), ("peft", params.to_peft_format)) if asked]
    return "-".join(done) or "exported"


def result_folder(params: ExportParams, suffix: str) -> Path:
    """Where the result is to be: `<adapter>-<suffix>` beside the last adapter, or beside the model where there is none,
    unless `output_dir` says.

    Raises Conflict where there is something already, InvalidAdapter.
    """
    if params.output_dir:
        folder = Path(params.output_dir).expanduser()
    else:
        sources = [*name_adapters(params.adapters).values()] or [params.model or ""]
        beside = Path(sources[-1]).expanduser().resolve()
        parent = beside.parent if beside.is_dir() else Path("output")
        folder = parent / f"{beside.name}-{suffix}"
    if folder.exists():
        raise Conflict(f"{folder} is there already: remove it, or give another output_dir", param="output_dir")
    return folder.absolute()
