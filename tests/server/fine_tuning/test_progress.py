"""What a training reports, in OpenAI's words."""

import pytest

from server.fine_tuning.progress import Told, checkpoint_metrics, result_csv, tell
from training.folder import Checkpoint, Evaluation, Event, Message, Started, Step


def step(number: int, **metrics: float) -> Step:
    return Step(time=0, step=number, total_steps=4, epoch=number / 2, metrics=metrics)


def evaluation(number: int, **metrics: float) -> Evaluation:
    return Evaluation(time=0, step=number, metrics=metrics)


EVENTS: list[Event] = [
    Started(time=0, total_steps=4, rows=2),
    step(1, loss=2.0, token_accuracy=0.25, learning_rate=1e-3),
    step(2, loss=1.5, token_accuracy=0.5),
    evaluation(2, loss=1.75, token_accuracy=0.375),
    Checkpoint(time=0, step=2, path="checkpoint-2"),
    step(3, loss=9.0),
    step(3, loss=1.25, token_accuracy=0.75),  # done again, after an interruption
]


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (Message(time=0, level="warn", message="Mind"), Told("warn", "Mind")),
        (EVENTS[0], Told("info", "Fine-tuning job started")),
        (
            step(2, loss=1.5, token_accuracy=0.5, grad_norm=1.0),
            Told(
                "info",
                "Step 2/4: training loss=1.50",
                "metrics",
                {"step": 2, "total_steps": 4, "train_loss": 1.5, "train_mean_token_accuracy": 0.5, "grad_norm": 1.0},
            ),
        ),
        (step(2), Told("info", "Step 2/4", "metrics", {"step": 2, "total_steps": 4})),
        (
            evaluation(2, loss=1.75, token_accuracy=0.375),
            Told(
                "info",
                "Step 2: validation loss=1.75",
                "metrics",
                {"step": 2, "valid_loss": 1.75, "valid_mean_token_accuracy": 0.375},
            ),
        ),
        (EVENTS[4], Told("info", "Checkpoint created at step 2")),
    ],
)
def test_events_are_told_as_openai_tells_them(event: Event, told: Told) -> None:
    assert tell(event) == told


def test_rewards_are_told_in_openais_words() -> None:
    told = {"reward": 0.5, "rewards/city/mean": 0.5, "completions/mean_length": 9.0}
    events: list[Event] = [step(1, loss=0.0, **told), evaluation(1, loss=-0.75, **told | {"reward": 0.75})]
    trained, evaluated = map(tell, events)
    assert trained.message == "Step 1/4, train mean reward=0.50"
    assert trained.data["train_mean_reward"] == 0.5 and trained.data["completion_tokens_mean"] == 9
    graders = [{"name": "city", "train_reward_mean": 0.5}]
    assert trained.data["scores"] == {"train_reward_mean": 0.5, "graders": graders}
    assert evaluated.message == "Step 1, full validation mean reward=0.75"
    assert evaluated.data["full_valid_mean_reward"] == 0.75
    assert evaluated.data["scores"]["valid_reward_mean"] == 0.75
    metrics = checkpoint_metrics(events, 1)
    assert metrics["train_mean_reward"] == 0.5 and metrics["full_valid_mean_reward"] == 0.75
    head = (
        "step,train_loss,train_reward_mean,valid_reward_mean,train_completion_tokens_mean,valid_completion_tokens_mean"
    )
    assert result_csv(events) == f"{head}\n1,0.0,0.5,0.75,9.0,9.0\n"


def test_of_dpo_the_accuracy_is_that_of_the_preferences() -> None:
    assert tell(step(1, **{"rewards/accuracies": 0.5})).data["train_mean_token_accuracy"] == 0.5


def test_a_checkpoint_has_the_metrics_of_its_step() -> None:
    assert checkpoint_metrics(EVENTS, 2) == {
        "step": 2,
        "train_loss": 1.5,
        "train_mean_token_accuracy": 0.5,
        "valid_loss": 1.75,
        "valid_mean_token_accuracy": 0.375,
        "full_valid_loss": 1.75,
        "full_valid_mean_token_accuracy": 0.375,
    }


def test_the_result_file_has_a_line_for_each_step() -> None:
    assert result_csv(EVENTS).splitlines() == [
        "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy",
        "1,2.0,0.25,,",
        "2,1.5,0.5,1.75,0.375",
        "3,1.25,0.75,,",
    ]
