"""What is fetched for a job, from a hub that tells anything."""

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from safetensors.numpy import save

from engines.errors import TuneserveError
from tests.hub import COMMIT, Hub, Repo, running
from training import validate
from training.data.sources import sources
from training.folder import JobFolder, Validation
from training.hub import repository
from training.hub.fetch import fetch
from training.params.export import MergeParams
from training.params.hub import SCHEME, Fetch
from training.params.sft import SftParams
from training.params.task import TASK

ROWS = b'{"query": "a", "response": "b"}\n'
WEIGHTS = save({})
CONFIG = json.dumps({"model_type": "llama"}).encode()
ADAPTER = {"peft_type": "LORA", "r": 2}
SECRET = "hf_s3cret"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """With a token in every place where libraries look for one."""
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / ".netrc").write_text(f"machine 127.0.0.1 login me password {SECRET}\n")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + template)
        yield hub
        assert not hub.brought


class Job:
    """The folder of a job, beside the cache of all."""

    def __init__(self, folder: Path, number: int = 1) -> None:
        self.folder = folder / f"job-{number}"
        self.cache = folder / "cache"

    def fetch(self, params: SftParams | MergeParams, *, max_bytes: int = 1 << 30) -> dict[str, Any]:
        return fetch(params, Fetch(folder=self.folder, cache=self.cache, max_bytes=max_bytes))

    def validation(self, task: str, **params: Any) -> Validation:
        """What the process has found that looks at a job of the API."""
        order = Fetch(folder=self.folder / "hub", cache=self.cache, max_bytes=1 << 30)
        self.folder.mkdir(exist_ok=True)
        folder = JobFolder(self.folder)
        made = TASK.validate_python({"task": task, "params": params})
        folder.write_task(made.model_copy(update={"discreet": True, "fetch": order}))
        validate.main(folder)
        return folder.read_validation()

    def data(self, *names: str, **given: Any) -> list[str]:
        """The files that are read of data sets, each by its path behind `train/`."""
        found = self.fetch(SftParams(dataset=tuple(SCHEME + name for name in names), **given))["dataset"]
        read = [path for source in sources(SftParams(dataset=tuple(found)), "dataset") for path in source.files]
        assert all(path.is_relative_to(self.folder) and not path.is_symlink() for path in read)
        return [path.as_posix().partition("/train/")[2] for path in read]

    def refusal(self, *names: str, max_bytes: int = 1 << 30) -> str:
        """Why a data set is not fetched. Nothing is half there then."""
        with pytest.raises(TuneserveError) as refused:
            self.fetch(SftParams(dataset=tuple(SCHEME + name for name in names)), max_bytes=max_bytes)
        assert refused.value.param == "dataset" and refused.value.code == "not_fetched"
        assert not list(self.folder.rglob("*.partial"))
        return refused.value.message


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def test_a_set_is_a_folder_of_files_that_are_data(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo(
        {
            "README.md": b"#",
            "set.py": b"!",
            "data.pkl": b"!",
            ".git/x.jsonl": b"!",
            "train.jsonl": ROWS,
            "test.jsonl": ROWS,
        }
    )
    assert job.data("org/set#5") == ["000/train.jsonl"]
    assert [path for path in hub.asked if "resolve" in path] == [f"/datasets/org/set/resolve/{COMMIT}/train.jsonl"]


def test_what_other_parameters_and_places_say_stays(hub: Hub, job: Job, tmp_path: Path) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS})
    params = SftParams(dataset=(f"{tmp_path}/a.jsonl", f"{SCHEME}org/set#5"), val_dataset=(f"{SCHEME}org/set:train",))
    assert job.fetch(params) == {
        "dataset": [f"{tmp_path}/a.jsonl", f"{job.folder}/1/set#5"],
        "val_dataset": [f"{job.folder}/2/set"],
    }


