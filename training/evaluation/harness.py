"""lm-evaluation-harness (EleutherAI, MIT): its tasks and scores, over a model of ours."""

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from engines.errors import InvalidRequest, UnsupportedModel
from training.evaluation.asking import Model, ToWrite
from training.evaluation.tasks import TaskFile

MAX_TOKENS = 256
"""Tokens of an answer where the task does not say, as the harness has it."""


def require_harness() -> None:
    """Raises UnsupportedModel where it is not installed. Does not import it."""
    if find_spec("lm_eval") is None:
        message = "lm-evaluation-harness is not installed here: pip install 'tuneserve[eval]' installs it"
        raise UnsupportedModel(message, param="eval_dataset")


def find_tasks(names: Sequence[str], files: Sequence[TaskFile]) -> Any:
    """The harness's TaskManager, which knows these tasks, for `measure`. Raises InvalidRequest for a task that is not
    there, or whose data cannot be had."""
    require_harness()
    manager = _manager(names, files)
    if unknown := [name for name in names if name not in manager.all_tasks]:
        raise InvalidRequest(f"there is no benchmark {unknown[0]!r}, and no such file", param="eval_dataset")
    for name in (*names, *(file.config for file in files if isinstance(file.config, str))):
        try:
            manager.load(name)
        except Exception as error:  # whatever its file, its code or the hub come to
            reason = next(iter(str(error).splitlines()), "")
            message = f"the benchmark {name!r} cannot be had: {type(error).__name__}: {reason}"
            raise InvalidRequest(message, param="eval_dataset") from error
    return manager


def _manager(names: Sequence[str], files: Sequence[TaskFile]) -> Any:
    """It reads some 14,000 files to know its own tasks, and all in YAML below each folder: rows of a file need none."""
    from lm_eval.tasks import TaskManager

    folders = sorted({str(file.folder) for file in files if isinstance(file.config, str)})
    return TaskManager(include_path=folders or None, include_defaults=bool(names or folders))


def measure(
    model: Model,
    names: Sequence[str],
    files: Sequence[TaskFile],
    manager: Any,
    *,
    limit: int | None,
    few_shot: int | None,
    chat: bool,
    temperature: float,
    seed: int,
) -> dict[str, Any]:
    """What the harness finds: its `results`, `configs`, `versions`, `n-samples`, and `samples` by task.

    names: tasks that the harness brings; files: tasks of users'; manager: of `find_tasks`
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    from lm_eval.evaluator import simple_evaluate

    found: dict[str, Any] = simple_evaluate(
        model=_model_class()(model, temperature),
        tasks=[*names, *(file.config for file in files)],
        num_fewshot=few_shot,
        limit=limit,
        apply_chat_template=chat,
        fewshot_as_multiturn=chat,
        task_manager=manager,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=seed,
        fewshot_random_seed=seed,
    )
    return found


def _model_class() -> Any:
    """The harness's interface to a model, made when the harness is there."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class HarnessModel(TemplateLM):  # type: ignore[misc]  # its base is untyped
        def __init__(self, model: Model, temperature: float) -> None:
            super().__init__()
            self._model = model
            self._temperature = temperature

        @property
        def tokenizer_name(self) -> str:
            return ""

        @property
        def eot_token_id(self) -> int:
            return self._model.end_token_id

        @property
        def prefix_token_id(self) -> int:
            return int(getattr(self._model, "prefix_token_id", self._model.end_token_id))

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return self._model.encode(string, add_special_tokens=add_special_tokens)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return self._model.chat(chat_history, add_generation_prompt=add_generation_prompt)

        def chat_template(self, chat_template: bool | str = False) -> str:
            return ""

        def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
            texts = []
            for _, context, continuation in requests:
                ids = [*context, *continuation][-self._model.max_length :]
                texts.append((ids, min(len(continuation), len(ids) - 1)))
            return [(each.logprob, each.greedy) for each in self._model.score(texts)]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            windows, owners = [], []
            for number, request in enumerate(requests):
                rolling = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self._model.max_length - 1,
                    context_len=1,
                )
                for window in map(make_disjoint_window, rolling):
                    windows.append((None, *window))
                    owners.append(number)
            sums = [0.0] * len(requests)
            for owner, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
                sums[owner] += logprob
            return sums

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            return self._model.write([self._to_write(*request.args) for request in requests])

        def _to_write(self, context: str, given: Mapping[str, Any]) -> ToWrite:
            until = given.get("until") or []
            stops = [until] if isinstance(until, str) else list(until)
            room = int(given.get("max_gen_toks") or given.get("max_new_tokens") or MAX_TOKENS)
            ids = self.tok_encode(context)[-(self._model.max_length - room) :]
            end = self._model.end_text()
            return ToWrite(
                prompt_ids=ids,
                stops=[*stops, *([end] if end else [])],
                max_tokens=room,
                sampling=_sampling(given, self._temperature),
            )

    return HarnessModel


def _sampling(given: Mapping[str, Any], temperature: float) -> dict[str, Any]:
    """What the task says, where it samples at all; else the temperature that was asked for."""
    if not given.get("do_sample", False):
        return {"temperature": temperature}
    named = {name: given[name] for name in ("top_p", "top_k") if name in given}
    return {"temperature": float(given.get("temperature", temperature)), **named}
