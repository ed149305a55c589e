"""Optimizers, losses and metrics of one's own: registered by a file, chosen by name, and told of where they fail."""

import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from engines.errors import InvalidRequest, TuneserveError
from tests.training.jobs import evaluations, losses, make_job
from tests.training.optimizers.steps import tiny_model
from tests.training.optimizers.training import SETTINGS, Training, same
from training import plugins
from training.losses import log_probs
from training.losses.answers import answer_loss
from training.losses.tokens import dft
from training.params.task import TASK
from training.pipelines.registered import check_registered
from training.plugins import load
from training.refusals.supported import refusals
from training.report import Report
from training.run import run

MINE = """
    import torch
    from training.plugins import loss, metric, optimizer

    @optimizer("mine")
    def make(model, arguments):
        return torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad],
                                lr=arguments.learning_rate, eps=arguments.adam_epsilon)

    @loss("plain")
    def plain(logits, labels):
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    @loss("doubled")
    def doubled(logits, labels):
        return 2 * plain(logits, labels)

    @metric("longest")
    def longest(answers, references):
        assert len(answers) == len(references) == 2
        return max(map(len, references))

    @metric("words")
    def words(answers, references):
        return "many"

    @loss("flat")
    def flat(logits, labels):
        return plain(logits, labels).mean()

    @loss("broken")
    def broken(logits, labels):
        return logits.no_such_thing

    DATASETS = {"greetings": lambda: [{"query": "Hi", "response": "Hello"}] * 4}
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    return written(tmp_path / "mine.py", MINE)


@pytest.fixture
def train(tmp_path: Path, tiny: Path, lines: Path) -> Training:
    return Training(tmp_path, tiny, lines)


def written(file: Path, code: str) -> str:
    file.write_text(textwrap.dedent(code))
    return str(file)


def refused(task: str = "sft", **given: Any) -> dict[str, str]:
    return dict(refusals(TASK.validate_python({"task": task, "params": {"model": "m", **given}})))


def test_a_registered_optimizer_changes_the_weights_and_goes_on_exactly(train: Training, mine: str) -> None:
    whole = train.check_resumes_exactly("job", optimizer="mine", custom_register_path=mine)
    assert type(train.trainers[whole.path].optimizer.optimizer) is torch.optim.Adam
    librarys = train("librarys", optim="adamw_torch", weight_decay=0)  # which is Adam
    assert same(whole, librarys)


def test_a_registered_loss_is_learned_and_a_metric_told(train: Training, mine: str) -> None:
    asked: dict[str, Any] = {"custom_register_path": mine, "max_steps": 1, "save_steps": 1, "dataset": "greetings"}
    plain = train(
        "plain", **asked, loss_type="plain", val_dataset=f"{train.data}#2", predict_with_generate=True,
        max_new_tokens=2, metric="longest", metric_for_best_model="longest",
    )  # fmt: skip
    assert losses(plain)[1] == pytest.approx(losses(train("own", **asked))[1], abs=1e-6)
    assert losses(train("doubled", **asked, loss_type="doubled"))[1] == pytest.approx(2 * losses(plain)[1], rel=1e-5)
    assert evaluations(plain)[1]["longest"] > 2
    assert train.trainers[plain.path].state.best_metric == evaluations(plain)[1]["longest"]


@pytest.mark.parametrize(
    ("given", "param", "told"),
    [
        ({"loss_type": "flat"}, "loss_type", "it must return what each of 14 tokens loses, not a tensor of shape ()"),
        ({"loss_type": "broken"}, "loss_type", "the loss 'broken': mine.py, line 33: AttributeError:"),
        ({"loss_type": "no"}, "loss_type", "choose nll, dft, plain, doubled, flat, broken"),
        ({"optimizer": "no"}, "optimizer", "by a file of custom_register_path: choose mine"),
    ],
    ids=str,
)  # fmt: skip
def test_what_goes_wrong_in_it_is_told(
    tmp_path: Path, tiny: Path, mine: str, given: dict[str, Any], param: str, told: str
) -> None:
    one = SETTINGS | {"model": str(tiny), "dataset": "greetings", "custom_register_path": mine, "max_steps": 1}
    job = make_job(tmp_path / "job", "sft", **one | given)
    result = run(job, Report(job))
    assert result is not None and result.error is not None
    assert result.error.param == param
    assert told in result.error.message


def test_a_metric_returns_a_number(mine: str) -> None:
    from training.trainers.answers.generated import _measured

    params = TASK.validate_python({"task": "sft", "params": {"custom_register_path": mine, "metric": "words"}}).training
    assert params is not None
    with pytest.raises(InvalidRequest, match="the metric 'words': it must return a number, not 'many'"):
        _measured(params, ["a"], ["b"])


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("x = 1\ny = x / 0\n", "broken.py, line 2: ZeroDivisionError"),
        ("def f(:\n", "broken.py, line 1: SyntaxError"),
        ("\n\nimport no_such_package\n", "broken.py, line 3: ModuleNotFoundError"),
        ("DATASETS = ['x']\n", "DATASETS of broken.py must be a dict"),
        (
            "from training.plugins import loss\n\ndef f():\n    raise KeyError\n\nf()\n",
            "broken.py, line 4: KeyError",
        ),
    ],
    ids=str,
)
def test_a_file_that_cannot_be_run_is_told_with_its_line(tmp_path: Path, code: str, told: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        load((written(tmp_path / "broken.py", code),))
    assert told in caught.value.message and caught.value.param == "custom_register_path"


def test_the_files_of_a_folder_are_run_and_no_name_is_taken_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        written(tmp_path / f"{name}.py", f"from training.plugins import loss\nloss('{name}')(max)\n")
    assert set(load((str(tmp_path),)).functions) == {("loss", "one"), ("loss", "two")}
    written(tmp_path / "three.py", "from training.plugins import loss\nloss('one')(max)\n")
    with pytest.raises(InvalidRequest, match=r"three.py registers a loss 'one', as one.py does"):
        load((str(tmp_path),))
    with pytest.raises(InvalidRequest, match=r"there is no file 'none.py'"):
        load((str(tmp_path / "none.py"),))


def test_a_file_that_changes_is_run_anew(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    first = load((written(file, "import training.plugins as p\np.loss('first')(max)\n"),))
    assert load((str(file),)).functions == first.functions
    then = load((written(file, "import training.plugins as p\np.loss('another')(max)\n"),))
    assert [name for _, name in then.functions] == ["another"]


def test_a_decorator_leaves_a_function_as_it_is() -> None:
    assert plugins.loss("mine")(max) is max


@pytest.mark.parametrize(
    ("task", "given", "param", "told"),
    [
        ("sft", {"optimizer": "mine"}, "optimizer", "name the file by custom_register_path"),
        ("sft", {"loss_type": "focal"}, "loss_type", "choose nll or dft, or name the file"),
        ("sft", {"metric": "mine", "custom_register_path": "x.py"}, "metric", "set predict_with_generate to true"),
        ("sft", {"metric": "mine", "predict_with_generate": True, "val_dataset": "v"}, "metric", "name the file"),
        ("pt", {"metric": "mine", "custom_register_path": "x.py"}, "metric", "only sft reads it"),
        ("sft", {"optimizer": "mine", "custom_register_path": "x", "optim": "sgd"}, "optim", "not together"),
        ("sft", {"optimizer": "mine", "custom_register_path": "x", "lorap_lr_ratio": 4}, "optimizer", "not together"),
        ("rlhf", {"rlhf_type": "dpo", "metric": "x"}, "metric", "only sft reads it"),
    ],
    ids=str,
)
def test_what_cannot_be_there_is_refused_at_once(task: str, given: dict[str, Any], param: str, told: str) -> None:
    assert told in refused(task, **given)[param]


def test_names_are_looked_up_before_a_model_is_loaded(mine: str) -> None:
    task = TASK.validate_python({"task": "sft", "params": {"metric": "exact", "custom_register_path": mine}})
    assert task.training is not None
    with pytest.raises(TuneserveError, match=r"no metric 'exact' is registered .*: choose longest, words"):
        check_registered(task.training)


@pytest.mark.parametrize("piece", [log_probs.PIECE, 900])
def test_dynamic_fine_tuning_weighs_tokens_by_their_probability(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    """As TRL has it; also where the head is computed in pieces."""
    monkeypatch.setattr(log_probs, "PIECE", piece)
    model = tiny_model()
    ids = torch.randint(2, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    ours = answer_loss(model, {"input_ids": ids, "labels": ids}, None, dft).loss
    ours.backward()
    found = model.lm_head.weight.grad.clone()

    model.zero_grad()
    losses = cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    theirs = (losses * (-losses).exp().detach()).mean()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    assert torch.allclose(found, model.lm_head.weight.grad, atol=1e-6)