def test_it_is_downloaded_once_for_all_jobs_unless_asked_anew(hub: Hub, job: Job, tmp_path: Path) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS})
    job.data("org/set")
    other = Job(tmp_path, 2)
    assert other.data("org/set") == ["000/train.jsonl"]
    assert sum("resolve" in path for path in hub.asked) == 1
    other.data("org/set", download_mode="force_redownload")
    assert sum("resolve" in path for path in hub.asked) == 2


def test_the_cache_forgets_what_was_not_used_for_longest(hub: Hub, job: Job) -> None:
    for name in ("old", "new"):
        hub.repos[f"datasets/org/{name}"] = Repo({"train.jsonl": ROWS * 10})
        job.fetch(SftParams(dataset=(f"{SCHEME}org/{name}",)), max_bytes=len(ROWS) * 15)
    assert [folder.name for folder in job.cache.glob("datasets/*") if list(folder.rglob("*.jsonl"))] == ["org--new"]


# ---- cards and names that lead elsewhere


@pytest.mark.parametrize(
    "data_files",
    [
        "/etc/passwd",
        "../../etc/passwd",
        "hf://datasets/org/private/train.jsonl",
        "https://example.com/train.jsonl",
        ["train.jsonl", "/etc/passwd"],
        [{"split": "train", "path": "/etc/passwd"}],
        {"train": "/etc/passwd"},
        {"train": ["data/../../x"]},
        [{"split": "train"}],
        7,
        "*" * 400,
    ],
)
def test_a_card_that_names_other_files_is_refused(hub: Hub, job: Job, data_files: Any) -> None:
    card = {"configs": [{"config_name": "default", "data_files": data_files}]}
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS}, card=card)
    assert "which is no file of the repository" in job.refusal("org/set")


@pytest.mark.parametrize("card", [{"configs": "x"}, {"configs": [1]}, {"configs": [{"config_name": []}]}])
def test_a_card_that_is_none_is_refused(hub: Hub, job: Job, card: dict[str, Any]) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS}, card=card)
    assert "its card has" in job.refusal("org/set")


@pytest.mark.parametrize(
    "name", ["../train.jsonl", "/train.jsonl", "a//train.jsonl", "a\\train.jsonl", "a/../train.jsonl"]
)
def test_files_whose_names_lead_out_are_none(hub: Hub, job: Job, name: str) -> None:
    hub.repos["datasets/org/set"] = Repo({name: ROWS})
    assert "holds no file of" in job.refusal("org/set")
    hub.repos["datasets/org/set"].files["train.jsonl"] = ROWS
    assert job.data("org/set") == ["000/train.jsonl"]


def test_a_link_in_a_repository_is_a_file_with_a_path_in_it(hub: Hub, job: Job) -> None:
    """Git keeps links so; that the file is no link, `data` checks."""
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": b"/etc/passwd"})
    assert job.data("org/set") == ["000/train.jsonl"]


# ---- sizes


def test_a_set_above_the_limit_is_refused_before_a_byte_of_it(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS * 100})
    hub.repos["datasets/org/half"] = Repo({"train.jsonl": ROWS * 50})
    limit = len(ROWS) * 99
    assert "(job_hub_max_size)" in job.refusal("org/set", max_bytes=limit)
    assert not any("resolve" in path for path in hub.asked)
    assert "(job_hub_max_size)" in job.refusal("org/half", "org/half:train", max_bytes=limit)


def test_a_file_that_is_larger_than_was_told_is_broken_off(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS * 100_000}, sizes={"train.jsonl": 10})
    assert "is larger than the 10 bytes" in job.refusal("org/set")
    assert not list(job.cache.rglob("*.jsonl"))


@pytest.mark.parametrize("file", ["train.jsonl", "train.parquet"])
def test_a_file_that_is_not_the_one_that_was_told_is_not_kept(hub: Hub, job: Job, file: str) -> None:
    hub.repos["datasets/org/set"] = Repo({file: b"other"}, told={file: b"those"})
    assert "is not the file" in job.refusal("org/set")
    assert not list(job.folder.rglob("train*.*")) and not list(job.cache.rglob("train*.*"))


