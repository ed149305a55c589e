"""The interventions of ReFT by pyreft's names, and what each is made of; light. `reft.py` computes them."""

from dataclasses import dataclass

LINEAR = frozenset({"dropout", "act_fn"})


@dataclass(frozen=True, slots=True)
class Intervention:
    """See `reft.Edit`."""

    orthonormal: bool
    constant: bool
    takes_off: bool
    args: frozenset[str]
    """Keys of `reft_args` that it takes."""


INTERVENTIONS = {
    "LoreftIntervention": Intervention(True, False, True, LINEAR),  # h + R^T (f(W h + b) - R h)
    "NoreftIntervention": Intervention(False, False, True, LINEAR | {"add_bias"}),  # the same, with any matrix for R
    "ConsreftIntervention": Intervention(True, True, True, frozenset()),  # h + R^T (b - R h)
    "LobireftIntervention": Intervention(True, True, False, frozenset({"dropout"})),  # h + R^T b
    "DireftIntervention": Intervention(True, False, False, LINEAR),  # h + R^T f(W h + b)
    "NodireftIntervention": Intervention(False, False, False, LINEAR),  # the same, with any matrix for R
}
