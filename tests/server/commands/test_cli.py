"""The command `tuneserve`: which words lead where, and how light it starts."""

import subprocess
import sys

import pytest

from server import __version__
from server.commands import cli
from server.commands.params import COMMANDS
from server.commands.supported import unsupported

HEAVY = {
    *("torch", "transformers", "peft", "accelerate", "datasets", "numpy"),
    *("fastapi", "uvicorn", "sqlalchemy", "alembic"),
}
"""Libraries that take long to import."""


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert cli.main(words) == 0
    told = capsys.readouterr().out
    assert all(f"\n  {name} " in told for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"tuneserve {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_shows_sections_and_stars(capsys: pytest.CaptureFixture[str], command: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    told = capsys.readouterr().out
    assert all(f"--{name} " in told for name in COMMANDS[command].model_fields)
    assert "\nmodel:\n" in told
    assert "* The model:" in told


def test_help_of_deploy_marks_what_is_not_supported_yet(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["deploy", "--help"])
    entries = capsys.readouterr().out.split("\n  --")[1:]
    marked = {entry.split()[0] for entry in entries if "(not supported yet)" in " ".join(entry.split())}
    assert marked == unsupported()


def test_a_command_checks_its_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["infer", "--temperature", "-1"])
    told = capsys.readouterr().err
    assert "--temperature: Input should be greater than or equal to 0" in told
    assert "not supported" not in told


@pytest.mark.parametrize(("word", "told"), [("web_ui", "did you mean web-ui?"), ("xyz", "choose from deploy, sft")])
def test_a_word_that_is_no_command(capsys: pytest.CaptureFixture[str], word: str, told: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([word])
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_deploy_refuses_what_nothing_reads_before_anything_loads(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(["deploy", "--model", "no/such/model", "--quant_bits", "4", "--tp", "2"])
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert "--quant_bits" in told
    assert "--tp: the engine pt does not support it; it is for lmdeploy" in told


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["deploy", "--help"],
        ["merge", "--help"],
        ["sft", "--learning_rate", "x"],
        ["deploy", "--tp", "2"],
        ["merge"],
        ["app"],
        ["web-ui", "--base_url", "localhost:8000"],
    ],
)
def test_help_and_refusals_load_neither_torch_nor_a_web_server(words: list[str]) -> None:
    code = f"""
from server.commands.cli import main
try:
    main({words!r})
except SystemExit:
    pass
"""
    assert loaded_by(code) == set()


def test_deploy_reads_the_parameters_of_no_other_command() -> None:
    code = """
import sys
from server.commands.cli import main
try:
    main(["deploy", "--tp", "2"])
except SystemExit:
    assert not any(name.partition(".")[0] == "training" for name in sys.modules)
"""
    assert loaded_by(code) == set()


def test_a_command_that_is_not_run_has_its_parameters_checked_by_nobody() -> None:
    code = """
from server.commands.cli import main
from training.params.sft import SftParams
main(["--help"])
assert not SftParams.__pydantic_complete__
"""
    assert loaded_by(code) == set()


def test_before_its_engine_begins_a_server_loads_neither_a_web_server_nor_a_database() -> None:
    assert loaded_by("import server.commands.deploy, engines.build, engines.pt.client, engines.pt.config") == set()


def test_a_server_without_a_model_loads_no_library_of_models() -> None:
    assert loaded_by("import server.parts, server.commands.serving") == {"fastapi", "uvicorn", "sqlalchemy"}


def loaded_by(code: str) -> set[str]:
    """Those libraries of HEAVY that a process has imported which has run `code`."""
    told = f"{code}\nimport sys\nprint(chr(10), *({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())
