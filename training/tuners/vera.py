"""VeRA (Kopiczko et al. 2023, arXiv:2310.11454): random matrices that all layers share, two trained vectors each."""

from typing import Any

from training.params.sft import SftParams
from training.params.tuner import VeraParams
from training.tuners.adapter import WHERE, AdapterTuner, saved_whole, targets


class Vera(AdapterTuner):
    name = "vera"
    reads = WHERE | frozenset(VeraParams.model_fields)

    def shape(self, model: Any) -> dict[str, Any]:
        config = model.peft_config["default"]
        return {
            **super().shape(model),
            "vera_rank": config.r,
            "vera_projection_prng_key": config.save_projection,
            "vera_dropout": config.vera_dropout,
            "vera_d_initial": config.d_initial,
        }

    def config(self, params: SftParams) -> Any:
        from peft import VeraConfig

        return VeraConfig(
            r=params.vera_rank,
            save_projection=params.vera_projection_prng_key,
            vera_dropout=params.vera_dropout,
            d_initial=params.vera_d_initial,
            target_modules=targets(params),
            **saved_whole(params),
        )
