"""How much a model thinks and says, as variables of its chat template: each family of models has its own."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from engines.errors import InvalidRequest
from engines.text.prompt import Conversation, PromptRenderer

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity = Literal["low", "medium", "high"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
"""From the least to the most."""
SWITCHES = ("enable_thinking", "thinking")
"""Variables that are true where the model is to think: of Qwen, GLM and SmolLM; of DeepSeek and Granite."""
BUDGETS: dict[Effort, int] = {"none": 0, "minimal": 512, "low": 1024, "medium": 4096, "high": 16_384}
"""Values of `thinking_budget`, a number of tokens (Seed-OSS); none for more than `high`: as many as it likes."""


@dataclass(frozen=True, slots=True)
class EffortVariables:
    known: frozenset[str]
    """Variables that the template reads, of whatever meaning."""
    taken: tuple[Effort, ...] = EFFORTS
    """Values of `reasoning_effort` that the template does not refuse."""

    def values(self, effort: Effort | None, verbosity: Verbosity | None, budget: int | None) -> dict[str, Any]:
        """The variables that say so much. `budget`: the most tokens of thinking, which wins over the effort's."""
        wanted: dict[str, Any] = {}
        if effort is not None:
            wanted = dict.fromkeys(SWITCHES, effort != "none")
            wanted |= {"reasoning_effort": self._nearest(effort), "thinking_budget": BUDGETS.get(effort)}
        if budget is not None:
            wanted["thinking_budget"] = budget
        wanted["verbosity"] = verbosity
        return {name: value for name, value in wanted.items() if name in self.known and value is not None}

    @property
    def knows_effort(self) -> bool:
        return not self.known.isdisjoint(("reasoning_effort", "thinking_budget", *SWITCHES))

    @property
    def knows_verbosity(self) -> bool:
        return "verbosity" in self.known

    def _nearest(self, effort: Effort) -> Effort | None:
        place = EFFORTS.index(effort)
        return min(self.taken, key=lambda other: abs(EFFORTS.index(other) - place), default=None)


def find_effort_variables(renderer: PromptRenderer) -> EffortVariables:
    known = renderer.variables
    if "reasoning_effort" not in known:
        return EffortVariables(known)
    return EffortVariables(known, tuple(_taken(renderer, EFFORTS)))


def _taken(renderer: PromptRenderer, efforts: Iterable[Effort]) -> Iterable[Effort]:
    """Templates raise exceptions at values that they do not know."""
    probe = [{"role": "user", "content": "tuneserve probe"}]
    for effort in efforts:
        try:
            renderer.render(Conversation(messages=probe, template_kwargs={"reasoning_effort": effort}))
        except InvalidRequest:
            continue
        yield effort
