"""What a training, a merge or an export has made, uploaded to a repository of the Hugging Face hub."""

import threading
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from engines.checkpoint.hub import hub_errors, reason_of
from engines.errors import InvalidRequest
from training.params.export import ExportParams
from training.params.sft import SftParams
from training.report import Report

FILES = (
    "*.safetensors", "*.safetensors.index.json", "*config.json", "README.md", "tokenizer*", "special_tokens_map.json",
    "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken", "chat_template*",
    "additional_chat_templates/*", "*.py", "*.gguf", "Modelfile",
)  # fmt: skip
"""Files that are uploaded: those with which a model or an adapter is loaded."""
STATE = ("generation.safetensors", "float32/*", "value_model/*")
"""Files of the same form that only the training reads which goes on from a checkpoint."""
END = "End of training"


def is_uploaded(name: str) -> bool:
    """Whether a file of this name in a folder belongs to the model or the adapter."""
    return any(fnmatch(name, each) for each in FILES) and not any(fnmatch(name, each) for each in STATE)


class UploadFailed(Exception):
    """Says why nothing was uploaded."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository on the hub that is there, and that we may write to."""

    id: str
    url: str
    token: str | None = field(repr=False)

    @classmethod
    def open(cls, name: str, *, private: bool, token: str | None) -> "Repository":
        """Find or make it. `name`: with its owner, or without: then it is the token's. `private` is for one that is
        made here.

        Raises InvalidRequest where the hub does not let us, or cannot be reached.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        try:
            made = HfApi(token=token).create_repo(repo_id=name, private=private or None, exist_ok=True)
        except HFValidationError as error:
            raise InvalidRequest(str(error), param="hub_model_id") from error
        except hub_errors() as error:
            message = f"the hub has no repository {name!r} to upload to: {reason_of(error)}"
            raise InvalidRequest(message, param="push_to_hub") from error
        return cls(made.repo_id, str(made), token)

    def upload(self, folder: Path, message: str) -> None:
        """Have the hub hold what is in `folder`, by one commit, or nothing of it. Raises UploadFailed."""
        from huggingface_hub import HfApi

        try:
            HfApi(token=self.token).upload_folder(
                repo_id=self.id,
                folder_path=folder,
                commit_message=message,
                allow_patterns=list(FILES),
                ignore_patterns=list(STATE),
            )
        except hub_errors() as error:
            raise UploadFailed(reason_of(error)) from error


def open_repository(params: SftParams | ExportParams, folder: str) -> Repository:
    """What the parameters name to upload to. `folder`: its name unless they do. Raises InvalidRequest."""
    return Repository.open(params.hub_model_id or folder, private=params.hub_private_repo, token=params.hub_token)


def upload(repository: Repository, folder: Path, message: str, report: Report) -> None:
    """Upload, and tell what came of it. `message`: of the commit."""
    try:
        repository.upload(folder, message)
    except UploadFailed as failed:
        report.message(f"{folder.name} is here, but could not be uploaded to {repository.url}: {failed}", level="warn")
    else:
        report.message(f"Uploaded {folder.name} to {repository.url}.")


class Uploads:
    """Uploads checkpoints while the training goes on: one at a time, and the newest of those that came meanwhile.

    What cannot be uploaded is told, and changes nothing else.
    """

    def __init__(self, repository: Repository, report: Report) -> None:
        self._repository = repository
        self._report = report
        self._lock = threading.Lock()
        self._waiting: tuple[Path, str] | None = None
        self._running: Path | None = None
        self._thread: threading.Thread | None = None

    def add(self, folder: Path, message: str) -> None:
        """`message`: of the commit."""
        with self._lock:
            self._waiting = folder, message
            if self._running is None:
                self._running = folder
                self._thread = threading.Thread(target=self._work, name="upload", daemon=True)
                self._thread.start()

    def needs(self, folder: Path) -> bool:
        """Whether the folder has to stay where it is."""
        with self._lock:
            return folder == self._running or (self._waiting is not None and folder == self._waiting[0])

    def finish(self) -> None:
        """Wait until all is uploaded, or could not be."""
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._waiting is None:
                    self._running = None
                    return
                (folder, message), self._waiting = self._waiting, None
                self._running = folder
            upload(self._repository, folder, message, self._report)
