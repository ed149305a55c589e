"""What adapters of PEFT's have in common that its configuration makes, with nothing to be done beside."""

from collections.abc import Mapping
from typing import Any, ClassVar

from engines.errors import InvalidRequest
from training.params.sft import SftParams
from training.tuners.adapter import WHERE, AdapterTuner, conv1d_asked, saved_whole, targets


class Configured(AdapterTuner):
    config_class: ClassVar[str]
    """PEFT's name of the configuration."""
    fields: ClassVar[Mapping[str, str]]
    """Parameter -> the field of that configuration which is made of it, and says it again."""
    conv1d: ClassVar[bool] = True
    """Whether PEFT has it for transformers' `Conv1D`, too, which GPT-2 has in place of linear layers."""

    def __init_subclass__(cls) -> None:
        cls.reads = WHERE | cls.fields.keys()

    def check_config(self, params: SftParams, config: Any) -> None:
        if self.conv1d:
            return
        if (path := conv1d_asked(self.config(params), config)) is not None:
            message = f"{self.name} changes linear layers only, and {path} of {config.model_type} is a Conv1D"
            raise InvalidRequest(f"{message}: choose lora, or name other layers", param="train_type")

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
