"""Rows that are encoded when they are asked for."""

import json
import random
from typing import Any

from torch.utils.data import Dataset

from training.data.encode import Encoded, Encoder, TooLong
from training.data.problems import BadData, BadRow
from training.data.sources import Param
from training.params.sft import SftParams


class LazyDataset(Dataset):  # type: ignore[misc]  # torch is untyped here
    """A row that cannot be used is replaced by the next one. A row that makes several samples (see `encode`) gives one
    of them, drawn anew each time."""

    def __init__(self, rows: Any, encoder: Encoder, param: Param, params: SftParams) -> None:
        """`rows` has the columns `row`, JSON text, and `place`."""
        self._rows = rows
        self._encoder = encoder
        self._param = param
        self._strict = params.strict
        self._random = random.Random(params.data_seed)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Encoded:
        if not 0 <= position < len(self):
            raise IndexError(position)
        problem = ""
        for tried in range(len(self)):
            row = self._rows[(position + tried) % len(self)]
            try:
                return self._random.choice(self._encoder.encode(json.loads(row["row"])))
            except BadRow as error:
                problem = f"{row['place']}: {error}"
                if self._strict and not isinstance(error, TooLong):
                    raise BadData(problem, param=self._param) from error
        raise BadData(f"no row can be used. {problem}", param=self._param)
