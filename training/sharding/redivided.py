"""Checkpoints of DeepSpeed that another number of processes goes on from.

DeepSpeed loads a checkpoint by as many processes as wrote it. Here each weight, with what the optimizer keeps of it, is
found by its name in what all of them wrote, and a process copies its own part.

DeepSpeed's universal checkpoints would not do: they know Adam alone, and those of stage 3 give all weights the settings
of the first group (its weight decay) and one count of steps, which each group then counts on.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from engines.errors import InvalidRequest

WEIGHT = "weight"
"""The weight itself, in float32, beside the names of what an optimizer keeps of it."""
UNKNOWN = ("elastic_checkpoint", "round_robin_gradients")
"""Parts of `zero_optimization` with which DeepSpeed does not say whose numbers are where."""
SCALE = ("loss_scaler", "dynamic_loss_scale", "overflow")
COUNTERS = ("global_steps", "global_samples", "skipped_steps")


class Place(NamedTuple):
    """A part of a weight in one of the tensors that this process's optimizer steps."""

    name: str
    numel: int
    """Size of the whole weight."""
    first: int
    """Where the part begins in the weight."""
    flat: Any
    """The tensor, of several weights' parts."""
    start: int
    """Where the part begins in the tensor."""
    size: int
    """Size of the part."""


def is_of_others(checkpoint: Path, processes: int) -> bool:
    """Whether an optimizer was divided there among another number of processes."""
    return len(_written(checkpoint, "optim_states")) not in (0, processes)


def load(checkpoint: Path, engine: Any) -> None:
    """Give `engine` (a `DeepSpeedEngine` that has not trained yet) weights, optimizer and counters of `checkpoint`.

    Raises InvalidRequest where that lacks a part, or a weight that is trained.
    """
    zero, saved = engine.optimizer, Saved(checkpoint)
    weights_divided = engine.zero_optimization_partition_weights()
    if weights_divided:
        zero.checkpoint_event_prologue()
    for place in _places_of_pieces(zero) if weights_divided else _places(zero):
        saved.fill(place, zero.optimizer.state[place.flat])
    for group, before in zip(zero.optimizer.param_groups, saved.settings, strict=True):
        group.update({name: value for name, value in before.items() if name != "params"})
    for name in SCALE:
        if name in saved.optimizer:
            setattr(zero, name, saved.optimizer[name])
    for name in COUNTERS:
        setattr(engine, name, saved.model[name])
    if weights_divided:
        for number in range(len(zero.fp16_groups)):
            zero._reassign_or_swap_out_partitioned_parameters(number)
        zero.checkpoint_event_epilogue()
    else:
        zero.update_lp_params()


def _places(zero: Any) -> Iterator[Place]:
    """In stages below 3, where the weights of a group, one after the other, are cut anywhere."""
    flats = [flat for group in zero.optimizer.param_groups for flat in group["params"]]
    for weight, name in zero.param_names.items():
        part = getattr(weight, "_hp_mapping", None)
        if part is not None:  # it is trained, and not by other processes alone
            within, at = part.lp_fragment_address, part.hp_fragment_address
            yield Place(name, weight.numel(), within.start, flats[part.param_group_index], at.start, at.numel)


def _places_of_pieces(zero: Any) -> Iterator[Place]:
    """In stage 3, where each weight is cut into as many pieces as there are processes."""
    from torch import distributed

    rank = distributed.get_rank(zero.dp_process_group)
    for flat, group in zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True):
        start = 0
        for weight in group:
            size, whole = weight.partition_numel(), weight.ds_numel
            first = min(rank * size, whole)
            yield Place(zero.param_names[weight], whole, first, flat, start, min(size, whole - first))
            start += size


class Saved:
    """What all processes wrote, read from the disk as it is asked for."""

    def __init__(self, checkpoint: Path) -> None:
        self.name = checkpoint.name
        self.model = _read(_written(checkpoint, "model_states")[0])
        parts = [_read(file)["optimizer_state_dict"] for file in _written(checkpoint, "optim_states")]
        if len(parts) != (wrote := self.model["dp_world_size"]):
            raise self._unsuitable(f"has {len(parts)} of the {wrote} parts that its processes wrote")
        self.optimizer = parts[0]
        if "fp32_flat_groups" in self.optimizer:
            stepped, weights = "optimizer_state_dict", "fp32_flat_groups"
            places = [[_pieces(shapes, rank, wrote) for shapes in self.model["param_shapes"]] for rank in range(wrote)]
        else:
            stepped, weights = "base_optimizer_state", "single_partition_of_fp32_groups"
            places = [[_fragments(each) for each in part["param_slice_mappings"]] for part in parts]
        self.settings = self.optimizer[stepped]["param_groups"]
        self.kept: dict[str, list[tuple[dict[str, Any], int, int]]] = {}
        """Weight -> what is there of it, process by process: tensors and numbers of its group by name, where its own
        begin in the tensors, and how many they are."""
        for part, groups in zip(parts, places, strict=True):
            for number, names in enumerate(groups):
                there = {WEIGHT: part[weights][number], **part[stepped]["state"].get(number, {})}
                for name, (start, count) in names.items():
                    self.kept.setdefault(name, []).append((there, start, count))

    def fill(self, place: Place, state: dict[str, Any]) -> None:
        """Copy a part of a weight, and what is kept of it to `state`, the optimizer's of its tensor."""
        pieces = self.kept.get(place.name, [])
        if sum(count for _, _, count in pieces) != place.numel:
            raise self._unsuitable(f"does not have {place.name} as it is trained now")
        for key, value in pieces[0][0].items():
            if not getattr(value, "ndim", 0):  # the number of steps
                state[key] = _beside(place.flat, value, self.settings[0])
                continue
            to = (
                place.flat.data if key == WEIGHT else state.setdefault(key, place.flat.data.new_zeros(place.flat.shape))
            )
            at = -place.first
            for there, start, count in pieces:
                first, last = max(at, 0), min(at + count, place.size)
                if first < last:
                    to[place.start + first : place.start + last].copy_(
                        there[key][start + first - at : start + last - at]
                    )
                at += count

    def _unsuitable(self, why: str) -> InvalidRequest:
        message = f"{self.name} {why}: its weights alone can be used, by resume_only_model"
        return InvalidRequest(message, param="resume_from_checkpoint")


def _pieces(shapes: dict[str, Any], rank: int, processes: int) -> dict[str, tuple[int, int]]:
    """Weight -> where its numbers begin in what process `rank` wrote in stage 3, and how many they are."""
    found, start = {}, 0
    for name, shape in shapes.items():
        size = -(-shape.numel() // processes)
        found[name] = (start, max(0, min(size, shape.numel() - rank * size)))
        start += size
    return found


def _fragments(mapping: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """The same in stages below 3."""
    return {name: (at.start, at.numel) for name, at in mapping.items()}


def _beside(flat: Any, number: Any, settings: dict[str, Any]) -> Any:
    """`number` as torch's optimizers hold it: on the device of the weights only where one kernel steps them all."""
    if not hasattr(number, "clone"):
        return number
    together = settings.get("fused") or settings.get("capturable")
    return number.clone().to(flat.device if together else "cpu")


def _written(checkpoint: Path, what: str) -> list[Path]:
    """Files of all processes, by their ranks."""
    return sorted(
        checkpoint.glob(f"global_step*/*_{what}.pt"), key=lambda file: [*map(int, re.findall(r"\d+", file.name))]
    )


def _read(file: Path) -> Any:
    import torch

    return torch.load(file, map_location="cpu", mmap=True, weights_only=False)  # as DeepSpeed does
