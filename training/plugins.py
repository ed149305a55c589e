"""Optimizers, losses, metrics and data sets of one's own: Python files that `custom_register_path` names register them.

    from training.plugins import loss, metric, optimizer

    @optimizer("mine")
    def make(model, arguments):
        return torch.optim.SGD(model.parameters(), lr=arguments.learning_rate)

    @loss("focal")
    def focal(logits, labels):
        losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        return (1 - torch.exp(-losses)) ** 2 * losses

    @metric("exact")
    def exact(answers, references):
        return sum(map(str.__eq__, answers, references)) / len(answers)

    DATASETS = {"greetings": lambda: [{"query": "Hi", "response": "Hello"}]}

`--optimizer`, `--loss_type`, `--metric` and `--dataset` choose by these names. Outside of a training, the decorators
leave a function as it is.
"""

import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, TypeVar

from engines.errors import InvalidRequest, TuneserveError

F = TypeVar("F", bound=Callable[..., Any])
Kind = Literal["optimizer", "loss", "metric"]
PARAMETERS: Mapping[Kind, str] = {"optimizer": "optimizer", "loss": "loss_type", "metric": "metric"}
"""What is registered -> the parameter that chooses one."""


def optimizer(name: str) -> Callable[[F], F]:
    """Registers a function of the model, and of transformers' TrainingArguments, that returns a torch.optim.Optimizer
    for the weights that learn (`requires_grad`). What it keeps is to be in its `state_dict`, for checkpoints."""
    return _registering("optimizer", name)


def loss(name: str) -> Callable[[F], F]:
    """Registers a function of logits (tokens, vocabulary), in float32, and labels (tokens,), that returns what each
    token loses: (tokens,). They are weighed by `loss_scale`, and their mean is what is learned, in sft and pt."""
    return _registering("loss", name)


def metric(name: str) -> Callable[[F], F]:
    """Registers a function of the texts that the model wrote in an evaluation and those in the data, two lists of str,
    that returns a number: told as `eval_NAME`, with predict_with_generate."""
    return _registering("metric", name)


@dataclass(frozen=True, slots=True)
class Plugin:
    """A function that was registered. What goes wrong in it is told with its file and line."""

    kind: Kind
    name: str
    function: Callable[..., Any]
    file: Path

    def __call__(self, *given: Any) -> Any:
        """Raises InvalidRequest."""
        try:
            return self.function(*given)
        except TuneserveError:
            raise
        except Exception as error:
            if isinstance(error, MemoryError) or "memory" in str(error):  # which has words of its own
                raise
            raise self.refused(_told(error, self.file)) from error

    def number(self, *given: Any) -> float:
        """What a metric returns. Raises InvalidRequest."""
        measured = self(*given)
        try:
            return float(measured)
        except (TypeError, ValueError):
            raise self.refused(f"it must return a number, not {measured!r}") from None

    def refused(self, why: str) -> InvalidRequest:
        return InvalidRequest(f"the {self.kind} {self.name!r}: {why}", param=PARAMETERS[self.kind])


@dataclass(slots=True)
class Plugins:
    """All that some files register."""

    functions: dict[tuple[Kind, str], Plugin] = field(default_factory=dict)
    datasets: dict[str, Callable[[], Any]] = field(default_factory=dict)

    def find(self, kind: Kind, name: str, *, built_in: tuple[str, ...] = ()) -> Plugin:
        """Raises InvalidRequest where none has that name. `built_in`: names that the caller would have known."""
        if (kind, name) in self.functions:
            return self.functions[kind, name]
        names = [*built_in, *(other for of_kind, other in self.functions if of_kind == kind)]
        there = f"choose {', '.join(names)}" if names else "none is"
        message = f"no {kind} {name!r} is registered by a file of custom_register_path: {there}"
        raise InvalidRequest(message, param=PARAMETERS[kind])


def load(paths: tuple[str, ...]) -> Plugins:
    """What the files register, or the Python files of folders in the order of their names. Each is run, once unless it
    changes. Raises InvalidRequest."""
    files = [file for path in paths for file in _files(Path(path).expanduser())]
    found = Plugins()
    for file in files:
        one = _run(file, file.stat().st_mtime_ns, file.stat().st_size)
        for kind, name in one.functions.keys() & found.functions.keys():
            raise _broken(f"{file.name} registers a {kind} {name!r}, as {found.functions[kind, name].file.name} does")
        found.functions.update(one.functions)
        found.datasets.update(one.datasets)
    return found


# ---- running files

_collecting: list[tuple[Kind, str, Callable[..., Any]]] = []
"""What the file that is run has registered."""


def _registering(kind: Kind, name: str) -> Callable[[F], F]:
    def register(function: F) -> F:
        _collecting.append((kind, name, function))
        return function

    return register


def _files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.py")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise _broken(f"there is no file {path.name!r}, or no Python file in it")
    return files


@lru_cache(maxsize=64)
def _run(file: Path, *_changed: int) -> Plugins:
    module = ModuleType(f"registered_{file.stem}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses and pickles look
    _collecting.clear()
    try:
        exec(compile(file.read_bytes(), str(file), "exec"), vars(module))  # noqa: S102  # the parameter is for that
    except Exception as error:  # it is the user's code
        raise _broken(_told(error, file)) from error
    functions = {(kind, name): Plugin(kind, name, function, file) for kind, name, function in _collecting}
    datasets = getattr(module, "DATASETS", {})
    if not isinstance(datasets, dict) or not all(map(callable, datasets.values())):
        raise _broken(f"DATASETS of {file.name} must be a dict from names to functions that return rows")
    return Plugins(functions, {str(name): function for name, function in datasets.items()})


def _broken(why: str) -> InvalidRequest:
    return InvalidRequest(why, param="custom_register_path")


def _told(error: Exception, file: Path) -> str:
    """An error in the user's code, with the last line of the file that it came by."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    where = f"{file.name}, line {line}" if line else file.name
    return f"{where}: {type(error).__name__}: {error}"
