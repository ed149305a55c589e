"""Tensor parallelism (Shoeybi et al. 2019, arXiv:1909.08053): each process of a group has a part of every layer and the
whole of every batch, as transformers' plans for its models say it.

Layers are divided here rather than by transformers as it loads: adapters are made beside whole weights, with the values
that one process gives them, and its trainer, which trains no model on CPUs that was divided as it was loaded, has
nothing to refuse. The optimizer changes the parts as plain tensors, in the order of one process, so that checkpoints,
whose weights and numbers are gathered, are those of one process.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from engines.errors import UnsupportedModel

PARAM = "tensor_model_parallel_size"
SIZES = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
)
"""What of a configuration each process has a part of."""
SUMMED = "replicated_with_grad_allreduce"
"""transformers' word for norms within heads: each process has all of their weights, and gradients of its own heads.
transformers sums these after each backward pass, those of earlier passes of a step once more."""
BY_BOTH = {"colwise": "lora_B", "packed_colwise": "lora_B", "rowwise": "lora_A"}
"""Way to divide a linear layer -> which of the matrices that LoRA has beside it is divided, too."""
WHOLE_ENDS = ("colwise_gather_output", "rowwise_split_input", "embedding_rowwise")
"""Ways in which what a layer gets and returns is whole, as it is where the layer is not divided."""
WAYS = frozenset({*BY_BOTH, *WHOLE_ENDS, SUMMED, "moe_tp_experts"})
"""Ways of transformers' plans whose gradients have been held to those of one process."""
PIECE = 1 << 26
"""Bytes of gradients (64 MiB) that processes sum at a time."""


def check(config: Any, size: int) -> None:
    """`config`: a `PreTrainedConfig`. Raises UnsupportedModel where its model cannot be divided among `size`."""
    text = config.get_text_config()
    plan = text.base_model_tp_plan
    reason = None
    if not plan:
        reason = f"transformers has no plan by which layers of {text.model_type} are divided"
    elif others := sorted(set(plan.values()) - WAYS):
        reason = f"layers of {text.model_type} are divided in ways that are not supported ({', '.join(others)})"
    elif uneven := {name: count for name, count in _sizes(text).items() if count % size}:
        those = " and ".join(f"{name} {count}" for name, count in uneven.items())
        reason = f"{those} cannot be shared evenly by {size}: {_those_that_do(text)}"
    if reason:
        raise UnsupportedModel(reason, param=PARAM)


def _sizes(text: Any) -> dict[str, int]:
    found = {name: getattr(text, name, None) for name in SIZES}
    return {name: count for name, count in found.items() if count}


def _those_that_do(text: Any) -> str:
    common = math.gcd(*_sizes(text).values())
    fitting = [str(number) for number in range(2, common + 1) if common % number == 0]
    return f"choose {' or '.join(fitting)}" if fitting else "no number of processes can"


