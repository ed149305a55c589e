"""Which data sets, and how to read them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from engines.params.about import EXPORT, INFER, SELF_COGNITION, THE_SERVER, TRAINING, About
from engines.params.base import Params, Strings


class DataParams(Params):
    """Which data sets, and how to read them."""

    starred: ClassVar = frozenset(
        {"dataset", "val_dataset", "split_dataset_ratio", "dataset_num_proc", "streaming", "model_name", "model_author"}
    )

    dataset: Annotated[
        Strings,
        About(TRAINING + EXPORT + INFER, prepares=True, names="data", not_in_fine_tuning="say it in training_file"),
    ] = ()
    """Training data: files (jsonl, json, csv, tsv, txt, parquet, also compressed by gzip), folders or hub ids, several
    separated by spaces. Each may go on with `:NAME`, a subset or a split (several by slashes), and `#N`, to take N
    samples of it: `my/data:en/train_sft#500`."""
    val_dataset: Annotated[
        Strings, About(TRAINING + INFER, prepares=True, names="data", not_in_fine_tuning="say it in validation_file")
    ] = ()
    """Validation data, written as `dataset` is. Where none is given, a part of the training data is set aside."""
    split_dataset_ratio: Annotated[float, About(TRAINING + INFER, prepares=True)] = Field(0.01, ge=0, le=1)
    """The part of the training data to set aside for validation where `val_dataset` is not given; 0 sets none aside."""
    data_seed: Annotated[int, About(TRAINING + EXPORT + INFER, trainer=True, prepares=True)] = Field(42, ge=0)
    """Seed of everything random about data: sampling, splitting, shuffling."""
    dataset_num_proc: Annotated[int, About(TRAINING, processes=True)] = Field(1, ge=1)
    """Processes that prepare the data."""
    streaming: Annotated[
        bool, About(TRAINING, prepares=True, not_in_fine_tuning="the file is read whole before the job trains")
    ] = False
    """Read the data while training instead of before it. `max_steps` must then be given, as the length is unknown."""
    enable_cache: Annotated[bool, About(TRAINING, not_in_fine_tuning=THE_SERVER)] = False
    """Keep prepared data on disk, and use it again where neither data nor preparation changed."""
    download_mode: Annotated[
        Literal["reuse_dataset_if_exists", "force_redownload"], About(TRAINING + INFER, not_in_fine_tuning=THE_SERVER)
    ] = "reuse_dataset_if_exists"
    """Whether a data set that was downloaded before is used again or downloaded anew."""
    strict: Annotated[
        bool,
        About(
            TRAINING + EXPORT + INFER,
            prepares=True,
            not_in_fine_tuning="a line that cannot be used fails the job",
        ),
    ] = False
    """Stop at the first row that cannot be used. Without it such rows are left out."""
    model_name: Annotated[
        Annotated[Strings, Field(max_length=2)] | None,
        About(TRAINING + INFER, prepares=True, text=True, not_in_fine_tuning=SELF_COGNITION),
    ] = None
    """The name the model is to know itself by, in Chinese and in English. For self-cognition data only."""
    model_author: Annotated[
        Annotated[Strings, Field(max_length=2)] | None,
        About(TRAINING + INFER, prepares=True, text=True, not_in_fine_tuning=SELF_COGNITION),
    ] = None
    """Who the model is to say made it, in Chinese and in English. For self-cognition data only."""
    custom_dataset_info: Annotated[Strings, About(TRAINING + INFER, prepares=True, path=True)] = ()
    """JSON files that describe further data sets: their names, sources and columns."""
