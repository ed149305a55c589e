"""The engine process's loop over its socket, with a runner that breaks when told to."""

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from engines.errors import EngineFailure
from engines.process import frames
from engines.process.connection import Closed, Connection
from engines.process.frames import Step
from engines.pt.core import EngineCore
from engines.pt.process import FAILED_STEPS, StepLoop, load
from engines.pt.runner import ModelRunner, Segment, StepResult
from engines.sampler.grammar import GrammarCompiler, GrammarState
from engines.types import PoolingRequest, Structured
from tests.engines.pt.adapters import save_adapter
from tests.engines.pt.conftest import GetRunner, Grammars
from tests.engines.pt.driving import core_of, prompt, request, run, settings
from tests.engines.pt.test_core import Watched
from tests.engines.pt.tiny import CONFIGS, EOS, save


class Paced(Watched):
    """A runner that computes a step only when told to, once `pace` is set."""

    def __init__(self, runner: ModelRunner) -> None:
        super().__init__(runner)
        self.pace: threading.Semaphore | None = None

    def step(self, segments: list[Segment]) -> StepResult:
        if self.pace is not None:
            assert self.pace.acquire(timeout=30)
        return super().step(segments)


class Served:
    """A core behind a socket, in a thread; `end` is the exception that its loop ended with."""

    def __init__(self, runner: ModelRunner, *, grammars: Any = None, **settings: Any) -> None:
        self.runner = Paced(runner)
        self.socket, theirs = socket.socketpair()
        self.socket.settimeout(30)
        self.received: list[frames.FromEngine] = []
        self._splitter = frames.Splitter(frames.decode_from_engine)
        self.core = core_of(self.runner, max_num_seqs=4, grammars=grammars, **settings)
        process = StepLoop(Connection(theirs), self.core, grammars)
        self.end: BaseException | None = None
        self.thread = threading.Thread(target=self._run, args=(process,))
        self.thread.start()

    def _run(self, process: StepLoop) -> None:
        try:
            process.run()
        except (Closed, EngineFailure) as error:
            self.end = error

    def send(self, *messages: Any) -> None:
        self.socket.sendall(b"".join(frames.frame(message) for message in messages))

    def receive(self) -> Any:
        while not self.received:
            self.received += self._splitter.feed(self.socket.recv(1 << 16))
        return self.received.pop(0)

    def until_ended(self, *request_ids: str) -> list[Step]:
        """All steps up to that in which the last of these requests ended."""
        steps, open_ids = [], {*request_ids}
        while open_ids:
            steps.append(self.receive())
            open_ids -= {request_id for request_id, output in steps[-1].outputs if output.finish_reason}
            open_ids -= {request_id for request_id, _ in (*steps[-1].failures, *steps[-1].pooled)}
        return steps

    def until_loaded(self, version: str) -> tuple[Step, Any]:
        """The step that tells of an adapter, and how its load ended."""
        while version not in (told := dict((step := self.receive()).adapters)):
            pass
        return step, told[version]

    def close(self) -> None:
        self.socket.close()
        self.thread.join(30)
        assert not self.thread.is_alive()


@pytest.fixture
def served(runner: GetRunner) -> Iterator[Served]:
    made = Served(runner("llama"))
    yield made
    made.close()


def test_outputs_come_step_by_step_and_the_loop_ends_with_its_server(served: Served) -> None:
    served.send(frames.Generate(request(prompt(9), max_new_tokens=4, ignore_eos=True)))
    steps = served.until_ended("r")
    assert [len(step.outputs) for step in steps] == [1] * 4
    assert (steps[-1].stats.running, steps[-1].received) == (0, 1)
    served.close()
    assert isinstance(served.end, Closed)


def test_a_prediction_that_is_sent_saves_steps_and_what_came_of_it_is_told(served: Served) -> None:
    served.send(frames.Generate(request(prompt(9), ignore_eos=True)))
    true = [token for step in served.until_ended("r") for _, output in step.outputs for token in output.token_ids]
    predicting = request(prompt(9), "predicting", ignore_eos=True)
    served.send(frames.Generate(replace(predicting, prediction_ids=true)))
    steps = served.until_ended("predicting")
    outputs = [output for step in steps for _, output in step.outputs]
    assert [token for output in outputs for token in output.token_ids] == true
    accepted = sum(output.accepted_prediction_tokens for output in outputs)
    assert accepted == sum(steps[-1].stats.spec_accepted.values()) == len(true) - len(steps)


def test_an_idle_loop_answers_a_ping(served: Served) -> None:
    served.send(frames.Ping())
    assert served.receive().stats.steps == 0


