"""A GPU that is none: tensors that say they lie on `cuda:0`, and have their numbers on the CPU.

A torch without CUDA has no operations for it, so each of them comes to `_run`. That refuses operands on different
devices, as a GPU does, and computes the rest on the CPU. So code shows where it forgets a device. CUDA's own kernels do
not show, nor their precision, their speed and their memory.
"""

from types import SimpleNamespace
from typing import Any, Self

import safetensors.torch
import torch
import torch.utils._device
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

GPU, CPU = torch.device("cuda:0"), torch.device("cpu")
GIB = 1 << 30

ACROSS = frozenset(
    ["aten.copy_.default", *(f"aten.{name}" for name in ("index.Tensor", "index_put_.default", "index_put.default"))]
)
"""Operations that take operands of both kinds."""


class OnGpu(Tensor):
    """What it is made of is `held`, a tensor on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Self:
        with torch.inference_mode(False):  # a view of what is no inference tensor must be none either
            made: Self = Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                layout=held.layout,
                device=GPU,
            )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(function, args, kwargs or {})

    # What torch reads past its operations.

    @property
    def data(self) -> Tensor:
        return OnGpu(self.held.data)

    @data.setter
    def data(self, given: Tensor) -> None:
        # What torch knows of a wrapper cannot be changed.
        if not isinstance(given, OnGpu) or given.shape != self.shape or given.dtype is not self.dtype:
            raise NotImplementedError(f"{given.dtype} {tuple(given.shape)} in the place of {tuple(self.shape)}")
        self.held = given.held

    def __repr__(self) -> str:
        return f"OnGpu({self.held})"

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        address: int = self.held.data_ptr()
        return address

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def pin_memory(self, *args: Any) -> Tensor:
        raise RuntimeError("only dense CPU tensors can be pinned")

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, device: Any = GPU) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, device=device)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_tensors_of(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_tensors_of(index), value)

    def __matmul__(self, other: Tensor) -> Tensor:
        """Of a row torch would make a matrix, and of the result a row in place, which a wrapper does not notice."""
        return super().__matmul__(other) if self.dim() > 1 else (self[None] @ other)[0]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = OnGpu(self.held.clone())
            own = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = torch.nn.Parameter(copied, self.requires_grad) if own else copied
        copy: Tensor = memo[id(self)]
        return copy


def _tensors_of(index: Any) -> Any:
    """An index with tensors in the place of lists, of which torch would make tensors without asking us."""
    if isinstance(index, list):
        return torch.tensor(index)
    return tuple(map(_tensors_of, index)) if isinstance(index, tuple) else index


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _run(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = str(function)
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    here = [tensor for tensor in tensors if isinstance(tensor, OnGpu)]
    elsewhere = [tensor for tensor in tensors if not isinstance(tensor, OnGpu) and tensor.dim()]
    if here and elsewhere and name not in ACROSS:
        shapes = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device: {name} of {shapes}")
    asked = kwargs.get("device")
    device = GPU if here else CPU
    if name == "aten.copy_.default":
        device = args[0].device
    elif asked is not None:
        device, kwargs = torch.device(asked), kwargs | {"device": CPU}
    kwargs.pop("pin_memory", None)
    computed = INSTEAD.get(name, function)(*tree_map(_held, args), **tree_map(_held, kwargs))
    known = {id(tensor.held): tensor for tensor in here}

    def placed(value: Any) -> Any:
        if not isinstance(value, Tensor) or isinstance(value, OnGpu):
            return value
        if device.type == "cuda":
            return known.get(id(value)) if id(value) in known else OnGpu(value)
        return value.clone() if id(value) in known else value

    return tree_map(placed, computed)


# ---- operations of CUDA alone, or that CPUs have for other types


def _histc(x: Tensor, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
    return torch.histc(x.float(), bins, min, max).to(x.dtype)


def _varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    starts_of_keys: None,
    longest_query: int,
    longest_key: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    enable_gqa: bool = False,
    seqused_k: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """FlashAttention over pages, with what it asks of its operands."""
    assert seqused_k is not None and block_table is not None and window_size is not None and scale is not None
    assert query.dtype in (torch.float16, torch.bfloat16) and query.dtype == key.dtype == value.dtype
    assert starts.dtype == seqused_k.dtype == block_table.dtype == torch.int32
    group, rest = divmod(query.shape[1], key.shape[2])
    assert query.is_contiguous() and key.shape[1] % 256 == 0 and query.shape[2] % 8 == 0
    assert rest == 0 and enable_gqa == (group > 1)
    assert len(starts) - 1 == len(seqused_k) == len(block_table) and int(seqused_k.max()) <= longest_key
    assert int((starts[1:] - starts[:-1]).max()) <= longest_query
    out = torch.empty_like(query)
    for begin, end, length, blocks in zip(starts, starts[1:], seqused_k, block_table, strict=False):
        pages = (kept[blocks.long()].flatten(0, 1)[:length].float() for kept in (key, value))
        keys, values = (page.repeat_interleave(group, 1) for page in pages)
        scores = torch.einsum("qhd,khd->hqk", query[begin:end].float(), keys) * scale
        own = torch.arange(int(length - (end - begin)), int(length))[:, None]
        other = torch.arange(int(length))
        seen = (other <= own + window_size[1]) & ((other >= own - window_size[0]) | (window_size[0] < 0))
        weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
        out[begin:end] = torch.einsum("hqk,khd->qhd", weights, values).to(out.dtype)
    return out, torch.empty(0), torch.empty(0)


INSTEAD: dict[str, Any] = {"aten.histc.default": _histc, "torch_attn._varlen_attn.default": _varlen_attn}

# ---- what torch says of the GPU


def pretend() -> None:
    """Have torch find the GPU, and put what is meant for it there. `hooks.load` comes before."""
    LIBRARY.fallback(lambda function, *args, **kwargs: _run(function, args, kwargs), "CUDA")
    torch.utils._device._device_constructors()  # which notes `torch.tensor` as it is
    for name in ("tensor", "eye"):  # which fill, and make larger, what they have made without asking us
        setattr(torch, name, _moved(getattr(torch, name)))
    torch.Tensor.pin_memory = lambda self, *args: self
    torch.__future__.set_swap_module_params_on_conversion(True)  # a module's parameters stay the same objects
    for name, value in ANSWERS.items():
        setattr(torch.cuda, name, _answer(value))
    for name in ("_cuda_getDevice", "_cuda_exchangeDevice", "_cuda_maybeExchangeDevice", "_cuda_getCurrentRawStream"):
        setattr(torch._C, name, _answer(0))
    torch._C._cuda_setDevice = _answer(None)
    states: dict[str, Any] = {
        "get_rng_state": lambda *args: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": _answer(None),
        "set_rng_state_all": _answer(None),
    }
    for name, state in states.items():
        setattr(torch.cuda, name, state)
        setattr(torch.cuda.random, name, state)
    read = safetensors.torch.load_file
    safetensors.torch.load_file = lambda file, device="cpu", **more: {
        name: tensor.to(device) for name, tensor in read(file, **more).items()
    }


def _moved(make: Any) -> Any:
    def made(*args: Any, device: Any = None, **more: Any) -> Tensor:
        tensor: Tensor = make(*args, **more)
        return tensor if device is None else tensor.to(device)

    return made


def _answer(value: Any) -> Any:
    return lambda *args, **kwargs: value


LIBRARY = torch.library.Library("_", "IMPL")
ANSWERS: dict[str, Any] = {
    "is_available": True,
    "is_initialized": True,
    "is_bf16_supported": True,
    "device_count": 1,
    **dict.fromkeys(("current_device", "_exchange_device", "_maybe_exchange_device"), 0),
    "get_device_capability": (9, 0),
    "get_device_name": "none",
    "get_device_properties": SimpleNamespace(
        name="none", major=9, minor=0, total_memory=2 * GIB, multi_processor_count=1
    ),
    "mem_get_info": (GIB, 2 * GIB),
    **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), 0),
    **dict.fromkeys(("_lazy_init", "_lazy_call", "empty_cache", "synchronize", "set_device"), None),
    **dict.fromkeys(("manual_seed", "manual_seed_all", "reset_peak_memory_stats"), None),
}
