"""The quantised forms that a model is exported in, and what loads each again.

`test_readers.py` holds each engine to what it says here, and `python -m tests.training.exports.readers` writes the
table into docs/export.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[3] / "docs" / "export.md"
ENGINES = ("pt", "vLLM", "LMDeploy")
YES, NOT_RUN = "yes", "not run"


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    asked: Mapping[str, Any]
    """The parameters that choose it."""
    vllm: str = YES
    """On a CPU: whether it reads it, or what it says instead."""
    lmdeploy: str = NOT_RUN
    """By its PyTorch engine, on a CPU: likewise."""
    calibrated: bool = False

    @property
    def name(self) -> str:
        return "-".join(str(value) for value in self.asked.values())


def by_data(method: str, bits: int, **engines: Any) -> Form:
    return Form({"quant_method": method, "quant_bits": bits}, calibrated=True, **engines)


def by_itself(method: str, bits: int | None = None, **engines: Any) -> Form:
    return Form({"quant_method": method} | ({} if bits is None else {"quant_bits": bits}), **engines)


_NO_MARLIN = "Marlin does not support weight_bits = uint8b128"
_NO_BNB = "Unknown quantization method: bitsandbytes"
_NO_HQQ = "Unknown quantization method: hqq"
_PACKED_ONLY = "Only compressed-tensors `pack-quantized` format is supported"
FORMS = (
    by_data("gptq", 4, lmdeploy="Unsupported quant method: gptq"),
    by_data("gptq", 8, vllm=_NO_MARLIN),
    by_data("awq", 4, lmdeploy=YES),
    by_itself("fp8", lmdeploy=_PACKED_ONLY),
    by_itself("w8a8"),
    by_itself("bnb", 4, vllm=_NO_BNB),
    by_itself("bnb", 8, vllm=_NO_BNB),
    by_itself("hqq", 4, vllm=_NO_HQQ),
    by_itself("torchao", 4),
    by_itself("torchao", 8),
)

BEGIN, END = "<!-- Written by `python -m tests.training.exports.readers`. -->\n", "<!-- The end of the table. -->\n"


def table() -> str:
    """What reads each form, as docs/export.md has it."""
    heads = ("exported by", *ENGINES)
    rows = [" | ".join(heads), " | ".join("---" for _ in heads), *(" | ".join(_cells(form)) for form in FORMS)]
    return "\n".join(f"| {row} |" for row in rows) + "\n"


def _cells(form: Form) -> list[str]:
    name = ", ".join(f"`{name} {value}`" for name, value in form.asked.items())
    return [name, YES, *(told if told in (YES, NOT_RUN) else f"no: {told}" for told in (form.vllm, form.lmdeploy))]


def page() -> str:
    """docs/export.md with the table as it is now."""
    before, rest = DOCS.read_text().split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCS.write_text(page())
