"""Run the model: load it, prove that it can be run this way, and compute one step after another.

A step is one forward pass of the transformers model over all tokens of all its sequences, as one flat row. The logits
are computed only where someone asks for them.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from engines.checkpoint import loading
from engines.checkpoint.heads import head_of, is_classifier
from engines.checkpoint.size import bytes_of_weights
from engines.errors import UnsupportedModel
from engines.process.resources import GIB, kv_cache_bytes
from engines.pt import check, families
from engines.pt.config import PtConfig
from engines.pt.decoder import NativeDecoder, Rows, reason_against
from engines.pt.kernels import build
from engines.pt.layers import attention, rope
from engines.pt.layers.attention import Attend, KVCache, LayerShape, StepContext
from engines.pt.layers.eight_bits import EightBits, kept_as
from engines.pt.layers.heap import large_tensors_apart
from engines.pt.layers.linear import pack
from engines.pt.layers.quantized_linear import QuantizedLinear
from engines.pt.layers.weights import write_weights
from engines.pt.lora.slots import LoraEmbedding, LoraLinear, LoraSlots, watching_calls
from engines.sampler.native import SamplingKernel
from engines.types import Head

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one sequence that a step computes."""

    token_ids: list[int]
    start: int
    """Position of the first token in the sequence."""
    blocks: list[int]
    wants: int
    """Number of its last tokens after which logits are wanted."""
    slot: int = -1
    """Slot of the sequence's adapter; -1: none."""


@dataclass(frozen=True, slots=True)
class StepResult:
    logits: Tensor  # (wanted rows, vocab_size, or labels of the head), in the order of the segments
    hidden: Tensor  # (wanted rows, hidden_size): what the logits are computed from


