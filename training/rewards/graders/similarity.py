"""How much two texts have in common, from 0 to 1, each metric by the library that is known for it."""

from collections.abc import Callable
from typing import Any

from engines.errors import UnsupportedParameter
from training.rewards.graders.errors import GradeError

MAX_TEXT = 1 << 15
"""Characters of a text that is compared: the time of some metrics grows with the product of both lengths."""
COSINE = "cosine"
"""The one metric that is not computed here: a model makes the embeddings."""
ROUGE_N = ("rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5")
WITHOUT_WORDNET = "meteor needs WordNet, which is not on this machine: python -m nltk.downloader wordnet"


def check_metric(name: str, *, embeds: bool = False) -> None:
    """`embeds`: whether there is a model that makes embeddings. Raises UnsupportedParameter."""
    if name == COSINE and not embeds:
        reason = "cosine compares embeddings, and is for evals only, in OpenAI's API too: choose another"
        raise UnsupportedParameter(f"evaluation_metric: {reason}.", param="evaluation_metric")
    if name == "meteor" and _wordnet() is None:
        raise UnsupportedParameter(f"evaluation_metric: {WITHOUT_WORDNET}.", param="evaluation_metric")


def similarity(name: str, text: str, reference: str) -> float:
    """From 0 to 1. Raises GradeError for texts that would take long."""
    if max(len(text), len(reference)) > MAX_TEXT:
        raise GradeError("truncated_observation_error", f"a text is longer than {MAX_TEXT} characters")
    if name in ROUGE_N:
        return _rouge_n(int(name[-1]), text, reference)
    return METRICS[name](text, reference)


def _fuzzy_match(text: str, reference: str) -> float:
    """The part of both texts that need not be inserted or deleted to make one of the other."""
    from rapidfuzz import fuzz

    return fuzz.ratio(text, reference) / 100


def _bleu(text: str, reference: str) -> float:
    """BLEU (Papineni et al. 2002) of one sentence, as sacrebleu has it (Post 2018)."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(text, [reference]).score) / 100


def _gleu(text: str, reference: str) -> float:
    """Google's BLEU (Wu et al. 2016, arXiv:1609.08144) over the words between white space."""
    from nltk.translate.gleu_score import sentence_gleu

    return float(sentence_gleu([reference.split()], text.split())) if text.split() else 0.0


def _meteor(text: str, reference: str) -> float:
    """METEOR (Banerjee and Lavie 2005) over the words between white space."""
    from nltk.translate.meteor_score import meteor_score

    wordnet = _wordnet()
    if wordnet is None:
        raise GradeError("other_error", WITHOUT_WORDNET)
    return float(meteor_score([reference.split()], text.split(), wordnet=wordnet))


def _rouge_n(n: int, text: str, reference: str) -> float:
    """ROUGE-N's F-measure (Lin 2004)."""
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer([f"rouge{n}"]).score(reference, text)[f"rouge{n}"].fmeasure)


def _rouge_l(text: str, reference: str) -> float:
    """ROUGE-L's F-measure (Lin 2004): rouge-score's words, and rapidfuzz's longest common subsequence, as rouge-score's
    own takes seconds for long texts."""
    from rapidfuzz.distance import LCSseq
    from rouge_score.tokenizers import DefaultTokenizer

    tokenizer = DefaultTokenizer()
    words, others = tokenizer.tokenize(text), tokenizer.tokenize(reference)
    common = LCSseq.similarity(words, others)
    return 2 * common / (len(words) + len(others)) if common else 0.0


METRICS: dict[str, Callable[[str, str], float]] = {
    "fuzzy_match": _fuzzy_match,
    "bleu": _bleu,
    "gleu": _gleu,
    "meteor": _meteor,
    "rouge_l": _rouge_l,
}


def _wordnet() -> Any | None:
    """NLTK's WordNet, where its files are on this machine."""
    from nltk.corpus import wordnet

    try:
        wordnet.ensure_loaded()
    except LookupError:
        return None
    return wordnet
