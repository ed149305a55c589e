"""Rounding a layer's weights by what is known of its inputs: column by column, where what is left of the row makes up
for each error (GPTQ: Frantar et al. 2022, arXiv:2210.17323), then each number once more beside all others (QuantEase:
Behdin et al. 2023, arXiv:2309.01885), in turn with the scales that suit these numbers best.

With H, the mean of x xᵀ over all inputs x, a change D of a row of weights costs D H Dᵀ.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engines.errors import UnsupportedModel
from training.exports.blocks import Block, Inputs
from training.exports.grid import Grid, fit_grid, groups_of, saved

if TYPE_CHECKING:
    from torch import Tensor

DAMPINGS = (0.01, 0.1, 1.0)
"""Of the mean of H's diagonal, added to it: the first that leaves something to invert."""
SWEEPS = 3
"""How often scales and numbers are found anew."""
COLUMNS = 32
"""Columns after which the errors are carried to all that follow."""
LARGEST = 2**25
"""Numbers of the equations that are solved at once."""


def round_block(
    block: Block,
    weights: Mapping[str, "Tensor"],
    inputs: Mapping[str, Inputs],
    pack: Callable[["Tensor", Grid], dict[str, "Tensor"]],
    **form: Any,
) -> dict[str, "Tensor"]:
    """Change the block's linear layers to what rounding leaves of `weights`, by their paths; return these as they are
    saved (`pack`), by names. `form`: of `rounded`, but that a group of -1 is all of a row."""
    import torch

    linears = block.linears()
    found: dict[str, Tensor] = {}
    for together in {id(each): each for each in inputs.values()}.values():  # layers with the same inputs
        paths = [path for path in weights if inputs[path] is together]
        columns = linears[paths[0]].in_features
        size = columns if form["group"] == -1 else form["group"]
        numbers, grid = rounded(torch.cat([weights[path] for path in paths]), together, **form | {"group": size})
        groups = groups_of(columns, size).to(numbers.device)
        rows = [linears[path].out_features for path in paths]
        for path, *parts in zip(paths, *(each.split(rows) for each in (numbers, grid.scale, grid.zero)), strict=True):
            layer, share = linears[path], replace(grid, scale=parts[1], zero=parts[2])
            layer.weight.data = share.meant(parts[0], groups).to(layer.weight.dtype)
            tensors = pack(parts[0], share) | ({} if layer.bias is None else {"bias": layer.bias.data})
            found |= {f"{block.path}.{path}.{name}": tensor for name, tensor in tensors.items()}
    return found


def rounded(
    weight: "Tensor", inputs: Inputs, *, bits: int, group: int, symmetric: bool = True
) -> tuple["Tensor", Grid]:
    """Numbers for `weight` (rows, columns) in float32, and their grid.

    Columns go in the order of their importance, with the scales of the groups that they are saved in. Raises
    UnsupportedModel where inputs are not finite.
    """
    hessian = inputs.gram / max(inputs.count, 1)
    idle = hessian.diagonal() == 0
    weight = weight.masked_fill(idle, 0)
    hessian.diagonal()[idle] = 1
    grid = saved(fit_grid(weight, hessian.diagonal(), bits=bits, group=group, symmetric=symmetric))
    numbers = _by_columns(weight, hessian, grid)
    for _ in range(SWEEPS):
        grid = replace(grid, scale=_best_scales(weight, hessian, numbers, grid))
        numbers = beside_others(weight, hessian, numbers, grid)
    return numbers, replace(grid, scale=_best_scales(weight, hessian, numbers, grid))


