"""Steps are those of the libraries, and what goes on from a checkpoint makes those that would have come."""

from functools import partial
from typing import Any

import pytest
import schedulefree
import torch
from apollo_torch import APOLLOAdamW
from galore_torch import GaLoreAdafactor, GaLoreAdamW

from tests.training.optimizers.steps import ARGUMENTS, STEPS, as_asked, equal, learned, losses_of, saved, tiny_model
from training.optimizers import optimizer_of
from training.optimizers.projected import LazyProjector, quantised, restored
from training.params.sft import SftParams

GALORE: dict[str, Any] = {"use_galore": True, "galore_rank": 4, "galore_update_proj_gap": 2}
LAZY = GALORE | {"galore_quantization": True, "galore_update_proj_gap": 1, "galore_queue_size": 1}
AT_ONCE: dict[str, Any] = {"max_grad_norm": 0}
APOLLO: dict[str, Any] = {"rank": 4, "update_proj_gap": 2}
KINDS: dict[str, dict[str, Any]] = {
    "galore": GALORE,
    "galore, full": GALORE | {"galore_proj_type": "full"},
    "galore, adafactor": GALORE | {"optim": "adafactor"},
    "galore, at once": GALORE | AT_ONCE | {"galore_optim_per_parameter": True},
    "galore, with embedding": GALORE | {"galore_with_embedding": True},
    "q-galore": LAZY,
    "q-galore, 4 bits": LAZY | {"galore_proj_quant": True},
    "q-galore, 8 bits, full": LAZY | {"galore_proj_quant": True, "galore_proj_bits": 8, "galore_proj_type": "full"},
    "apollo": {"optim": "apollo_adamw", "optim_args": APOLLO},
    "apollo, svd": {"optim": "apollo_adamw", "optim_args": APOLLO | {"proj": "svd", "scale_type": "tensor"}},
    "apollo, at once": AT_ONCE | {"optim": "apollo_adamw_layerwise", "optim_args": APOLLO},
    "muon": {"optim": "muon", "optim_args": {"momentum": 0.9}},
}


def groups(model: Any, **settings: Any) -> list[dict[str, Any]]:
    """The weights: those of linear layers but the head with `settings`, the others; norms without decay."""
    inner: list[Any] = []
    outer: list[Any] = []
    norms: list[Any] = []
    for name, weight in model.named_parameters():
        (norms if weight.ndim == 1 else inner if ".layers." in name else outer).append(weight)
    return [
        {"params": outer, "weight_decay": 0.1},
        {"params": inner, "weight_decay": 0.1, **settings},
        {"params": norms, "weight_decay": 0.0},
    ]


def librarys(name: str, model: Any) -> Any:
    """The optimizer of a library that makes the same steps."""
    kept: dict[str, Any] = {"rank": 4, "update_proj_gap": 2, "scale": 1.0, "proj_type": "std"}
    adam: dict[str, Any] = {"lr": 0.01, "eps": 1e-8}
    if name.startswith("apollo"):
        kind = {"proj": "svd", "scale_type": "tensor"} if "svd" in name else {"proj": "random", "scale_type": "channel"}
        return APOLLOAdamW(groups(model, **kept, **kind), **adam)
    if "adafactor" in name:
        return GaLoreAdafactor(groups(model, **kept), lr=0.01, scale_parameter=False, relative_step=False)
    kept["proj_type"] = "full" if "full" in name else "std"
    return GaLoreAdamW(groups(model, **kept), **adam, no_deprecation_warning=True)


@pytest.mark.parametrize("name", ["galore", "galore, full", "galore, adafactor", "galore, at once"])
def test_galores_steps_are_galore_torchs(name: str) -> None:
    ours, theirs = learned(as_asked(**KINDS[name])[1]), learned(partial(librarys, name))
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert equal(ours[1], theirs[1], 1e-5)
    assert ours[0][-1] < ours[0][0]


