"""What adapters of PEFT's have in common that its configuration makes, with nothing to be done beside."""

from collections.abc import Mapping
from typing import Any, ClassVar

from training.params.sft import SftParams
from training.tuners.adapter import WHERE, AdapterTuner, saved_whole, targets


class Configured(AdapterTuner):
    config_class: ClassVar[str]
    """PEFT's name of the configuration."""
    fields: ClassVar[Mapping[str, str]]
    """Parameter -> the field of that configuration which is made of it, and says it again."""

    def __init_subclass__(cls) -> None:
        cls.reads = WHERE | cls.fields.keys()

    def config(self, params: SftParams) -> Any:
        import peft

        return getattr(peft, self.config_class)(
            **self.settings(params), target_modules=targets(params), **saved_whole(params)
        )

    def settings(self, params: SftParams) -> dict[str, Any]:
        """The fields of the configuration that are its own."""
        return {field: getattr(params, name) for name, field in self.fields.items()}

    def shape(self, model: Any) -> dict[str, Any]:
        config = model.peft_config["default"]
        return super().shape(model) | {name: getattr(config, field) for name, field in self.fields.items()}