def part_of(config: Any, size: int) -> Any:
    """`config` of a model (`PreTrainedConfig`), as if the part of its layers that one process of `size` has were all of
    them: changed in place."""
    text = config.get_text_config()
    if size == 1:
        return config
    if getattr(text, "head_dim", None) is None:
        text.head_dim = text.hidden_size // text.num_attention_heads
    for name, count in _sizes(text).items():
        setattr(text, name, count // size)
    return config


class Meshes(NamedTuple):
    """Which processes divide layers, and which train copies of the same part."""

    tensor: Any
    """A DeviceMesh of the processes that have the parts of one model."""
    data: Any
    """A DeviceMesh of those that have the same part of other models' batches."""


def meshes(device_type: str, processes: int, size: int) -> Meshes:
    """Processes of one group have ranks one after the other: they exchange most, and are on one machine."""
    from torch.distributed.device_mesh import init_device_mesh

    both = init_device_mesh(device_type, (processes // size, size), mesh_dim_names=("data", "tensor"))
    return Meshes(both["tensor"], both["data"])


def divide(model: Any, mesh: Any, device: Any) -> None:
    """Divide the layers of `model` (a whole `PreTrainedModel` or `PeftModel`) among the processes of `mesh`, in place,
    each of which has the rest of it on `device`. Raises UnsupportedModel."""
    from torch import nn
    from transformers.distributed.tensor_parallel import ALL_PARALLEL_STYLES

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    plan = _plan(base, mesh.size())
    check_adapter(base)
    for path, module in list(base.named_modules()):
        wraps = hasattr(module, "base_layer") or hasattr(module, "original_module")
        layer, inner = _layer(path)
        way = _way(plan, layer)
        if inner and way is not None:  # a matrix beside the layer
            way = way if BY_BOTH.get(way) == inner else None
        for name, weight in list(module.named_parameters(recurse=False)):
            own = way if inner else _way(plan, f"{layer}.{name}") or way
            if own not in (None, SUMMED) and not wraps:
                ALL_PARALLEL_STYLES[own].shard_param(module, name, mesh)
                _check_even(module._parameters[name], f"{path}.{name}")
            if module._parameters[name] is weight:
                weight.data = weight.data.to(device)
        for name, tensor in list(module.named_buffers(recurse=False)):
            module._buffers[name] = tensor.to(device)
        if way == SUMMED:
            module.sees_a_part = True
        elif way is not None and not wraps and not isinstance(module, nn.ModuleDict):
            ALL_PARALLEL_STYLES[way].install_forward(module, mesh)


def _plan(base: Any, size: int) -> dict[str, str]:
    """transformers' for all of the model, but for embeddings that are the head, too, as one weight cannot be divided in
    both ways, and for a head whose tokens cannot be shared evenly."""
    plan = dict(base.tp_plan)
    head, embeddings = base.get_output_embeddings(), base.get_input_embeddings()
    weight = getattr(head, "weight", None)
    if weight is not None and (weight is embeddings.weight or len(weight) % size):
        outer = [name for name, module in base.named_modules() if module in (head, embeddings)]
        plan = {name: way for name, way in plan.items() if name not in outer}
    return plan


def check_adapter(base: Any) -> None:
    """Raises UnsupportedModel where `base`, a `PreTrainedModel`, has an adapter of weights that are no linear layer's:
    PEFT adds it to whole ones."""
    from peft.tuners.lora import ParamWrapper

    for path, module in base.named_modules():
        if isinstance(module, ParamWrapper):
            message = f"an adapter of experts ({path}) needs whole weights, which {PARAM} divides: name other layers"
            raise UnsupportedModel(message, param="target_modules")


def _layer(path: str) -> tuple[str, str]:
    """The layer that a module belongs to by its `path`, without what PEFT puts around it, and which of LoRA's matrices
    it is."""
    inner = next((name for name in ("lora_A", "lora_B") if f".{name}." in f"{path}."), "")
    for mark in (f".{inner}", ".modules_to_save", ".original_module", ".base_layer"):
        if len(mark) > 1 and f"{mark}." in f"{path}.":
            path = path[: f"{path}.".index(f"{mark}.")]
    return path, inner


def _way(plan: dict[str, str], name: str) -> str | None:
    from transformers.distributed.tensor_parallel import replace_layer_number_by_wildcard

    return plan.get(replace_layer_number_by_wildcard(name))


def _check_even(weight: Any, name: str) -> None:
    from torch.distributed.tensor import DTensor

    if not isinstance(weight, DTensor):
        return
    size = weight.device_mesh.size()
    for placement in weight.placements:
        if not placement.is_replicate() and weight.shape[placement.dim] % size:
            message = f"{name} has {weight.shape[placement.dim]} rows or columns, which {size} cannot share evenly"
            raise UnsupportedModel(message, param=PARAM)


@contextmanager
def whole(model: Any, *, here: bool, trained_only: bool, changed: bool = False) -> Iterator[None]:
    """Have `model` hold whole weights for a while, on the CPU, where they are needed: `here`. Each process has to ask.

    `trained_only`: those that are frozen stay divided. `changed`: whether what the weights are afterwards is to be
    divided again."""
    import torch
    from torch.distributed.tensor import DTensor, distribute_tensor

    divided = [
        (module, name, weight)
        for module in model.modules()
        for name, weight in module.named_parameters(recurse=False)
        if isinstance(weight, DTensor) and (weight.requires_grad or not trained_only)
    ]
    with torch.no_grad():
        for module, name, weight in divided:
            gathered = weight.full_tensor().cpu()
            if here:
                module._parameters[name] = torch.nn.Parameter(gathered, requires_grad=weight.requires_grad)
    try:
        yield
    finally:
        for module, name, weight in divided:
            now = module._parameters[name]
            module._parameters[name] = weight
            if changed:
                assert now is not weight, "changed where it is whole"
                part = distribute_tensor(now.data, weight.device_mesh, weight.placements, src_data_rank=None)
                weight.to_local().data.copy_(part.to_local())


class Parts:
    """What this process trains of a divided model, as plain tensors, which an optimizer changes in their place."""

    def __init__(self, model: Any, where: Meshes) -> None:
        from torch import nn
        from torch.distributed.tensor import DTensor

        self._where = where
        self._held: dict[Any, Any] = {}
        """Weight of the model -> the part of it; of those that are whole, themselves."""
        self._summed: set[Any] = set()
        for module in model.modules():
            for weight in module.parameters(recurse=False):
                if not weight.requires_grad:
                    continue
                if isinstance(weight, DTensor):
                    self._held[weight] = nn.Parameter(weight.to_local().detach())
                else:
                    self._held[weight] = weight
                if getattr(module, "sees_a_part", False):
                    self._summed.add(weight)

    @contextmanager
    def in_place(self, model: Any) -> Iterator[None]:
        """Have `model` name the parts instead of weights, as an optimizer is made of it."""
        named = [
            (module, name, weight)
            for module in model.modules()
            for name, weight in module.named_parameters(recurse=False)
            if self._held.get(weight, weight) is not weight
        ]
        for module, name, weight in named:
            module._parameters[name] = self._held[weight]
        try:
            yield
        finally:
            for module, name, weight in named:
                module._parameters[name] = weight

    def share_gradients(self) -> None:
        """Give each part the gradient of the whole batch, once all of a step's passes are done."""
        import torch

        tensor, data = self._where
        apart: list[Any] = []
        alike: list[Any] = []
        summed: list[Any] = []
        with torch.no_grad():
            for weight, held in self._held.items():
                if weight.grad is None:
                    continue
                if held is not weight:
                    held.grad = weight.grad.redistribute(placements=weight.placements).to_local()
                kind = summed if weight in self._summed else apart if _is_apart(weight) else alike
                kind.append(held.grad)
            _average(summed, tensor, 1)
            # They are the same in all processes, but for kernels that add in no order, by which weights would part.
            _average(alike, tensor, tensor.size())
            if data.size() > 1:
                _average([*apart, *alike, *summed], data, data.size())

    def clip(self, most: float) -> Any:
        """Scale the gradients down to a norm of `most`, and return what it was, a scalar."""
        import torch

        apart = [held.grad for weight, held in self._held.items() if held.grad is not None and _is_apart(weight)]
        alike = [held.grad for weight, held in self._held.items() if held.grad is not None and not _is_apart(weight)]
        square = torch.nn.utils.get_total_norm(apart).square().to(self._device())
        torch.distributed.all_reduce(square, group=self._where.tensor.get_group())
        norm = (square + torch.nn.utils.get_total_norm(alike).to(square.device).square()).sqrt()
        if math.isfinite(most):
            torch.nn.utils.clip_grads_with_norm_(self._held.values(), most, norm)
        return norm

    def forget_gradients(self) -> None:
        for held in self._held.values():
            held.grad = None

    def gathered(self, optimizer: Any, *, here: bool) -> dict[str, Any] | None:
        """`state_dict` of an `optimizer` of these parts, as one process would have it, on the CPU, where it is needed:
        `here`. Each process has to ask."""
        import torch
        from torch.distributed.tensor import DTensor

        state = optimizer.state_dict()
        kept: dict[int, dict[str, Any]] = {}
        for number, weight in enumerate(self._in_order(optimizer)):
            for name, value in state["state"].get(number, {}).items():
                if _is_apart(weight) and torch.is_tensor(value) and value.shape == self._held[weight].shape:
                    value = DTensor.from_local(
                        value, weight.device_mesh, weight.placements, shape=weight.shape, stride=weight.stride()
                    ).full_tensor()
                if here:
                    kept.setdefault(number, {})[name] = value.cpu() if torch.is_tensor(value) else value
        return {**state, "state": kept} if here else None

    def divided(self, optimizer: Any, state: dict[str, Any]) -> dict[str, Any]:
        """Of a whole `state_dict`, what belongs to the parts that `optimizer` has here."""
        import torch
        from torch.distributed.tensor import distribute_tensor

        kept: dict[int, dict[str, Any]] = {}
        for number, weight in enumerate(self._in_order(optimizer)):
            for name, value in state["state"].get(number, {}).items():
                if _is_apart(weight) and torch.is_tensor(value) and value.shape == weight.shape:
                    value = distribute_tensor(
                        value, weight.device_mesh, weight.placements, src_data_rank=None
                    ).to_local()
                kept.setdefault(number, {})[name] = value
        return {**state, "state": kept}

    def _in_order(self, optimizer: Any) -> list[Any]:
        """The weights, by the numbers that an optimizer gives their parts."""
        weights = {id(held): weight for weight, held in self._held.items()}
        return [weights[id(held)] for group in optimizer.param_groups for held in group["params"]]

    def _device(self) -> Any:
        return next(iter(self._held.values())).device


def draw_alike(mesh: Any, device: Any) -> None:
    """Have torch's random numbers be those of the first process of `mesh` in all of them."""
    import torch

    on_device = None if device.type == "cpu" else getattr(torch, device.type)
    state = [torch.get_rng_state(), None if on_device is None else on_device.get_rng_state()]
    torch.distributed.broadcast_object_list(state, group_src=0, group=mesh.get_group())
    torch.set_rng_state(state[0])
    if on_device is not None:
        on_device.set_rng_state(state[1])


def _is_apart(weight: Any) -> bool:
    """Whether each process has another part of it."""
    placements = getattr(weight, "placements", ())
    return any(not placement.is_replicate() for placement in placements)


def _average(gradients: list[Any], mesh: Any, count: int) -> None:
    """Sum each over the processes of `mesh`, divided by `count`, some at a time, in place."""
    import torch

    waiting = list(reversed(gradients))
    while waiting:
        taken = [waiting.pop()]
        size = taken[0].nbytes
        while waiting and waiting[-1].dtype == taken[0].dtype and size + waiting[-1].nbytes <= PIECE:
            size += waiting[-1].nbytes
            taken.append(waiting.pop())
        flat = torch.cat([gradient.flatten() for gradient in taken])
        torch.distributed.all_reduce(flat, group=mesh.get_group())
        flat /= count
        for gradient, mean in zip(taken, flat.split([each.numel() for each in taken]), strict=True):
            gradient.copy_(mean.view_as(gradient))