class ModelRunner:
    """The model on its device, with its paged cache."""

    @large_tensors_apart()
    def __init__(self, config: PtConfig) -> None:
        """Load and check the model. Raises UnsupportedModel where it cannot be run as asked, and says why."""
        if config.threads:
            torch.set_num_threads(config.threads)
        attention.register()
        hf_config = loading.load_config(config.model, revision=config.revision, token=config.token)
        _refuse_other_architectures(hf_config)
        text_config = hf_config.get_text_config()
        limit = getattr(text_config, "max_position_embeddings", None)
        asked = config.max_model_len
        rope.scale(text_config, config.rope_scaling, asked)
        if asked is not None and limit is not None and asked > limit and config.rope_scaling is None:
            message = f"max_model_len {asked} is beyond the model's {limit} positions; set rope_scaling to go further"
            raise UnsupportedModel(message, param="max_model_len")
        self.max_model_len: int = asked or limit or 2048
        device_map = config.device_map or ("cuda" if torch.cuda.is_available() else "cpu")
        if str(device_map).startswith("cuda") and not torch.cuda.is_available():
            raise UnsupportedModel(f"device_map is {device_map}, but there is no CUDA device here", param="device_map")
        on_cpu = device_map == "cpu" or not torch.cuda.is_available()
        dtype = loading.choose_dtype(config.dtype, hf_config, "cpu" if on_cpu else "cuda")
        classifies = config.task_type == "seq_cls" or is_classifier(hf_config)
        self.model = loading.load_model(
            config.model,
            config=hf_config,
            dtype=dtype,
            device_map="cpu" if on_cpu and device_map == "auto" else device_map,
            task_type="seq_cls" if classifies else "causal_lm",
            own_head=classifies,
            # The reference for paged attention: the others leave out what they cannot do, as sdpa the softcap.
            attn_implementation="eager",
            revision=config.revision,
            token=config.token,
            quantization=config.quantization,
            keep_integers=on_cpu,
        )
        families.leave_images(self.model)
        rope.freeze(self.model, self.max_model_len)
        self.device: torch.device = self.model.get_input_embeddings().weight.device
        self.dtype = dtype
        self.vocab_size: int = text_config.vocab_size
        self.head: Head | None = head_of(hf_config) if classifies else None
        """None: a causal language model."""
        self._hidden: Tensor | None = None
        self._decoder: NativeDecoder | None = None
        """None: transformers' modules compute the steps."""
        self._reason: str | None = None
        """Why they do."""
        block_size = config.block_size or (attention.FLASH_BLOCK if self.device.type == "cuda" else 32)
        weights = bytes_of_weights(self.model)
        with torch.inference_mode():
            layers = self._convert(config, block_size)
        self.cache = KVCache(layers, self._num_blocks(config, weights, layers, block_size), block_size)
        capacity = self.cache.num_blocks * block_size
        if capacity < self.max_model_len:
            self._shorten(config, capacity)
        log.info(
            "%s in %s on %s: attention %s, cache for %d tokens in blocks of %d in %s, context of %d",
            config.model,
            str(dtype).removeprefix("torch."),
            self.device,
            getattr(self._attend, "__name__", type(self._attend).__name__),
            capacity,
            block_size,
            self.cache.dtype,
            self.max_model_len,
        )

    def _convert(self, config: PtConfig, block_size: int) -> dict[int, LayerShape]:
        """Switch the model to packed weights and paged attention, and check that it computes what it did before."""
        on_cpu = self.device.type == "cpu"
        plan = check.plan(self.vocab_size, check.BLOCK_SIZE if on_cpu else block_size, self.max_model_len)
        expected = check.expected(self.model, plan, classifies=self.head is not None)
        self._library = build.load() if self.device.type == "cpu" else None
        self.sampling = None if self._library is None else SamplingKernel(self._library)
        self._attn_impl = config.attn_impl
        self._pack()
        with watching_calls(self.model) as calls:
            layers = self._probe()
        self.lora = LoraSlots(
            self.model,
            calls,
            num_tokens=len(self._probe_ids()),
            num_slots=config.max_loras,
            max_rank=config.max_lora_rank,
            dtype=self.dtype,
            library=self._library,
        )
        kept = kept_as(config.kv_cache_dtype)
        kept_layers = {number: replace(shape, kept=kept) for number, shape in layers.items()}
        self._attend: Attend = attention.choose(config.attn_impl, kept_layers, self._library, block_size)
        self._check(plan, expected, layers, kept)
        return kept_layers

    def _check(
        self, plan: check.Plan, expected: check.Expected, layers: dict[int, LayerShape], kept: EightBits | None
    ) -> None:
        """Have the model computed by the kernel, where that is right, or else by its modules, and keys and values kept
        in 8 bits, where these are enough. Raises UnsupportedModel where they are not."""
        narrowed = layers
        if any(shape.window > plan.window for shape in layers.values()):
            with check.narrow_windows(self.model, plan.window):
                narrowed = self._probe()
        self._attend_by(attention.NAME)
        self._shapes = narrowed
        self._decoder = self._native_decoder()
        problem = self._problem(plan, expected)
        if problem is not None and self._decoder is not None:
            log.warning("%s in the kernel: it is computed by transformers' modules, which is slower", problem)
            self._decoder = None
            self._reason = problem
            problem = self._problem(plan, expected)
        if problem is not None:
            raise UnsupportedModel(f"{problem}: this engine cannot run it")
        if kept is not None:
            self._keep(kept, narrowed)
            problem = self._problem(plan, expected.rounded())
            if problem is not None:
                message = f"{problem} with keys and values in {kept.name}: leave kv_cache_dtype out"
                raise UnsupportedModel(message, param="kv_cache_dtype")
        if kept is not None or narrowed != layers:
            self._keep(kept, layers)

    def _keep(self, kept: EightBits | None, layers: dict[int, LayerShape]) -> None:
        """Compute with a cache of these layers from now on."""
        self._shapes = {number: replace(shape, kept=kept) for number, shape in layers.items()}
        if self._decoder is not None:
            self._decoder = self._native_decoder()

    def _problem(self, plan: check.Plan, expected: check.Expected) -> str | None:
        """What is wrong with how it computes what is expected."""
        cache = KVCache(self._shapes, plan.num_blocks, plan.block_size)
        cache.fill(check.JUNK)

        def compute(step: list[check.Piece]) -> list[Tensor]:
            ids, tables = plan.ids, plan.tables
            segments = [Segment(ids[p.sequence][p.start : p.end], p.start, tables[p.sequence], 1) for p in step]
            result = self._forward(segments, cache)
            return list(result.logits if self.head is None else result.hidden)

        return check.problem(self._name, compute, plan, expected)

    def _pack(self) -> None:
        self._reason = self._reason_against_native()
        dots = self._reason is None and self.dtype is torch.bfloat16
        without = sum(vars(module).get("integers", True) is None for module in self.model.modules())
        pack(self.model, self._library, head=self._head(), dots=dots)
        self._tell_integers(without)
        if self.head is None:
            self._hook = self._head().register_forward_pre_hook(self._keep_hidden)

    def _tell_integers(self, without: int) -> None:
        """`without`: layers whose integers the kernel has no place for."""
        kept = [module for module in self.model.modules() if type(module) is QuantizedLinear]
        if kept:
            bits = " and ".join(map(str, sorted({layer.grid.bits for layer in kept})))
            size = sum(layer.nbytes for layer in kept) / GIB
            log.info("%d linear layers stay integers of %s bits, and take %.2f GiB", len(kept), bits, size)
        if without:
            log.info("%d linear layers are unpacked: the kernel has no place for their integers", without)

    def _reason_against_native(self) -> str | None:
        """Why `decoder.py` does not compute the model, which is not packed yet; None: it does."""
        if self._library is None:
            return "there is no kernel"
        if self._attn_impl is not None:
            return f"attn_impl is {self._attn_impl}"
        if self.dtype is not torch.float32 and not (self.dtype is torch.bfloat16 and self._library.has_dots()):
            return f"there is no kernel for {self.dtype}"
        return reason_against(self.model)

    def _native_decoder(self) -> NativeDecoder | None:
        if self._reason is None and self._library is not None:
            try:
                return NativeDecoder(self.model, self._shapes, self.lora, self._library)
            except ValueError as error:
                self._reason = str(error)
        log.info("%s is computed by transformers' modules: %s", self._name, self._reason)
        return None

    def _head(self) -> Any:
        return self.model.get_output_embeddings() if self.head is None else self.model.score

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Take other weights in the place of a language model's own; no slot has ever held an adapter.

        `weights`: see `write_weights`. What the cache holds is not theirs. Raises EngineFailure.
        """
        self._hook.remove()
        with torch.inference_mode():
            write_weights(self.model, weights, self.dtype)
            self._pack()
            self._decoder = self._native_decoder()

    def step(self, segments: list[Segment]) -> StepResult:
        """Compute all tokens of `segments`, store their keys and values, return the logits asked for."""
        with torch.inference_mode():
            return self._forward(segments, self.cache)

    def _forward(self, segments: list[Segment], cache: KVCache) -> StepResult:
        ids: list[int] = []
        positions: list[int] = []
        slot_mapping: list[int] = []
        rows: list[int] = []
        starts = [0]
        size = cache.block_size
        # Rows with the same adapter are neighbours: what takes some of them at once then meets few adapters.
        order = sorted(range(len(segments)), key=lambda number: segments[number].slot)
        ends = [0] * len(segments)
        given, segments = segments, [segments[number] for number in order]
        for row, segment in enumerate(segments):
            span = range(segment.start, segment.start + len(segment.token_ids))
            ids += segment.token_ids
            positions += span
            slot_mapping += [segment.blocks[p // size] * size + p % size for p in span]
            rows += [row] * len(span)
            starts.append(len(ids))
            ends[order[row]] = len(ids)
        wanted = [row for segment, end in zip(given, ends, strict=True) for row in range(end - segment.wants, end)]
        width = max(len(segment.blocks) for segment in segments)
        block_table = [segment.blocks + [0] * (width - len(segment.blocks)) for segment in segments]
        if self._decoder is not None:
            with self.lora.using(*self._slots_of(segments, wanted)):
                flat = Rows(ids, positions, slot_mapping, rows, block_table, wanted)
                return self._native_step(self._decoder, flat, cache)
        position_ids = torch.tensor(positions, device=self.device)
        step = StepContext(
            cache,
            self._attend,
            torch.tensor(slot_mapping, device=self.device),
            torch.tensor(rows, dtype=torch.int32, device=self.device),
            (position_ids + 1).int(),
            torch.tensor(block_table, dtype=torch.int32, device=self.device),
            starts,
        )
        count = len(wanted)
        wanted = wanted or [0]  # the model needs a row to work on even where nobody wants one
        keep = torch.tensor(wanted, device=self.device)
        input_ids = torch.tensor([ids], device=self.device)
        with self.lora.using(*self._slots_of(segments, wanted)):
            logits, hidden = self._compute(keep, input_ids=input_ids, position_ids=position_ids[None], step=step)
        return StepResult(logits[0, :count], hidden[0, :count])

    def _native_step(self, decoder: NativeDecoder, rows: Rows, cache: KVCache) -> StepResult:
        """The step by `decoder.py`; what adapters do to the embeddings and the head is left to their modules."""
        adapted, embedded, own_head = self.lora.rows, None, False
        if adapted is not None:
            entrance, head = self.model.get_input_embeddings(), self.model.get_output_embeddings()
            own_head = isinstance(head, LoraLinear)
            if isinstance(entrance, LoraEmbedding):
                embedded = entrance(torch.tensor(rows.ids)).float().contiguous()
        with_logits = self.head is None and not own_head
        logits, hidden = decoder.step(rows, cache, adapted, embedded, with_logits=with_logits)
        if own_head:
            logits = decoder.finish(self._head()(hidden))
        elif self.head is not None:
            logits = self._head()(hidden)
        return StepResult(logits, hidden)

    def _compute(self, keep: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Logits (1, rows, vocab_size or labels) and hidden states (1, rows, hidden_size) of the rows in `keep`."""
        if self.head is None:
            logits = self.model(**inputs, use_cache=False, logits_to_keep=keep).logits
            assert self._hidden is not None, "the head has run"
            return logits, self._hidden
        hidden = self.model.base_model(**inputs, use_cache=False).last_hidden_state[:, keep]
        return self.model.score(hidden), hidden

    def _slots_of(self, segments: list[Segment], wanted: list[int]) -> tuple[Tensor | None, Tensor | None]:
        """The adapters' slots of all tokens and of the wanted ones; None where nobody uses one."""
        if all(segment.slot < 0 for segment in segments):
            return None, None
        slots = torch.tensor([segment.slot for segment in segments for _ in segment.token_ids], dtype=torch.int32)
        return slots.to(self.device), slots[wanted].to(self.device)

    def _keep_hidden(self, head: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
        self._hidden = args[0]

    def _probe_ids(self) -> list[int]:
        """Eleven tokens from all over the vocabulary."""
        return [(i * 7919 + 13) % self.vocab_size for i in range(11)]

    def _probe(self) -> dict[int, LayerShape]:
        """Run the model once to see what each layer's cache must hold."""
        layers: dict[int, LayerShape] = {}
        ids = torch.tensor([self._probe_ids()], device=self.device)
        positions = torch.arange(ids.shape[1], device=self.device)[None]
        try:
            self._attend_by(attention.PROBE)
            model = self.model if self.head is None else self.model.base_model
            model(input_ids=ids, position_ids=positions, use_cache=False, step=layers)
        except UnsupportedModel:
            raise
        except Exception as error:
            raise UnsupportedModel(f"{self._name} fails on flat batches: {error}") from error
        expected = self.model.config.get_text_config().num_hidden_layers
        if len(layers) != expected:
            message = f"only {len(layers)} of the {expected} layers of {self._name} use the attention interface"
            raise UnsupportedModel(message)
        if self._reason is None:  # its layers' results are float32, which the cache need not be
            layers = {number: replace(shape, dtype=self.dtype) for number, shape in layers.items()}
        return layers

    def _attend_by(self, implementation: str) -> None:
        text = families.text_of(self.model) if families.has_images(self.model) else self.model
        text.set_attn_implementation(implementation)

    @property
    def _name(self) -> str:
        return type(self.model).__name__

    def _num_blocks(self, config: PtConfig, weights: int, layers: dict[int, LayerShape], block_size: int) -> int:
        block_bytes = block_size * sum(shape.bytes_per_token for shape in layers.values())
        if config.kv_cache_memory is None and self.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.device)
            memory: int = int(total * config.gpu_memory_utilization) - (total - free)
        else:
            memory = kv_cache_bytes(config.kv_cache_memory, weights=weights)
        blocks = memory // block_bytes
        if blocks < 1:
            message = f"{memory / GIB:.3g} GiB for the cache do not hold one block of {block_bytes / GIB:.3g} GiB"
            raise UnsupportedModel(message, param="kv_cache_memory")
        # More than every sequence at full length is of no use.
        return min(blocks, config.max_num_seqs * -(-self.max_model_len // block_size))

    def _shorten(self, config: PtConfig, capacity: int) -> None:
        if config.max_model_len is not None:
            message = f"the cache holds {capacity} tokens, less than the max_model_len of {config.max_model_len}"
            raise UnsupportedModel(f"{message}; set kv_cache_memory", param="max_model_len")
        log.warning("context shortened from %d to the %d tokens that the cache holds", self.max_model_len, capacity)
        self.max_model_len = capacity


def _refuse_other_architectures(config: Any) -> None:
    text_config = config.get_text_config()
    if config.is_encoder_decoder:
        raise UnsupportedModel(f"{config.model_type} is an encoder-decoder: this engine runs decoders")
    kinds = set(getattr(text_config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    if kinds:
        raise UnsupportedModel(
            f"{config.model_type} has layers of kind {', '.join(sorted(kinds))}: "
            "this engine runs layers of attention only"
        )
