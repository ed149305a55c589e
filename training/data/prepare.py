"""The data sets of a job, as its trainer takes them: read, checked, split, encoded, packed."""

import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import uuid4

from engines.checkpoint.loading import load_config
from engines.errors import InvalidRequest
from training.data.aside import nothing_aside, rows_aside
from training.data.cache import cached_data, kept
from training.data.columns import read
from training.data.encode import Encoded, Encoder, TooLong
from training.data.once import once
from training.data.packing import best_fit, packed
from training.data.problems import BadData, BadRow
from training.data.rows import Account, usable
from training.data.samples import Classified, Learns, is_plain
from training.data.saved import Made
from training.data.sources import Param, Source, sources
from training.data.told import told, told_of_first
from training.params.evaluation import given_for_evaluation
from training.params.sft import SftParams
from training.processes import Processes

COLUMNS: dict[Learns, tuple[str, ...]] = {
    "answers": ("input_ids", "labels"),
    "text": ("input_ids", "labels"),
    "pairs": ("prompt_ids", "chosen_ids", "rejected_ids", "margin"),
    "labels": ("prompt_ids", "completion_ids", "label"),
    "prompts": ("prompt_ids", "completion_ids", "item"),
    "classes": ("input_ids", "label"),
}
"""What the trainers of each kind read. Of packed rows also `seq_lengths`, the tokens of each sample in it; of answers
whose parts weigh differently also `loss_scale`, a number for each token.

`margin`: by how much the chosen answer is better, 0 where the set does not say; `label`: whether an answer is a good
one, or a text's class, classes or value; `item`: the row as JSON text. A prompt's `completion_ids` may be empty.
"""
FORMS = {"label": "bool", "margin": "float64", "item": "large_string", "loss_scale": "numbers"}
"""What columns hold that do not hold a list of ids."""
NOTHING: dict[str, Any] = {"list": [], "numbers": [], "large_string": "", "bool": False, "int64": 0, "float64": 0.0}
"""Values of rows that cannot be used, by the form of their column."""


@dataclass(frozen=True, slots=True)
class Datasets:
    train: Any
    """A `datasets.Dataset`; a `LazyDataset` with `lazy_tokenize`; a `Stream` with `streaming`."""
    evaluation: Any | None
    """A `datasets.Dataset` or a `LazyDataset`; None where there is none."""
    notes: tuple[str, ...] = ()
    """What the user should know before training: rows that were left out."""
    notes_later: Callable[[], list[str]] = list
    """Notes on rows that were read while training. All processes of the training must call it together."""


def build(params: SftParams, tokenizer: Any, *, learns: Learns) -> Datasets:
    """Raises BadData where the data cannot be used, InvalidRequest where the parameters contradict one another."""
    _check(params, learns)
    train, evaluation = sources(params, "dataset"), sources(params, "val_dataset")
    if not train:
        raise BadData("there is no data to train on: name a file, a folder or a data set of the hub", param="dataset")
    limit = longest(params, tokenizer)
    if params.packing and limit is None:
        raise InvalidRequest("packing needs it: the model does not say how much it takes", param="max_length")
    encoder = Encoder(params, tokenizer, learns, limit)

    if params.streaming:
        from training.data.stream import Stream

        stream = Stream(train, params, encoder)
        _, held, notes = _prepared(params, tokenizer, encoder, [], evaluation) if evaluation else (None, None, [])
        notes = [*told_of_first(_first_rows(train, params, learns), encoder), *notes]
        return Datasets(stream, held, tuple(notes), stream.notes)
    made, held, notes = _prepared(params, tokenizer, encoder, train, evaluation)
    return Datasets(made, held, tuple(notes))


def _prepared(
    params: SftParams, tokenizer: Any, encoder: Encoder, train: Sequence[Source], evaluation: Sequence[Source]
) -> Made:
    """Made by the first process of this machine for all; samples that are encoded when needed, by each for itself."""

    def make() -> Made:
        return _Preparation(params, encoder).run(train, evaluation)

    def make_or_take() -> Made:
        return kept(params, encoder, tokenizer, [*train, *evaluation], make) if params.enable_cache else make()

    return make() if params.lazy_tokenize else once(make_or_take, cached_data(), Processes.of_environment())


def _check(params: SftParams, learns: Learns) -> None:
    if params.packing and learns not in ("answers", "text"):
        raise InvalidRequest("only what is learned token by token can be packed", param="packing")
    if params.packing and params.lazy_tokenize:
        raise InvalidRequest(
            "packing needs to know every length beforehand: choose one of the two", param="lazy_tokenize"
        )
    if params.streaming and params.lazy_tokenize:
        raise InvalidRequest("what is streamed is encoded when it is read anyway", param="lazy_tokenize")
    if params.enable_cache and (params.streaming or params.lazy_tokenize):
        raise InvalidRequest("nothing is prepared beforehand that could be kept", param="enable_cache")
    splits = "split_dataset_ratio" in params.model_fields_set and params.split_dataset_ratio > 0
    if params.streaming and splits and not params.val_dataset:
        message = "nothing can be set aside from data of unknown length: name a val_dataset"
        raise InvalidRequest(message, param="split_dataset_ratio")