@pytest.mark.parametrize("name", ["apollo", "apollo, svd"])
def test_apollos_steps_are_apollo_torchs(name: str) -> None:
    """Its random projections are seeded by the place of each weight among all: here in the same order."""
    make = as_asked(**KINDS[name])[1]
    ours = learned(make)

    def in_our_order(model: Any) -> Any:
        theirs = librarys(name, model)
        for mine, group in zip(make(model).param_groups, sorted_as(make(model), theirs), strict=True):
            group["params"] = mine["params"]
        return type(theirs)(theirs.param_groups, lr=0.01, eps=1e-8)

    theirs = learned(in_our_order)
    assert ours[0] == pytest.approx(theirs[0], abs=1e-5)
    assert equal(ours[1], theirs[1], 1e-5)


def sorted_as(ours: Any, theirs: Any) -> list[dict[str, Any]]:
    """The groups of `theirs` in the order of `ours`."""
    first = [{id(weight) for weight in group["params"]} for group in ours.param_groups]
    theirs.param_groups.sort(key=lambda group: first.index({id(weight) for weight in group["params"]}))
    return list(theirs.param_groups)


def test_muons_steps_are_torchs_for_inner_weights_and_adamws_for_the_others() -> None:
    class Two:
        def __init__(self, model: Any) -> None:
            outer, inner, norms = groups(model)
            muon = torch.optim.Muon([inner], lr=0.01, momentum=0.9, adjust_lr_fn="match_rms_adamw")
            self.parts = [muon, torch.optim.AdamW([outer, norms], lr=0.01, eps=1e-8)]

        def step(self) -> None:
            [part.step() for part in self.parts]

        def zero_grad(self) -> None:
            [part.zero_grad() for part in self.parts]

    ours, theirs = learned(as_asked(**KINDS["muon"])[1]), learned(Two)
    assert ours[0] == theirs[0]
    assert equal(ours[1], theirs[1])


@pytest.mark.parametrize("name", KINDS)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_never_stopped(name: str) -> None:
    make = as_asked(**KINDS[name])[1]
    whole, model = learned(make)
    stopped = tiny_model()
    optimizer = make(stopped)
    first = list(losses_of(stopped, optimizer, range(3)))
    resumed = tiny_model()
    resumed.load_state_dict(saved(stopped))
    again = make(resumed)
    again.load_state_dict(saved(optimizer))
    assert first + list(losses_of(resumed, again, range(3, STEPS))) == whole
    assert equal(model, resumed)


def test_a_projection_that_changes_little_is_kept_for_longer() -> None:
    def gaps(**given: Any) -> set[int]:
        model = tiny_model()
        optimizer = as_asked(**LAZY | given)[1](model)
        list(losses_of(model, optimizer, range(STEPS)))
        return {state["projector"].update_proj_gap for state in optimizer.state.values() if "projector" in state}

    assert gaps(galore_cos_threshold=1) == {1}
    assert gaps(galore_cos_threshold=-1) == {8}  # doubled at the steps 1, 2 and 4, and not known before
    assert gaps(galore_cos_threshold=-1, galore_queue_size=2) == {4}
    assert gaps(galore_cos_threshold=-1, galore_gamma_proj=3) == {9}


def test_with_a_threshold_that_nothing_reaches_q_galore_is_galore() -> None:
    lazy = learned(as_asked(**GALORE | {"galore_quantization": True, "galore_cos_threshold": 1})[1])
    assert lazy[0] == learned(as_asked(**GALORE)[1])[0]


