"""The container's files: what can be said of them without building an image."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from engines.params.deploy import DeployParams
from engines.process import life
from server.http.connections import server
from server.http.keys.caller import Role
from server.http.keys.keys import Keys
from server.inference import lifecycle

ROOT = Path(__file__).parents[2]
MAKE_KEYS = ROOT / "docker" / "make-keys"
COMPOSE = ROOT / "docker" / "compose.yaml"
COMPOSE_GPU = ROOT / "docker" / "compose.gpu.yaml"
ENGINES = {"api": "pt", "vllm": "vllm", "lmdeploy": "lmdeploy"}
"""The targets that are run, and the engine of each."""


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = _tool("hadolint", str(ROOT / "Dockerfile"))

    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("file", [COMPOSE, COMPOSE_GPU], ids=lambda path: path.name)
def test_the_compose_files_follow_the_compose_specification(file: Path) -> None:
    done = _tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", str(file))

    assert done.returncode == 0, done.stdout


def test_everything_that_the_dockerfile_copies_reaches_the_build() -> None:
    """.dockerignore lets through what it names, and no more."""
    sources = [
        name
        for line in _dockerfile()
        if line.startswith("COPY ") and "--from=" not in line
        for name in line.split()[1:-1]
    ]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert {source.split("/")[0] for source in sources} == let_through
    assert all((ROOT / name).exists() for name in sources)


def test_without_a_target_our_own_engine_is_built() -> None:
    assert list(_stages())[-1] == "api"


@pytest.mark.parametrize(("target", "engine"), ENGINES.items())
def test_each_image_runs_its_engine_as_a_user_without_rights(target: str, engine: str) -> None:
    lines = [line for stage in ("server", target) for line in _stages()[stage]]
    engines = [found for line in lines if (found := re.search(r"\bENGINE=(\w+)", line))]

    assert _stages()[target][0] == f"FROM server AS {target}"
    assert lines[-1] == "USER 10001"
    assert engines[-1][1] == engine
    assert [line for line in lines if line.startswith("ENTRYPOINT") and '--infer_backend \\"$ENGINE\\"' in line]


def test_the_compose_file_builds_each_engine_and_starts_our_own() -> None:
    services = _services(COMPOSE)
    servers = {name: service for name, service in services.items() if name != "prometheus"}

    assert {name: service["build"]["target"] for name, service in servers.items()} == {name: name for name in ENGINES}
    assert [name for name, service in services.items() if "profiles" not in service] == ["api", "prometheus"]
    assert len({service["image"] for service in servers.values()}) == len(ENGINES)
    assert _services(COMPOSE_GPU) == {name: {"gpus": "all"} for name in ENGINES}


def test_prometheus_scrapes_each_server_by_the_name_and_port_that_all_have_in_the_compose_file() -> None:
    services = _services(COMPOSE)
    scrape = yaml.safe_load((ROOT / "docker" / "prometheus.yml").read_text())["scrape_configs"][0]
    (mount,) = [volume for volume in services["prometheus"]["volumes"] if volume.startswith("./")]
    (key,) = services["prometheus"]["secrets"]

    assert scrape["static_configs"] == [{"targets": ["server:8000"]}]
    assert scrape["authorization"] == {"credentials_file": f"/run/secrets/{key}"}
    for name in ENGINES:
        assert services[name]["ports"] == ["${ADDRESS:-127.0.0.1}:${PORT:-8000}:8000"]
        assert services[name]["networks"]["default"]["aliases"] == ["server"]
    assert (COMPOSE.parent / mount.split(":")[0]).is_file()


@pytest.mark.parametrize("name", [*ENGINES, "prometheus"])
def test_a_container_can_change_little_and_take_no_more_than_its_share(name: str) -> None:
    service = _services(COMPOSE)[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert all(":ro" in volume or not volume.startswith((".", "/")) for volume in service["volumes"])


def test_images_that_others_have_made_are_named_by_their_content() -> None:
    (base,) = [line.removeprefix("ARG BASE=") for line in _dockerfile() if line.startswith("ARG BASE=")]

    for image in (base, _services(COMPOSE)["prometheus"]["image"]):
        assert re.fullmatch(r"docker\.io/[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


def test_a_container_has_longer_to_stop_than_a_server_may_take() -> None:
    """Requests, the errors of those that had to be ended, jobs beside them, the engine, and connections, in turn."""
    grace = DeployParams.model_fields["shutdown_timeout"].default
    longest = grace + lifecycle.ERROR_DELIVERY_SECONDS + grace + 2 * life.ENDING_SECONDS + server.CLOSING_SECONDS

    assert all(int(_services(COMPOSE)[name]["stop_grace_period"].removesuffix("s")) >= longest for name in ENGINES)


def test_one_command_makes_keys_that_the_server_and_prometheus_understand(tmp_path: Path) -> None:
    shutil.copy(MAKE_KEYS, tmp_path)
    done = _run(str(tmp_path / MAKE_KEYS.name))
    variable = (tmp_path / ".env").read_text().removeprefix("TUNESERVE_API_KEY=").rstrip("\n")
    keys = Keys(variable=variable)
    scraped = keys.find((tmp_path / "secrets" / "metrics_key").read_text())

    assert keys.names == {"admin", "prometheus"}
    assert scraped is not None and scraped.roles == {Role.METRICS}
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert variable.partition("=")[2].partition(",")[0] in done.stdout


def test_keys_that_are_there_stay_as_they_are(tmp_path: Path) -> None:
    shutil.copy(MAKE_KEYS, tmp_path)
    (tmp_path / ".env").write_text("MODEL=some/model\n")
    assert _run(str(tmp_path / MAKE_KEYS.name)).returncode == 0
    before = (tmp_path / ".env").read_text()

    again = _run(str(tmp_path / MAKE_KEYS.name))

    assert before.startswith("MODEL=some/model\nTUNESERVE_API_KEY=")
    assert (again.returncode, (tmp_path / ".env").read_text()) == (1, before)


def test_the_compose_file_asks_for_keys_before_it_starts_anything() -> None:
    for name in ENGINES:
        assert _services(COMPOSE)[name]["environment"]["TUNESERVE_API_KEY"].startswith("${TUNESERVE_API_KEY:?")
        assert _services(COMPOSE)[name]["command"] == ["--metrics_auth", "true"]


def test_the_compose_file_resolves_where_docker_has_its_compose_plugin() -> None:
    compose = ("docker", "compose")
    if not shutil.which("docker") or _run(*compose, "version").returncode != 0:
        pytest.skip("docker compose is not installed")

    done = _run(
        "env",
        "TUNESERVE_API_KEY=any",
        *compose,
        "-f",
        str(COMPOSE),
        "-f",
        str(COMPOSE_GPU),
        "--profile",
        "*",
        "config",
        "--quiet",
    )

    assert done.returncode == 0, done.stderr


def _dockerfile() -> list[str]:
    return (ROOT / "Dockerfile").read_text().splitlines()


def _stages() -> dict[str, list[str]]:
    """The lines of each stage, by its name."""
    stages: dict[str, list[str]] = {}
    for line in _dockerfile():
        if line.startswith("FROM "):
            lines = stages[line.split()[-1]] = []
        if stages and line and not line.startswith("#"):
            lines.append(line)
    return stages


def _services(file: Path) -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(file.read_text())["services"]
    return services


def _tool(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment that runs the tests."""
    return _run(str(Path(sys.executable).parent / name), *args)


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)