def test_a_ping_is_answered_between_two_steps_of_a_long_prompt_with_how_many_there_were(runner: GetRunner) -> None:
    served = Served(runner("llama"), max_num_batched_tokens=16)
    served.runner.pace = threading.Semaphore(0)
    served.send(frames.Generate(request(prompt(60), max_new_tokens=1, ignore_eos=True)), frames.Ping())
    served.runner.pace.release()
    answer = served.receive()
    assert (answer.stats.steps, answer.outputs) == (1, [])
    served.send(frames.Ping())
    served.runner.pace.release(2)  # it may be in the next step already
    answer = served.receive()
    assert answer.stats.steps in (2, 3) and answer.outputs == []
    served.runner.pace.release(2)
    assert served.until_ended("r")[-1].stats.steps == 4
    served.close()


def test_a_step_that_raises_fails_only_the_requests_in_it(served: Served) -> None:
    served.runner.fail_at = {0}
    served.send(
        frames.Generate(request(prompt(9), "in it")), frames.Pool(PoolingRequest(request_id="too", prompt_ids=[5]))
    )
    [step] = served.until_ended("in it", "too")
    assert {request_id: failure.kind for request_id, failure in step.failures} == {
        "in it": "EngineFailure",
        "too": "EngineFailure",
    }
    served.send(frames.Generate(request(prompt(9), "after", max_new_tokens=3, ignore_eos=True)))
    assert not any(step.failures for step in served.until_ended("after"))


def test_steps_that_fail_one_after_another_end_the_process(served: Served) -> None:
    served.runner.fail_at = {*range(FAILED_STEPS)}
    for i in range(FAILED_STEPS - 1):
        served.send(frames.Generate(request(prompt(9), f"r{i}")))
        served.until_ended(f"r{i}")
        served.send(frames.Abort("unknown"))  # a step of nothing in between proves nothing
        served.receive()
    served.send(frames.Generate(request(prompt(9), "last")))
    served.thread.join(30)
    assert isinstance(served.end, EngineFailure)


def test_a_step_that_succeeds_in_between_is_a_new_beginning(served: Served) -> None:
    served.runner.fail_at = {0, 1, 3, 4}
    for i, fails in enumerate((True, True, False, True, True, False)):
        served.send(frames.Generate(request(prompt(9), f"r{i}", max_new_tokens=1)))
        assert bool(served.until_ended(f"r{i}")[-1].failures) == fails


def test_a_request_that_cannot_be_taken_in_fails_alone(served: Served) -> None:
    good = request(prompt(9), "good", max_new_tokens=3, ignore_eos=True)
    bad = replace(good, request_id="bad", prompt_ids=[])
    odd = replace(good, request_id="odd", sampling=replace(good.sampling, bad_words_ids=((),)))
    served.send(frames.Generate(bad), frames.Generate(odd), frames.Generate(good))
    failures = dict(failure for step in served.until_ended("good", "bad", "odd") for failure in step.failures)
    assert {name: failure.kind for name, failure in failures.items()} == {
        "bad": "InvalidRequest",
        "odd": "EngineFailure",
    }


def test_abort_and_finish_are_heard_between_steps(served: Served) -> None:
    one = request(prompt(9), n=2, max_new_tokens=100, ignore_eos=True)
    served.runner.pace = threading.Semaphore(1)
    served.send(frames.Generate(one))
    assert len(served.receive().outputs) == 2
    # The next step has begun, or begins once these have been read: they count from the one after it at the latest.
    served.send(frames.Finish("r", 0))
    served.runner.pace.release(2)
    assert [len(served.receive().outputs) for _ in range(2)][1] == 1
    served.send(frames.Abort("r"))
    served.runner.pace.release()
    while (step := served.receive()).outputs:
        pass
    assert (step.stats.running, step.stats.kv_cache_usage) == (0, 0)
    assert len(served.runner.steps) <= 4


def test_constraints_are_compiled_beside_the_steps(runner: GetRunner, grammars: Grammars) -> None:
    served = Served(runner("llama"), grammars=grammars)
    free = request(prompt(9), "free", max_new_tokens=5, ignore_eos=True)
    bound = request(prompt(9), "bound", structured=Structured(kind="choice", value='["red", "blue"]'))
    wrong = request(prompt(9), "wrong", structured=Structured(kind="regex", value="("))
    served.send(frames.Generate(bound), frames.Generate(wrong), frames.Generate(free))
    steps = served.until_ended("free", "bound", "wrong")
    served.close()
    assert [request_id for step in steps for request_id, _ in step.failures] == ["wrong"]


def wordy_tokenizer() -> PreTrainedTokenizerFast:
    """Its tokens have no bytes of their own, which a constraint on the output needs."""
    words = {"<eos>": 0, "<unk>": 1, "red": 2, "blue": 3}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")


