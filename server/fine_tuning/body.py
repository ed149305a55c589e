"""What creates a fine-tuning job, as it arrives: OpenAI's fields, and `parameters` for everything that it has none
for."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from engines.errors import InvalidRequest, UnsupportedParameter
from server.http.body import Items, Metadata, RequestBody, StrictBody
from server.http.field_limits import Json, Options
from server.http.validation import MISSING, misplaced
from training.auto import Hyperparameters
from training.methods import BY_OPENAI_NAME
from training.params.graders import Grader, OneGrader
from training.params.grpo import MOST_GENERATIONS
from training.params.response_format import checked_format

NonEmpty = Annotated[str, Field(min_length=1, max_length=200)]
FileId = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$", max_length=64)]
Auto = Literal["auto"]
MOST_SAMPLES, MOST_EPOCHS = 256, 50
MOST_BETA = 20
"""SimPO's is 2 to 10 where DPO's is 0.1."""
MOST_WEIGHT = 1000
SEEDS = 2**31
MethodName = Literal["supervised", "dpo", "reinforcement", "kto", "orpo", "simpo", "cpo", "rm", "ppo"]
CHOICES = " or ".join(map(repr, BY_OPENAI_NAME))


class SupervisedHyperparameters(StrictBody):
    batch_size: Auto | Annotated[int, Field(ge=1, le=MOST_SAMPLES)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=10_000)] = "auto"
    """The learning rate, in units of 1e-4."""
    n_epochs: Auto | Annotated[int, Field(ge=1, le=MOST_EPOCHS)] = "auto"


class DpoHyperparameters(SupervisedHyperparameters):
    beta: Auto | Annotated[float, Field(gt=0, le=2)] = "auto"


class PreferenceHyperparameters(SupervisedHyperparameters):
    """Those of methods beyond OpenAI's."""

    beta: Auto | Annotated[float, Field(gt=0, le=MOST_BETA)] = "auto"


class KtoHyperparameters(PreferenceHyperparameters):
    batch_size: Auto | Annotated[int, Field(ge=2, le=MOST_SAMPLES)] = "auto"
    """Answers of a batch are compared with one another."""
    desirable_weight: Auto | Annotated[float, Field(ge=0, le=MOST_WEIGHT)] = "auto"
    undesirable_weight: Auto | Annotated[float, Field(ge=0, le=MOST_WEIGHT)] = "auto"


class Supervised(StrictBody):
    hyperparameters: SupervisedHyperparameters | None = None


class Dpo(StrictBody):
    hyperparameters: DpoHyperparameters | None = None


class Preference(StrictBody):
    hyperparameters: PreferenceHyperparameters | None = None


class Kto(StrictBody):
    hyperparameters: KtoHyperparameters | None = None


class ReinforcementHyperparameters(SupervisedHyperparameters):
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"
    compute_multiplier: Auto | Annotated[float, Field(gt=0.00001, le=10)] = "auto"
    """Answers to each prompt, in units of 8."""
    eval_interval: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Steps between two evaluations."""
    eval_samples: Auto | Annotated[int, Field(ge=1, le=MOST_GENERATIONS)] = "auto"
    """Answers to each prompt in an evaluation."""


class Reinforcement(StrictBody):
    grader: Grader
    """What judges the model's answers."""
    hyperparameters: ReinforcementHyperparameters | None = None
    response_format: Annotated[Json, AfterValidator(checked_format)] = None
    """What the answers are held to."""