def longest(params: SftParams, tokenizer: Any) -> int | None:
    """The most tokens of a sample."""
    if params.max_length is not None:
        return params.max_length
    if params.model:
        config = load_config(params.model, revision=params.model_revision, token=params.hub_token)
        limit: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
        if limit is not None:
            return limit
    return tokenizer.model_max_length if tokenizer.model_max_length < 1 << 30 else None


# ---- everything before training


class _Preparation:
    """Keeps what it makes on disk, in a folder that is gone from sight as soon as it is mapped into memory."""

    def __init__(self, params: SftParams, encoder: Encoder) -> None:
        self._params = params
        self._encoder = encoder
        self._learns = encoder.learns
        self._notes: list[str] = []
        self._only_text = True
        """Whether no conversation was met. Found out where `system` was given, which is for those."""
        self._told = False
        """Whether it was said how the training data is learned: the validation data is no other."""
        self._folder = Path()

    def run(self, train: Sequence[Source], evaluation: Sequence[Source]) -> Made:
        import datasets

        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        self._told = not train
        self._folder = Path(tempfile.mkdtemp(prefix="tuneserve-data-"))
        try:
            rows = self._mixed(self._sets(train)) if train else None
            held = datasets.concatenate_datasets(self._sets(evaluation)) if evaluation else None
            if train and self._params.system is not None and self._only_text:
                self._notes.append("system is not used: the data is plain text, and has no messages")
            if rows is not None and held is None:
                rows, held = self._split(rows, repeats=any(source.count is not None for source in train))
            made = None if rows is None else self._made(rows, "dataset")
            other = None if held is None else self._made(held, "val_dataset" if evaluation else "dataset")
            return made, other, self._notes
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _sets(self, found: Sequence[Source]) -> list[Any]:
        """A Dataset for each source: its usable rows as JSON text, and where each row comes from."""
        return [self._source_rows(source) for source in found]

    def _mixed(self, sets: list[Any]) -> Any:
        import datasets

        if self._params.interleave_prob is None:
            return datasets.concatenate_datasets(sets)
        return datasets.interleave_datasets(
            sets,
            probabilities=list(self._params.interleave_prob),
            seed=self._params.data_seed,
            stopping_strategy=self._params.stopping_strategy,
        )

    def _source_rows(self, source: Source) -> Any:
        account = Account()
        usable_rows = usable(source, self._params, self._learns, account)
        count = source.count
        if self._params.streaming:
            usable_rows, count = islice(usable_rows, count), None
        texts = ({"row": json.dumps(row, default=str), "place": place} for place, row in self._looked_at(usable_rows))
        rows = self._written(texts, {"row": "large_string", "place": "string"})
        self._notes.extend(account.told.notes(source.name, self._encoder.reads))
        return rows if count is None else rows.select(_drawn(len(rows), count, self._params.data_seed))

    def _looked_at(self, rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        for place, row in rows:
            if self._params.system is not None and self._only_text:
                self._only_text = is_plain(read(row, self._learns))
            yield place, row

    def _split(self, rows: Any, *, repeats: bool) -> tuple[Any, Any | None]:
        """`repeats`: rows may come several times. None that is set aside is trained on, however often it comes."""
        aside = rows_aside(self._params, len(rows))
        if aside == len(rows):
            raise InvalidRequest("that leaves no row to train on", param="split_dataset_ratio")
        if aside == 0:
            if given_for_evaluation(self._params):
                self._notes.append(nothing_aside(self._params, len(rows)))
            return rows, None
        order = list(range(len(rows)))
        random.Random(self._params.data_seed).shuffle(order)
        learned, held = sorted(order[aside:]), sorted(order[:aside])
        if repeats or self._params.interleave_prob is not None:
            texts = set(rows.select(held)["row"])
            learned = [at for at, text in zip(learned, rows.select(learned)["row"], strict=True) if text not in texts]
            if not learned:
                raise InvalidRequest("every row that is left is also set aside", param="split_dataset_ratio")
        return rows.select(learned), rows.select(held)

    def _made(self, rows: Any, param: Param) -> Any:
        if self._params.lazy_tokenize:
            from training.data.lazy import LazyDataset

            if not self._told:
                self._notes.extend(told_of_first((row["row"] for row in rows), self._encoder))
                self._told = True
            return LazyDataset(rows, self._encoder, param, self._params)
        forms = {name: self._form(name, rows) for name in self._columns()}
        encoded = rows.map(
            _encode_batch,
            batched=True,
            num_proc=self._params.dataset_num_proc if self._params.dataset_num_proc > 1 else None,
            remove_columns=rows.column_names,
            features=_features(forms),
            fn_kwargs={"encoder": self._encoder, "forms": forms},
            load_from_cache_file=False,
            cache_file_name=self._file(),
            new_fingerprint=uuid4().hex,  # nothing asks for it, and to compute it would pickle the tokenizer
            desc="Encoding",
        )
        encoded = self._without_problems(encoded, param, len(rows))
        if not self._params.packing:
            return encoded
        assert self._encoder.max_length is not None
        return self._packed(encoded, self._encoder.max_length)

    def _form(self, column: str, rows: Any) -> str:
        """What a column holds; a class or several, as the first row says."""
        if column == "label" and self._learns == "classes":
            first = read(json.loads(rows[0]["row"]), self._learns)
            several = isinstance(first, Classified) and isinstance(first.label, list)
            return "list" if several else "float64" if self._params.num_labels == 1 else "int64"
        return FORMS.get(column, "list")

    def _without_problems(self, encoded: Any, param: Param, rows: int) -> Any:
        problems: list[str] = list(encoded["problem"])
        if not self._told:
            self._notes.extend(told(encoded["notes"], self._encoder, more=len(encoded) - rows))
            self._told = True
        wrong = [i for i, problem in enumerate(problems) if problem]
        if wrong:
            hard = [problems[i] for i in wrong if not encoded[i]["too_long"]]
            if hard and self._params.strict:
                raise BadData(hard[0], param=param)
            if len(wrong) == len(problems):
                raise BadData(f"no row can be used. {problems[0]}", param=param)
            self._notes.append(f"{len(wrong)} rows were left out, the first because: {problems[wrong[0]]}")
            encoded = encoded.select([i for i, problem in enumerate(problems) if not problem])
        return encoded.select_columns(list(self._columns()))

    def _columns(self) -> tuple[str, ...]:
        return (*COLUMNS[self._learns], *(() if self._encoder.loss_scale is None else ("loss_scale",)))

    def _packed(self, encoded: Any, room: int) -> Any:
        lengths = [len(ids) for ids in encoded["input_ids"]]
        rows = (packed(encoded[position] for position in row) for row in best_fit(lengths, room))
        return self._written(rows, {name: FORMS.get(name, "list") for name in (*self._columns(), "seq_lengths")})

    def _written(self, rows: Iterator[Any], columns: dict[str, str]) -> Any:
        import datasets
        from datasets.arrow_writer import ArrowWriter

        features = datasets.Features({name: _feature(form) for name, form in columns.items()})
        path = self._file()
        with ArrowWriter(path=path, features=features) as writer:
            for row in rows:
                writer.write(row)
            writer.finalize()
        return datasets.Dataset.from_file(path)

    def _file(self) -> str:
        return str(self._folder / f"{len(list(self._folder.iterdir()))}.arrow")


def _drawn(length: int, count: int, seed: int) -> list[int]:
    """Indices of `count` rows drawn at random: every row equally often, but for the remainder."""
    whole, rest = divmod(count, length)
    return [*range(length)] * whole + sorted(random.Random(seed).sample(range(length), rest))


def _encode_batch(batch: dict[str, list[str]], encoder: Encoder, forms: Mapping[str, str]) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {name: [] for name in (*forms, "problem", "too_long", "notes")}
    for row, place in zip(batch["row"], batch["place"], strict=True):
        for sample in _encoded(row, place, encoder, forms):
            for name, values in made.items():
                values.append(sample[name])
    return made


def _encoded(row: str, place: str, encoder: Encoder, forms: Mapping[str, str]) -> list[Encoded]:
    try:
        samples = encoder.encode(json.loads(row))
        if any(isinstance(value, list) != (forms[name] in ("list", "numbers")) for name, value in samples[0].items()):
            raise BadRow("label", "is a list in some rows, and one number in others")
        said = {"problem": "", "too_long": False}
        return [{**sample, **said, "notes": [] if i else encoder.notes} for i, sample in enumerate(samples)]
    except BadRow as error:
        nothing: Encoded = {name: NOTHING[form] for name, form in forms.items()}
        problem = f"{place[:1].upper()}{place[1:]}: {error}"
        return [{**nothing, "problem": problem, "too_long": isinstance(error, TooLong), "notes": []}]


def _features(forms: Mapping[str, str]) -> Any:
    import datasets

    columns = {name: _feature(form) for name, form in forms.items()}
    told_of = {"problem": _feature("string"), "too_long": _feature("bool"), "notes": _feature("strings")}
    return datasets.Features(columns | told_of)


def _feature(form: str) -> Any:
    import datasets

    items = {"list": "int32", "numbers": "float32", "strings": "string"}
    return datasets.List(datasets.Value(items[form])) if form in items else datasets.Value(form)


def _first_rows(found: Sequence[Source], params: SftParams, learns: Learns) -> Iterator[str]:
    """Rows as JSON text, up to the first that is at fault: the training says so itself."""
    with suppress(BadData):
        for source in found:
            for _, row in usable(source, params, learns, Account()):
                yield json.dumps(row, default=str)
