"""What is seen of a job while it runs."""

import io
import json

import pytest

from server.commands.progress import JsonProgress, TerminalProgress, progress_on
from training.folder import EVENT, Checkpoint, Evaluation, Event, Message, Started, Step


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")


def step(number: int, time: float = 0.0, **metrics: float) -> Step:
    return Step(time=time, step=number, total_steps=40, epoch=number / 20, metrics=metrics or {"loss": 1.23456})


EVENTS: list[Event] = [
    Message(time=0, message="Loading."),
    Started(time=0, total_steps=40, rows=20),
    step(10, 5.0),
    Evaluation(time=6, step=10, metrics={"loss": 2.0, "token_accuracy": 0.5}),
    Checkpoint(time=7, step=10, path="checkpoint-10"),
    Message(time=7, level="warn", message="One row was left out."),
    step(20, 15.0),
]


def lines_that_stay(text: str) -> list[str]:
    """What a terminal shows in the end: of each line, what was written after the last return."""
    return [line.rpartition("\r")[2] for line in text.replace("\x1b[K", "").split("\n")]


def test_a_terminal_shows_one_moving_line_below_what_stays() -> None:
    terminal = Terminal()
    progress = progress_on(terminal)
    for event in EVENTS:
        progress.show(event)
    progress.close()
    assert lines_that_stay(terminal.getvalue()) == [
        "Loading.",
        "Training: 20 rows, 40 steps.",
        "Step 10, validation: loss 2, token_accuracy 0.5",
        "Step 10: wrote checkpoint-10.",
        "warn: One row was left out.",
        "[##########..........] 20/40, epoch 1.00, 0:00:20 left, loss 1.235",
        "",
    ]


def test_a_line_is_never_wider_than_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    terminal = Terminal()
    TerminalProgress(terminal).show(step(10, **{f"metric_{i}": 0.5 for i in range(9)}))
    assert len(lines_that_stay(terminal.getvalue())[0]) == 29


def test_how_long_the_rest_takes_is_told_from_the_second_step_on() -> None:
    terminal = Terminal()
    progress = TerminalProgress(terminal)
    progress.show(step(10, 100.0))
    assert "left" not in terminal.getvalue()
    progress.show(step(20, 3700.0))
    assert "2:00:00 left" in terminal.getvalue()


def test_where_nobody_looks_every_event_is_a_line_of_json() -> None:
    stream = io.StringIO()
    progress = progress_on(stream)
    assert isinstance(progress, JsonProgress)
    for event in EVENTS:
        progress.show(event)
    progress.say("Done.")
    progress.close()
    *lines, last = stream.getvalue().splitlines()
    assert [EVENT.validate_json(line) for line in lines] == EVENTS
    assert json.loads(last)["message"] == "Done."
