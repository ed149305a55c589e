"""What the reference says of all rows, computed once before training, so that it need not be held in memory meanwhile.

The numbers lie in the job's folder, and what goes on from one of its checkpoints takes them from there.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from engines.adapters.disk import sync
from training.trainers.reference import Reference
from training.trainers.weights.processes import in_any_process

COLUMN = "ref_log_probs"
FILE = f"{COLUMN}.safetensors"

Judge = Callable[[Sequence[Mapping[str, Any]]], Tensor]
"""Rows -> what the reference says of their answers, (rows, answers)."""


def with_ref_log_probs(
    trainer: Any, reference: Reference, judge: Judge, sets: Mapping[str, Any], *, answers: int
) -> dict[str, Any]:
    """`sets` (datasets' Dataset) by name, each with the column COLUMN: a list of a number for each of the `answers` of
    a row. `trainer`: a Trainer behind a JobTrainer, before its first step."""
    job = trainer.job
    key = _key(job.precision, reference, sets)
    resumed = job.params.resume_from_checkpoint
    found = _read(Path(resumed).expanduser().parent / FILE, key) if resumed else {}
    if in_any_process(found.keys() != sets.keys(), trainer.args):
        job.report.message("Computing what the reference says of the data.")
        found = {name: _computed(trainer, rows, judge, answers) for name, rows in sets.items()}
    if trainer.accelerator.is_main_process:
        _write(found, key, job.report.folder.path / FILE)
    return {name: rows.add_column(COLUMN, found[name].tolist()) for name, rows in sets.items()}


def _computed(trainer: Any, rows: Any, judge: Judge, answers: int) -> Tensor:
    """(rows, answers): each process computes its share, rows of about the same length at a time."""
    size, accelerator = trainer.args.per_device_train_batch_size, trainer.accelerator
    lengths = [sum(len(ids) for ids in _tokens(row)) for row in rows]
    share = sorted(range(accelerator.process_index, len(rows), accelerator.num_processes), key=lengths.__getitem__)
    said = torch.zeros(len(rows), answers, device=accelerator.device)
    for start in range(0, len(share), size):
        chosen = share[start : start + size]
        said[chosen] = judge([rows[at] for at in chosen])
    found: Tensor = accelerator.reduce(said, reduction="sum")
    return found.cpu()


def _key(precision: Any, reference: Reference, sets: Mapping[str, Any]) -> str:
    """What the numbers depend on: weights, types and tokens."""
    digest = hashlib.sha256(str(precision).encode())
    for weight in reference.weights:
        digest.update(weight.detach().flatten().view(torch.uint8).cpu().numpy().data)
    for name, rows in sets.items():
        digest.update(name.encode())
        for row in rows:
            for ids in _tokens(row):
                digest.update(b"|" + np.asarray(ids, dtype=np.int32).tobytes())
    return digest.hexdigest()


def _tokens(row: Mapping[str, Any]) -> Iterator[Sequence[int]]:
    return (row[name] for name in sorted(row) if name.endswith("_ids"))


def _read(file: Path, key: str) -> dict[str, Tensor]:
    """What is kept there for `key`; nothing where it is of something else, or cannot be read."""
    try:
        with safe_open(file, "pt") as kept:
            if (kept.metadata() or {}).get("key") != key:
                return {}
            names = kept.keys()
            return {name: kept.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return {}


def _write(found: dict[str, Tensor], key: str, file: Path) -> None:
    """Whole, or not at all."""
    partial = file.with_name(f".{file.name}")
    save_file(found, partial, metadata={"key": key})
    sync(partial)
    partial.rename(file)