def test_a_download_goes_on_where_it_broke_off(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS * 1000}, breaks_off=[700, 5])
    assert job.data("org/set") == ["000/train.jsonl"]
    (file,) = job.folder.rglob("train.jsonl")
    assert file.read_bytes() == ROWS * 1000


def test_one_that_breaks_off_again_and_again_is_given_up(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS}, breaks_off=[1] * 10)
    assert "broke off after 5 of" in job.refusal("org/set")


# ---- who asks


def test_no_token_goes_to_the_host_that_files_are_redirected_to(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS})
    with running() as elsewhere:
        elsewhere.repos = hub.repos
        hub.elsewhere = elsewhere.url
        assert job.data("org/set") == ["000/train.jsonl"]
        assert len(elsewhere.asked) == 1 and not elsewhere.brought


def test_what_is_not_there_for_everybody_is_refused_with_what_to_do(hub: Hub, job: Job) -> None:
    assert "'org/private' cannot be had from the hub: it is not there for everybody" in job.refusal("org/private")
    assert "job_roots" in job.refusal("org/private")


def test_a_repository_that_was_moved_is_not_read_under_its_old_name(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS}, id="other/set")
    assert "'org/set' has become 'other/set'" in job.refusal("org/set")


# ---- models and adapters


def model(**files: bytes) -> Repo:
    return Repo({"config.json": CONFIG, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}"} | files)


def fetched_model(hub: Hub, job: Job, repo: Repo, **given: Any) -> Path:
    hub.repos["models/org/m"] = repo
    return Path(job.fetch(SftParams(model=f"{SCHEME}org/m", **given))["model"])


def test_of_a_model_come_configuration_tokenizer_and_safetensors(hub: Hub, job: Job) -> None:
    others = {
        "pytorch_model.bin": b"!",
        "original/x.pth": b"!",
        "modeling.py": b"!",
        "args.json": b"{}",
        "tokenizer.py": b"!",
    }
    repo = model(**others, **{"consolidated.safetensors": WEIGHTS, "additional_chat_templates/a.jinja": b"a"})
    folder = fetched_model(hub, job, repo)
    assert folder.name == "m", "adapters are known to belong to a model by its name"
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == ["additional_chat_templates/a.jinja", "config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("repo", "said"),
    [
        (Repo({"config.json": CONFIG, "pytorch_model.bin": b"!"}), "has no safetensors"),
        (model(**{"config.json": b"x"}), "has no config.json that can be read"),
        (model(**{"config.json": b'{"attn_implementation": "org/kernels"}'}), "which is not run"),
        (model(**{"config.json": b'{"text_config": {"experts_implementation": "org/k"}}'}), "which is not run"),
        (model(**{"config.json": b'{"transformers_weights": "../x.safetensors"}'}), "no file of its weights"),
        (
            model(**{"model.safetensors.index.json": b'{"weight_map": {"w": "../x.safetensors"}}'}),
            "no file of its weights",
        ),
        (
            model(**{"model.safetensors.index.json": b'{"weight_map": {"w": "/x.safetensors"}}'}),
            "no file of its weights",
        ),
        (model(**{"model.safetensors.index.json": b"{}"}), "no file of its weights"),
    ],
)
def test_a_model_that_names_code_or_other_files_is_refused(hub: Hub, job: Job, repo: Repo, said: str) -> None:
    with pytest.raises(TuneserveError, match=said) as refused:
        fetched_model(hub, job, repo)
    assert refused.value.param == "model"


def test_a_tokenizer_names_no_files_any_more(hub: Hub, job: Job) -> None:
    files = {"merges_file": "/etc/passwd", "gguf_file": "../x.gguf", "fast_tokenizer_files": ["../tokenizer.5.json"]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "über"}
    folder = fetched_model(hub, job, model(**{"tokenizer_config.json": json.dumps(files | config).encode()}))
    assert json.loads((folder / "tokenizer_config.json").read_text()) == config
    (kept,) = job.cache.rglob("tokenizer_config.json")
    assert json.loads(kept.read_text()) == files | config


def test_the_disk_may_be_full_and_nothing_is_half_there(hub: Hub, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(repository, "_blocks", full)
    with pytest.raises(OSError, match="No space left"):
        fetched_model(hub, job, model())
    assert not [path for folder in (job.folder, job.cache) for path in folder.rglob("*") if path.is_file()]


def test_the_revision_is_asked_for(hub: Hub, job: Job) -> None:
    fetched_model(hub, job, model(), model_revision="v2")
    assert hub.asked[0] == "/api/models/org/m/revision/v2"


def test_an_adapter_names_no_model_and_no_module_any_more(hub: Hub, job: Job) -> None:
    config = ADAPTER | {"base_model_name_or_path": "/srv/private", "megatron_core": "antigravity", "revision": "x"}
    hub.repos["models/org/a"] = Repo(
        {
            "adapter_config.json": json.dumps(config).encode(),
            "adapter_model.safetensors": WEIGHTS,
            "adapter_model.bin": b"!",
        }
    )
    (folder,) = map(Path, job.fetch(MergeParams(adapters=(f"{SCHEME}org/a",)))["adapters"])
    assert json.loads((folder / "adapter_config.json").read_text()) == ADAPTER
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    (kept,) = job.cache.rglob("adapter_config.json")
    assert json.loads(kept.read_text()) == config, "what the cache has is what the hub has"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"adapter_config.json": b'{"peft_type": "XLORA"}', "adapter_model.safetensors": WEIGHTS}, "of type 'XLORA'"),
        ({"adapter_config.json": json.dumps(ADAPTER).encode(), "adapter_model.bin": b"!"}, "has no adapter_model"),
        ({"adapter_model.safetensors": WEIGHTS}, "has no adapter_config.json"),
    ],
)
def test_an_adapter_of_another_form_is_refused(hub: Hub, job: Job, files: dict[str, bytes], said: str) -> None:
    hub.repos["models/org/a"] = Repo(files)
    with pytest.raises(TuneserveError, match=said) as refused:
        job.fetch(MergeParams(adapters=(f"{SCHEME}org/a",)))
    assert refused.value.param == "adapters"