@pytest.mark.parametrize("lack", ["bytes", "end"])
def test_a_model_whose_output_cannot_be_constrained_says_so_and_is_served_all_the_same(
    tmp_path: Path, lack: str
) -> None:
    config = CONFIGS["llama"]()
    config.eos_token_id = None if lack == "end" else EOS
    save(config, tmp_path, tokenizer=True)
    if lack == "bytes":
        wordy_tokenizer().save_pretrained(tmp_path)
    core, grammars, capabilities = load(settings(tmp_path))
    assert grammars is None
    assert capabilities.structured == frozenset()
    assert run(core, [request(prompt(9))])


class Slow:
    """A compiler that waits for `go` before each constraint."""

    def __init__(self, grammars: GrammarCompiler) -> None:
        self._grammars = grammars
        self.go = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grammars, name)

    def compile(self, structured: Structured) -> GrammarState:
        assert self.go.wait(30)
        return self._grammars.compile(structured)


def test_a_request_waits_while_its_constraint_is_compiled(runner: GetRunner, grammars: Grammars) -> None:
    slow = Slow(grammars)
    served = Served(runner("llama"), grammars=slow)
    served.send(frames.Generate(request(prompt(9), structured=Structured(kind="choice", value='["red", "blue"]'))))
    step = served.receive()
    assert (step.stats.waiting, step.stats.running, step.received) == (1, 0, 1)
    slow.go.set()
    steps = served.until_ended("r")
    served.close()
    assert steps[-1].stats.waiting == 0


# ---- adapters


@pytest.fixture
def adapter(folder: Callable[[str], Path], tmp_path: Path) -> Path:
    return save_adapter(folder("llama"), tmp_path / "adapter", target_modules=["q_proj"])


class Held:
    """Holds up the reading of adapters until `go`."""

    def __init__(self, core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._read = core.adapters._read_folder
        self.go = threading.Event()
        monkeypatch.setattr(core.adapters, "_read_folder", self.read)

    def read(self, folder: Path) -> Any:
        assert self.go.wait(30)
        return self._read(folder)


def test_how_a_load_ended_is_told(served: Served, adapter: Path, tmp_path: Path) -> None:
    served.send(frames.LoadAdapter("a", str(adapter), False), frames.LoadAdapter("b", str(tmp_path / "none"), False))
    step, error = served.until_loaded("a")
    assert error is None and "a" in step.stats.adapter_host
    if "b" not in dict(step.adapters):
        step, error = served.until_loaded("b")
    assert dict(step.adapters)["b"].kind == "InvalidAdapter"
    served.send(frames.Generate(request(prompt(9), adapter="a", max_new_tokens=3, ignore_eos=True)))
    steps = served.until_ended("r")
    assert (steps[-1].failures, steps[-1].stats.adapter_slots) == ([], ("a",))


def test_while_an_adapter_is_read_others_are_served_and_then_its_own(
    served: Served, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(served.core, monkeypatch)
    mine = request(prompt(9), "mine", adapter="a", max_new_tokens=3, ignore_eos=True)
    others = [request(prompt(9), f"r{i}", max_new_tokens=2, ignore_eos=True) for i in range(9)]
    served.send(frames.LoadAdapter("a", str(adapter), False), frames.Generate(mine))
    served.send(*(frames.Generate(one) for one in others))
    served.until_ended(*(one.request_id for one in others))
    held.go.set()
    steps = served.until_ended("mine")
    assert [version for step in steps for version, _ in step.adapters] == ["a"]
    assert not any(step.failures for step in steps)


def test_an_unloaded_adapter_takes_its_requests_with_it_running_and_waiting(
    served: Served, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.send(frames.LoadAdapter("a", str(adapter), False))
    served.until_loaded("a")
    endless = request(prompt(9), "running", adapter="a", max_new_tokens=110, ignore_eos=True)
    served.runner.pace = threading.Semaphore(1)
    served.send(frames.Generate(endless))
    assert served.receive().outputs
    held = Held(served.core, monkeypatch)
    waiting = request(prompt(9), "waiting", adapter="b")
    served.send(frames.LoadAdapter("b", str(adapter), False), frames.Generate(waiting))
    served.send(frames.UnloadAdapter("a"), frames.UnloadAdapter("b"))
    served.runner.pace.release(3)
    failures = dict(failure for step in served.until_ended("running", "waiting") for failure in step.failures)
    assert {name: failure.kind for name, failure in failures.items()} == dict.fromkeys(
        ("running", "waiting"), "EngineFailure"
    )
    held.go.set()
    served.runner.pace = None
    served.send(frames.Generate(request(prompt(9), max_new_tokens=3, ignore_eos=True)))
    assert served.until_ended("r")[-1].stats.adapter_slots == ()