def _by_columns(weight: "Tensor", hessian: "Tensor", grid: Grid) -> "Tensor":
    """Numbers (rows, columns)."""
    import torch

    order = hessian.diagonal().argsort(descending=True)
    inverse = _factor_of_inverse(hessian[order][:, order])
    divisors, groups = inverse.diagonal().tolist(), (order // grid.group).tolist()
    left = weight.T[order]  # a row of memory for each column
    scales, zeros = grid.scale.T.contiguous(), grid.zero.T.contiguous()
    numbers, errors = torch.empty_like(left), left.new_empty(COLUMNS, len(weight))
    for start in range(0, len(left), COLUMNS):
        end = min(start + COLUMNS, len(left))
        for at in range(start, end):
            scale, zero, number, error = scales[groups[at]], zeros[groups[at]], numbers[at], errors[at - start]
            torch.div(left[at], scale, out=number).round_().add_(zero).clamp_(0, 2**grid.bits - 1)
            torch.sub(zero, number, out=error).mul_(scale).add_(left[at]).div_(divisors[at])
            left[at + 1 : end].addr_(inverse[at, at + 1 : end], error, alpha=-1)
        left[end:].addmm_(inverse[start:end, end:].T, errors[: end - start], alpha=-1)
    found = torch.empty_like(numbers)
    found[order] = numbers
    return found.T.contiguous()


def beside_others(weight: "Tensor", hessian: "Tensor", numbers: "Tensor", grid: Grid) -> "Tensor":
    """Numbers (rows, columns), one column after another those that cost least beside the others."""
    groups = groups_of(weight.shape[1], grid.group).to(weight.device)
    scales = grid.scale[:, groups].T.contiguous()  # a row of memory for each column, here and in what follows
    found = numbers.T.contiguous()
    change = (grid.meant(numbers, groups) - weight).T.contiguous()
    slopes, steps = hessian @ change, scales * hessian.diagonal()[:, None]
    for start in range(0, len(found), COLUMNS):
        part = slice(start, min(start + COLUMNS, len(found)))
        before, near, among = found[part].clone(), slopes[part].clone(), hessian[part, part]
        for at, (number, slope) in enumerate(zip(found[part], near, strict=True), start):
            moved = (number - slope / steps[at]).round_().clamp_(0, 2**grid.bits - 1) - number
            number += moved
            near.addr_(among[at - start], moved * scales[at])
        slopes.addmm_(hessian[:, part], (found[part] - before) * scales[part])
    return found.T.contiguous()


def _factor_of_inverse(hessian: "Tensor") -> "Tensor":
    """Upper U of the damped `hessian`'s inverse, Uᵀ U. Raises UnsupportedModel."""
    import torch

    for damping in DAMPINGS:
        damped = hessian + damping * hessian.diagonal().mean() * torch.eye(len(hessian), device=hessian.device)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not failed:
            return upper
    raise UnsupportedModel("what a layer is given by these texts cannot be told in numbers: is torch_dtype too small?")


def _best_scales(weight: "Tensor", hessian: "Tensor", numbers: "Tensor", grid: Grid) -> "Tensor":
    """(rows, groups): for each row the scales that cost least with its numbers, by least squares; those that it has
    where these, in float16, are no better."""
    import torch

    groups = groups_of(weight.shape[1], grid.group).to(weight.device)
    whole = numbers - grid.zero[:, groups]
    rows = max(1, LARGEST // (grid.scale.shape[1] ** 2 + weight.shape[1]))
    parts = zip(weight.split(rows), whole.split(rows), grid.scale.split(rows), strict=True)
    return torch.cat([_solved(*part, hessian, grid.group) for part in parts])


def _solved(weight: "Tensor", whole: "Tensor", scale: "Tensor", hessian: "Tensor", group: int) -> "Tensor":
    """With scales s a row costs s A sᵀ - 2 s b, and what does not depend on them."""
    import torch

    rows, groups = scale.shape

    def summed(products: "Tensor") -> "Tensor":
        return (products * whole).view(rows, groups, group).sum(-1)

    b = summed(weight @ hessian)
    places = [slice(start, start + group) for start in range(0, groups * group, group)]
    a = torch.stack([summed(whole[:, place] @ hessian[place]) for place in places], 1)

    def cost(s: "Tensor") -> "Tensor":
        return (s * ((a @ s[..., None])[..., 0] - 2 * b)).sum(-1)

    ridge = 1e-4 * a.diagonal(dim1=1, dim2=2).mean(-1).clamp(min=1e-12)
    wanted = b - (a @ scale[..., None])[..., 0]
    change, failed = torch.linalg.solve_ex(a + torch.diag_embed(ridge[:, None].expand(rows, groups)), wanted)
    found = (scale + change).half().float()
    better = (failed == 0) & (found * scale > 0).all(-1) & (cost(found) < cost(scale))
    return torch.where(better[:, None], found, scale)