# ---- by the process that looks at a job


def test_a_merge_is_told_where_its_model_and_adapter_are(hub: Hub, job: Job) -> None:
    hub.repos["models/org/m"] = model()
    hub.repos["models/org/a"] = Repo(
        {"adapter_config.json": json.dumps(ADAPTER).encode(), "adapter_model.safetensors": WEIGHTS}
    )
    found = job.validation("merge", model=f"{SCHEME}org/m", adapters=[f"{SCHEME}org/a"])
    assert found.error is None
    assert found.fetched == {"model": f"{job.folder}/hub/1/m", "adapters": [f"{job.folder}/hub/2/a"]}


def test_rows_of_a_set_of_the_hub_are_looked_at_as_those_of_files(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo({"train.jsonl": ROWS * 3 + b'{"query": 7}\n'})
    params = {"model": "m", "dataset": [f"{SCHEME}org/set"], "strict": True}
    found = job.validation("sft", **params)
    assert found.error.message.startswith("Line 4 of train.jsonl") and found.error.param == "dataset"
    assert job.validation("sft", **params | {"strict": False}).rows == 3


def test_what_cannot_be_fetched_is_told_without_folders(hub: Hub, job: Job) -> None:
    hub.repos["datasets/org/set"] = Repo({}, card={"configs": [{"data_files": "/srv/secret/rows.jsonl"}]})
    error = job.validation("sft", model="m", dataset=[f"{SCHEME}org/set"]).error
    assert error.param == "dataset" and error.code == "not_fetched"
    assert "'rows.jsonl'" in error.message and "/srv" not in error.message
