"""Which embeddings are trained, with train_type trainable_tokens. An addition to the reference's parameters."""

from engines.params.base import Integers, Params


class TrainableTokensParams(Params):
    """Single tokens: their embeddings are trained and nothing else."""

    trainable_token_indices: Integers = ()
    """Ids of the tokens whose embeddings are trained, with train_type trainable_tokens."""
