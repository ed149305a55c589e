"""VeRA (Kopiczko et al. 2023, arXiv:2310.11454): random matrices that all layers share, two trained vectors each."""

from typing import ClassVar

from training.tuners.configured import Configured


class Vera(Configured):
    name = "vera"
    quantized_bases = frozenset({"bnb", "hqq"})
    config_class = "VeraConfig"
    fields: ClassVar = {
        "vera_rank": "r",
        "vera_projection_prng_key": "save_projection",
        "vera_dropout": "vera_dropout",
        "vera_d_initial": "d_initial",
    }
    size = "vera_rank"