class MethodBody(StrictBody):
    """How the model is taught: `type`, and beside it what belongs to that type."""

    type: MethodName
    supervised: Supervised | None = None
    dpo: Dpo | None = None
    reinforcement: Reinforcement | None = None
    orpo: Preference | None = None
    simpo: Preference | None = None
    cpo: Preference | None = None
    kto: Kto | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What is given beside the type, by the name of the type that it belongs to."""
        names = (name for name in type(self).model_fields if name != "type")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


class CreateFineTuningJob(RequestBody):
    model: NonEmpty
    """Name of the served base model, or of an adapter of it that training goes on with, such as an earlier job's
    model."""
    training_file: FileId
    """Id of an uploaded file."""
    validation_file: FileId | None = None
    method: MethodBody | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    """Hyperparameters of the method `supervised`, where `method` names none. OpenAI calls this place deprecated."""
    suffix: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", max_length=64)] | None = None
    """Part of the name of the model that comes out: 1 to 64 letters, digits and ._-"""
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    metadata: Metadata | None = None
    integrations: Annotated[Items[Json], Field(max_length=16)] | None = None
    parameters: Options = Field(default_factory=dict)
    """Any parameter of the command line's `sft` or `rlhf` that the server does not choose itself."""

    @model_validator(mode="after")
    def _one_place_for_hyperparameters(self) -> Self:
        """What belongs to another method than the one that is asked for would be ignored."""
        name = self.method_name
        for other in self.method.settings if self.method else ():
            if other != name:
                raise misplaced(f"method.{other}", f"it was given, and the method's type is {name!r}")
        if self.hyperparameters and (name != "supervised" or (self.method and self.method.supervised)):
            raise misplaced("hyperparameters", "give them in the method of that type alone")
        return self

    def check_built(self) -> None:
        """Raises InvalidRequest for what is missing, and UnsupportedParameter for what OpenAI's API has, or ours is to
        have, and this version has not."""
        name = self.method_name
        if name not in BY_OPENAI_NAME:
            message = f"The method {name!r} is not supported in this version. Choose {CHOICES}."
            raise UnsupportedParameter(message, param="method.type")
        if self.integrations:
            raise UnsupportedParameter("integrations are not supported: leave them out.", param="integrations")
        if name == "reinforcement" and self.grader is None:
            place = "method.reinforcement"
            raise InvalidRequest(f"Missing required parameter: {place!r}.", param=place, code=MISSING)
        if self.method is not None and self.method.reinforcement is not None:
            self._check_reinforcement(self.method.reinforcement)

    def _check_reinforcement(self, method: Reinforcement) -> None:
        given = method.hyperparameters or ReinforcementHyperparameters()
        reasons = {
            "hyperparameters.eval_samples": given.eval_samples != "auto"
            and self.validation_file is None
            and "it needs a validation_file",
            "hyperparameters.reasoning_effort": given.reasoning_effort != "default"
            and "chat_template_kwargs" in self.parameters
            and "parameters.chat_template_kwargs says what the template is told: give one of the two",
            "hyperparameters.eval_interval": given.eval_interval != "auto"
            and self.validation_file is None
            and "it needs a validation_file",
            "hyperparameters.compute_multiplier": given.compute_multiplier != "auto"
            and "num_generations" in self.parameters
            and "parameters.num_generations means the same: give one of the two",
        }
        for name, reason in reasons.items():
            if reason:
                param = f"method.reinforcement.{name}"
                raise UnsupportedParameter(f"{param} is not supported: {reason}.", param=param)

    @property
    def method_name(self) -> MethodName:
        return self.method.type if self.method else "supervised"

    @property
    def wanted(self) -> Hyperparameters:
        """The hyperparameters that are given as numbers."""
        of_method: Supervised | Dpo | Preference | Kto | Reinforcement | None = (
            self.method.settings.get(self.method.type) if self.method else None
        )
        given = of_method.hyperparameters if of_method else self.hyperparameters
        numbers = {} if given is None else given.model_dump()
        return Hyperparameters(**{name: value for name, value in numbers.items() if value not in ("auto", "default")})

    @property
    def response_format(self) -> Any:
        return self.method.reinforcement.response_format if self.method and self.method.reinforcement else None

    @property
    def grader(self) -> OneGrader | None:
        return self.method.reinforcement.grader if self.method and self.method.reinforcement else None
