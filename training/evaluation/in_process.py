"""A model in this process, on our own engine: continuous batching, and the logprobs of a prompt in one pass."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engines.adapters.source import fetch_adapter, name_adapters
from engines.checkpoint.loading import load_eos_token_ids, load_tokenizer
from engines.errors import InvalidRequest, TuneserveError
from engines.pt.config import PtConfig
from engines.pt.core import EngineCore
from engines.pt.runner import ModelRunner
from engines.types import GenerationRequest, Sampling, TokenLogprob
from training.evaluation.asking import Scored, Told, ToWrite, cut
from training.params.eval import EvalParams

ADAPTER = "measured@1"
AT_ONCE = 32
"""Questions that the engine has at a time, unless somebody says."""


class EngineModel:
    """See `Model`. The tokenizer is the model's own, as transformers has it."""

    def __init__(self, params: EvalParams, told: Told, checkpoint: Callable[[], None]) -> None:
        """`checkpoint` is called between two steps of the engine. Raises UnsupportedModel, InvalidAdapter,
        InvalidRequest."""
        assert params.model is not None, "refused without"
        source: dict[str, Any] = {"revision": params.model_revision, "token": params.hub_token}
        adapters = [fetch_adapter(one, token=params.hub_token) for one in name_adapters(params.adapters).values()]
        if len(adapters) > 1:
            raise InvalidRequest("one at a time is measured", param="adapters")
        config = PtConfig(
            model=params.model,
            **source,
            dtype=params.torch_dtype,
            max_model_len=params.max_model_len,
            max_num_seqs=params.eval_num_proc or AT_ONCE,
            max_loras=len(adapters),
            max_lora_rank=params.max_lora_rank,
            kv_cache_memory=params.kv_cache_memory,
            kv_cache_dtype=params.kv_cache_dtype,
            threads=params.threads,
            seed=params.seed,
        )
        self.tokenizer = load_tokenizer(params.model, **source)
        eos = load_eos_token_ids(params.model, **source)
        self._core = EngineCore(ModelRunner(config), config, eos, None, lambda _: b"")
        self._adapter = self._load(adapters[0]) if adapters else None
        self._told, self._checkpoint = told, checkpoint
        self.max_length = self._core.runner.max_model_len
        self.end_token_id = int(self.tokenizer.eos_token_id)
        bos = self.tokenizer.bos_token_id
        self.prefix_token_id = self.end_token_id if bos is None else int(bos)

    def _load(self, folder: Path) -> str:
        self._core.adapters.load(ADAPTER, folder, pinned=False)
        return ADAPTER

    def encode(self, text: str, *, add_special_tokens: bool | None = None) -> list[int]:
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and text.startswith(self.tokenizer.decode([self.prefix_token_id])):
            given = {"add_special_tokens": False}
        ids: list[int] = self.tokenizer.encode(text, **given)
        return ids

    def end_text(self) -> str:
        return str(self.tokenizer.decode([self.end_token_id]))

    def chat(self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                list(messages),
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def score(self, texts: Sequence[tuple[Sequence[int], int]]) -> list[Scored]:
        sampling = Sampling(max_new_tokens=0, prompt_logprobs=0)
        for number, (ids, _) in enumerate(texts):
            self._add(str(number), ids, sampling)
        found: dict[int, Scored] = {}
        for id, output in self._outputs():
            if output.prompt_logprobs is not None:
                count = texts[int(id)][1]
                found[int(id)] = _scored(output.prompt_logprobs[len(output.prompt_logprobs) - count :])
                self._told(len(found), len(texts))
        return [found[number] for number in range(len(texts))]

    def write(self, asked: Sequence[ToWrite]) -> list[str]:
        for number, one in enumerate(asked):
            self._add(str(number), one.prompt_ids, Sampling(max_new_tokens=one.max_tokens, **one.sampling))
        tokens: list[list[int]] = [[] for _ in asked]
        texts: dict[int, str] = {}
        for id, output in self._outputs():
            number = int(id)
            tokens[number] += output.token_ids
            text, stopped = cut(self._text(tokens[number]), asked[number].stops)
            if stopped:
                self._core.requests.abort(id)
            if stopped or output.finish_reason is not None:
                texts[number] = text
                self._told(len(texts), len(asked))
        return [texts[number] for number in range(len(asked))]

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _add(self, id: str, ids: Sequence[int], sampling: Sampling) -> None:
        self._core.add(GenerationRequest(request_id=id, prompt_ids=list(ids), sampling=sampling, adapter=self._adapter))

    def _outputs(self) -> Any:
        """What the engine makes, until all requests have ended. Raises TuneserveError."""
        try:
            while self._core.busy:
                self._checkpoint()
                report = self._core.step()
                for _, failure in report.errors:
                    raise failure
                yield from report.outputs
        finally:
            self._core.requests.abort_all()

    def close(self) -> None:
        self._core.requests.abort_all()


def _scored(logprobs: Sequence[TokenLogprob | None]) -> Scored:
    told = [each for each in logprobs if each is not None]
    if len(told) < len(logprobs):
        raise TuneserveError("nothing comes before the first token of a text, so that it has no logprob")
    return Scored(logprob=sum(each.logprob for each in told), greedy=all(each.rank == 1 for each in told))