@pytest.mark.parametrize("bits", [1, 3, 4, 5, 8])
@pytest.mark.parametrize("group_size", [7, 32])
def test_a_quantised_matrix_is_within_half_a_step(bits: int, group_size: int) -> None:
    matrix = torch.randn(5, 9, generator=torch.Generator().manual_seed(0))
    kept = quantised(matrix, bits, group_size)
    assert kept["codes"].dtype == torch.uint8
    assert len(kept["codes"]) <= -(-len(kept["low"]) * group_size // (2 if bits <= 4 else 1))
    assert (restored(kept, bits) - matrix).abs().max() <= kept["step"].max() / 2 + 1e-6


def test_a_quantised_projection_is_what_is_kept() -> None:
    settings: dict[str, Any] = {"rank": 4, "update_proj_gap": 1, "scale": 1.0, "proj_type": "std"}
    lazy = LazyProjector(cos_threshold=0.4, gamma_proj=2, queue_size=5, bits=4, group_size=16, **settings)
    lazy.project(torch.randn(32, 16), 0)
    assert lazy.stored is not None
    assert lazy.stored[0]["codes"].numel() == 4 * 16 // 2
    assert lazy.ortho_matrix.shape == (4, 16)


def test_schedule_free_steps_are_the_librarys_with_a_warm_up_of_whole_steps() -> None:
    make = as_asked(optim="schedule_free_adamw", warmup_ratio=0.5)[1]

    def training(make: Any) -> Any:
        def made(model: Any) -> Any:
            optimizer = make(model)
            optimizer.train()
            return optimizer

        return made

    def theirs(model: Any) -> Any:
        outer, inner, norms = groups(model)
        decayed = {"params": [*outer["params"], *inner["params"]], "weight_decay": 0.1}
        return schedulefree.AdamWScheduleFree([decayed, norms], lr=0.01, warmup_steps=4)

    assert learned(training(make))[0] == learned(training(theirs))[0]


@pytest.mark.parametrize(
    ("given", "shape", "expected"),
    [
        ({}, (100, 10), 8000),
        ({"optim": "adamw_8bit"}, (100, 10), 2000),
        ({"optim": "adafactor"}, (100, 10), 440),
        ({"optim": "adafactor"}, (10,), 40),
        ({"optim": "sgd"}, (100, 10), 0),
        ({"optim": "sgd", "optim_args": {"momentum": 0.5}}, (100, 10), 4000),
        ({"optim": "paged_lion_8bit"}, (100, 10), 1000),
        ({"optim": "ademamix"}, (100, 10), 12000),
        ({"optim": "muon"}, (100, 10), 4000),
        ({"optim": "muon"}, (10,), 80),
        ({"optim": "schedule_free_sgd"}, (100, 10), 4000),
        (GALORE, (100, 10), 4 * (800 + 40)),
        (GALORE | {"galore_quantization": True, "galore_proj_quant": True}, (100, 10), 4 * (800 + 5)),
        (GALORE, (100, 4), 3200),
        ({"optim": "apollo_adamw", "optim_args": {"rank": 4}}, (100, 10), 4 * (800 + 40)),
        ({"lisa_activated_layers": 2}, (100, 10), 8000),
    ],
    ids=str,
)
def test_what_is_kept_of_a_weight(given: dict[str, Any], shape: tuple[int, ...], expected: int) -> None:
    params = SftParams(train_type="full", **given)
    assert optimizer_of(params).state_bytes(params, shape) == expected


@pytest.mark.parametrize("name", ["galore", "muon", "apollo"])
def test_what_is_kept_is_what_was_foretold(name: str) -> None:
    params, make = as_asked(**KINDS[name])
    model = tiny_model()
    optimizer = make(model)
    list(losses_of(model, optimizer, range(1)))
    layer = model.model.layers[0].mlp.up_proj.weight
    kept = saved(optimizer)["state"]
    index = next(
        i for i, weight in enumerate(w for g in optimizer.param_groups for w in g["params"]) if weight is layer
    )
    assert sum(tensor.numel() * 4 for tensor in tensors(kept[index]) if tensor.ndim) == optimizer_of(
        params
    ).state_bytes(params, layer.shape)


def tensors(held: Any) -> list[torch.Tensor]:
    if isinstance(held, dict):
        return [tensor for value in held.values() for tensor in tensors(value)]
    return [held] if isinstance(held, torch.Tensor) else []


def test_its_learning_rate_follows_a_schedule_after_a_checkpoint_too() -> None:
    """Muon's two optimizers share their groups."""
    model = tiny_model()
    optimizer = as_asked(**KINDS["muon"])[1](model)
    list(losses_of(model, optimizer, range(1)))
    optimizer.load_state_dict(saved(optimizer))
    for group in optimizer.param_groups:
        group["lr"] = 0
    before = [weight.clone() for weight in model.parameters()]
    list(losses_of(model, optimizer, range(1)))
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    assert ARGUMENTS.learning_rate == 0.01
