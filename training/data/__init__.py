"""The data that a model is trained on: found, read, checked, and turned into token ids."""

from training.data.prepare import Datasets, build

__all__ = ["Datasets", "build"]
