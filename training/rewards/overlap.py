"""How much of an answer is in the one that the data gives: ROUGE and BLEU."""

import re

WORD = re.compile(r"[^\W_\u2e80-\u9fff\uf900-\ufaff]+|[\u2e80-\u9fff\uf900-\ufaff]")
"""A run of letters and digits, or one character of a script that does not space its words."""


def score(answer: str, reference: str) -> dict[str, float]:
    """ROUGE (Lin 2004) and BLEU (Papineni et al. 2002) of one answer, in percent, over the words in lower case."""
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import sentence_bleu

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=_Words())
    rouge = scorer.score(reference, answer)
    words = [" ".join(_Words().tokenize(text)) for text in (answer, reference)]
    return {
        "rouge-1": 100 * rouge["rouge1"].fmeasure,
        "rouge-2": 100 * rouge["rouge2"].fmeasure,
        "rouge-l": 100 * rouge["rougeL"].fmeasure,
        "bleu-4": sentence_bleu(words[0], [words[1]], tokenize="none").score,
    }


class _Words:
    """rouge-score's own tokenizer knows ASCII only."""

    def tokenize(self, text: str) -> list[str]:
        return WORD.findall(text.lower())
