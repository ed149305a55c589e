"""What a job remembers of the fine-tuning request that it came from: the column `fine_tuning` of its row."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from training.auto import Hyperparameters
from training.methods import BY_OPENAI_NAME

UNSAID = {"reasoning_effort": "default"}
"""What stands for a hyperparameter that was not given, where that is not `"auto"`."""


class FineTuning(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    """The name in the API of the model that training begins with."""
    from_adapter: bool = False
    """Whether that is an adapter, of which the job has a copy."""
    brings_template: bool = False
    """Whether that adapter has a chat template of its own."""
    name: str
    """What the model that comes out is called once it is published."""
    owner: str
    training_file: str
    validation_file: str | None
    method: str
    """OpenAI's name of the method."""
    wanted: Hyperparameters
    chosen: Hyperparameters | None = None
    """With a number for each `"auto"`, once the data has been looked at."""
    grader: dict[str, Any] | None = None
    """What judges answers, in methods that learn from rewards."""
    response_format: dict[str, Any] | None = None
    """What answers are held to, in the same methods."""
    template_kwargs: dict[str, Any] | None = None
    """What the chat template is told of the reasoning effort, where the client said one."""
    suffix: str | None
    seed: int
    parameters: dict[str, Any]
    result_files: tuple[str, ...] = ()

    @property
    def hyperparameters(self) -> dict[str, Any]:
        """As they are told: a number or `"auto"` for each."""
        told = self.chosen or self.wanted
        names = ["batch_size", "learning_rate_multiplier", "n_epochs", *BY_OPENAI_NAME[self.method].hyperparameters]
        return {name: UNSAID.get(name, "auto") if (value := getattr(told, name)) is None else value for name in names}

    @property
    def method_to_wire(self) -> dict[str, Any]:
        """OpenAI's `method`."""
        of_answers = {"grader": self.grader, "response_format": self.response_format}
        given = {name: value for name, value in of_answers.items() if value is not None}
        return {"type": self.method, self.method: {**given, "hyperparameters": self.hyperparameters}}
