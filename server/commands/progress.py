"""What a person or a program that waits for a job sees of it: one line that moves, or its events as lines of JSON."""

import shutil
import time
from typing import Protocol, TextIO

from server.commands.memory_table import lines_of
from training.folder import Checkpoint, Evaluation, Event, Memory, Message, Started, Step

BAR = 20
"""Characters."""


class Progress(Protocol):
    def show(self, event: Event) -> None: ...

    def say(self, text: str) -> None:
        """A line that stays."""

    def tell(self, memory: Memory) -> None: ...

    def close(self) -> None: ...


def progress_on(stream: TextIO, *, doing: str = "Training") -> Progress:
    return TerminalProgress(stream, doing) if stream.isatty() else JsonProgress(stream)


class JsonProgress:
    """Every event as a line of JSON, for programs and log collectors."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: Event) -> None:
        self._stream.write(event.model_dump_json() + "\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        self.show(Message(time=time.time(), message=text))

    def tell(self, memory: Memory) -> None:
        self._stream.write(memory.model_dump_json() + "\n")
        self._stream.flush()

    def close(self) -> None:
        pass


class TerminalProgress:
    """A line that is written over at every step. What is to stay goes above it."""

    def __init__(self, stream: TextIO, doing: str = "Training") -> None:
        self._stream = stream
        self._doing = doing
        self._line = ""
        self._first: Step | None = None

    def show(self, event: Event) -> None:
        match event:
            case Message():
                self.say(event.message if event.level == "info" else f"{event.level}: {event.message}")
            case Started():
                rows = "" if event.rows is None else f"{event.rows} rows, "
                self.say(f"{self._doing}: {rows}{event.total_steps} steps.")
            case Step():
                self._first = self._first or event
                self._rewrite(f"{_bar(event)}{_remaining(self._first, event)}, {_told(event.metrics)}")
            case Evaluation():
                self.say(f"Step {event.step}, validation: {_told(event.metrics)}")
            case Checkpoint():
                self.say(f"Step {event.step}: wrote {event.path}.")

    def say(self, text: str) -> None:
        line = self._line
        if line:
            self._rewrite("")
        self._stream.write(text + "\n")
        if line:
            self._rewrite(line)
        self._stream.flush()

    def tell(self, memory: Memory) -> None:
        for line in lines_of(memory):
            self.say(line)

    def close(self) -> None:
        """Leave the line as it is."""
        if self._line:
            self._stream.write("\n")
        self._line = ""

    def _rewrite(self, line: str) -> None:
        width = shutil.get_terminal_size().columns - 1
        self._line = line[:width]
        clear_to_end = "\x1b[K"
        self._stream.write("\r" + self._line + clear_to_end)
        self._stream.flush()


def _bar(step: Step) -> str:
    filled = BAR * step.step // max(step.total_steps, 1)
    done = "#" * filled + "." * (BAR - filled)
    return f"[{done}] {step.step}/{step.total_steps}, epoch {step.epoch:.2f}"


def _told(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


def _remaining(first: Step, last: Step) -> str:
    """How long the rest takes at the pace so far, once two steps were seen."""
    steps = last.step - first.step
    if steps <= 0:
        return ""
    seconds = round((last.time - first.time) / steps * (last.total_steps - last.step))
    hours, minutes = divmod(seconds // 60, 60)
    return f", {hours}:{minutes:02}:{seconds % 60:02} left"
