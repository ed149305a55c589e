"""What is trained: all weights, or an adapter, and of what shape."""

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from engines.params.about import TRAINING, About
from engines.params.base import Integers, JsonObject, Params, Strings
from engines.params.model import DType

INIT_WEIGHTS = re.compile(
    r"true|false|gaussian|orthogonal|pissa|pissa_niter_[1-9]\d*|olora|eva|corda|lora-ga|loftq|bat"
)


NO_PARTS = "models of text alone are trained in this version, and have no other parts: leave it out"
SPELLED = {"guassian": "gaussian", "lora_ga": "lora-ga"}
"""As the reference and PEFT write them."""


def _as_text(value: Any) -> Any:
    """YAML and JSON have a word of their own for `true` and `false`."""
    return str(value).lower() if isinstance(value, bool) else value


def _init_weights(name: str) -> str:
    spelled = SPELLED.get(name, name)
    if not INIT_WEIGHTS.fullmatch(spelled):
        others = "orthogonal, pissa, pissa_niter_N (N iterations), olora, eva, corda, lora-ga, loftq or bat"
        raise ValueError(f"must be true, false, gaussian, {others}")
    return spelled


class TunerParams(Params):
    """Where adapters go, and what they start with, whatever their kind."""

    starred: ClassVar = frozenset(
        {"freeze_llm", "freeze_vit", "freeze_aligner", "target_modules", "target_regex", "init_weights"}
    )

    freeze_llm: Annotated[bool, About(not_in_training=NO_PARTS)] = False
    """Leave the language model of a multimodal model as it is: not trained, no adapter in it."""
    freeze_vit: Annotated[bool, About(not_in_training=NO_PARTS)] = True
    """Leave the vision or audio tower of a multimodal model as it is."""
    freeze_aligner: Annotated[bool, About(not_in_training=NO_PARTS)] = True
    """Leave the layers between that tower and the language model as they are."""
    target_modules: Annotated[Strings, About(text=True)] = ("all-linear",)
    """Modules that get an adapter, by the end of their names. `all-linear`: every linear layer but the output head; in
    a multimodal model, of the parts that are not frozen."""
    target_regex: Annotated[str | None, About(text=True)] = None
    """The modules that get an adapter, as a regular expression over the whole name, in place of `target_modules`."""
    init_weights: Annotated[str, BeforeValidator(_as_text), AfterValidator(_init_weights), About(text=True)] = "true"
    """What an adapter starts with: the usual (`true`), random numbers that change the model at once (`false`),
    `gaussian` (the reference's spelling `guassian` works too), the model's own singular vectors (`pissa`;
    `pissa_niter_N` computes them fast, in N rounds), those of a QR decomposition (`olora`), orthogonal random vectors
    (`orthogonal`), or what the training's data says: of the layers' inputs (`eva`), of inputs and weights (`corda`), of
    the gradients (`lora-ga`). On a base that bitsandbytes quantises, `loftq`: what its weights lost. With train_type
    bone, `bat` too."""
    modules_to_save: Annotated[Strings, About(text=True)] = ()
    """Modules of the model that are trained and saved whole beside the adapter."""


class FullParams(Params):
    """Which of the model's own weights are trained, with train_type full."""

    freeze_parameters: Annotated[Strings, About(text=True)] = ()
    """Weights whose names begin so are not trained."""
    freeze_parameters_ratio: float = Field(0.0, ge=0, le=1)
    """The part of all weights, counted from the input on, that is not trained; 1: none is."""
    trainable_parameters: Annotated[Strings, About(text=True)] = ()
    """Weights whose names begin so are trained, whatever the two parameters before say."""


class LoraParams(Params):
    """LoRA: a low-rank matrix beside each weight."""

    starred: ClassVar = frozenset({"lora_rank", "lora_alpha", "use_dora", "lorap_lr_ratio"})

    lora_rank: Annotated[int, About(most=4096)] = Field(8, ge=1)
    """Rank of the matrices: what the adapter can hold, and its size. With train_type bone, loha, lokr and randlora the
    rank of theirs."""
    lora_alpha: int = Field(32, ge=1)
    """The adapter's output is scaled by this, divided by the rank; with train_type loha, lokr and randlora too."""
    lora_dropout: float = Field(0.05, ge=0, le=1)
    """The part of the adapter's input that is dropped while training; with train_type bone and randlora too. 0 where
    LoRA adapts the experts of a mixture, unless given: PEFT has no dropout there."""
    lora_bias: Literal["none", "all"] = "none"
    """Train none of the model's biases, or `all`. A model that has none is refused."""
    lora_dtype: DType | None = None
    """Type of the adapter's weights. float32 unless given: half precision loses small steps."""
    use_dora: bool = False
    """Train the length of each weight vector apart from its direction (DoRA)."""
    use_rslora: bool = False
    """Divide by the square root of the rank instead of by the rank, for high ranks (rank-stabilised LoRA)."""
    lorap_lr_ratio: float | None = Field(None, gt=0)
    """LoRA+: the second matrix learns this many times as fast as the first; 10 to 16 is usual. Both learn alike
    unless given."""


class LoraGaParams(Params):
    """LoRA-GA: a start from the model's gradients, with init_weights lora-ga."""

    lora_ga_batch_size: int = Field(2, ge=1)
    """Samples of each batch that gradients are taken from."""
    lora_ga_iters: int = Field(2, ge=1)
    """Batches that gradients are taken from."""
    lora_ga_max_length: int = Field(1024, ge=1)
    """The most tokens of such a sample."""
    lora_ga_direction: Literal["ArBr", "A2rBr", "ArB2r", "random"] = "ArB2r"
    """Which of the gradient's singular vectors the two matrices start with."""
    lora_ga_scale: Literal["gd", "unit", "stable", "weightS"] = "stable"
    """How the two matrices are scaled at the start."""
    lora_ga_stable_gamma: int = Field(16, ge=1)
    """Strength of the scaling `stable`."""


class FourierFtParams(Params):
    """FourierFT: the change of each weight as a few of its frequencies."""

    fourier_n_frequency: int = Field(2000, ge=1)
    """Frequencies trained for each weight: what the adapter can hold, as the rank of LoRA."""
    fourier_scaling: float = Field(300.0, gt=0)
    """The change of the weights is scaled by this."""


class BoftParams(Params):
    """BOFT: an orthogonal turn of each weight, made of blocks."""

    boft_block_size: int = Field(4, ge=0)
    """Height and width of a block; 0: follows from `boft_block_num`."""
    boft_block_num: int | None = Field(None, ge=1)
    """Blocks for each weight. Follows from `boft_block_size` unless given; give one of the two."""
    boft_dropout: float = Field(0.0, ge=0, le=1)
    """The part of the blocks that is left out while training."""


class VeraParams(Params):
    """VeRA: random matrices that all layers share, and a trained vector for each."""

    vera_rank: int = Field(256, ge=1)
    """Rank of the shared matrices."""
    vera_projection_prng_key: bool = True
    """Write the shared random matrices into the checkpoint. Without them it is smaller, and loading makes them again
    from their seed."""
    vera_dropout: float = Field(0.0, ge=0, le=1)
    """The part of the adapter's input that is dropped while training."""
    vera_d_initial: float = 0.1
    """Value that the vectors after the first matrix start with."""


class GaloreParams(Params):
    """GaLore: an optimiser that keeps its state in the gradients' low-rank projection."""

    starred: ClassVar = frozenset({"use_galore"})

    use_galore: bool = False
    """Train with GaLore."""
    galore_target_modules: Annotated[Strings | None, About(text=True)] = None
    """Linear layers whose gradients are projected, by a part of their names. All but the output head, which are those
    of attention and MLP, unless given."""
    galore_rank: int = Field(128, ge=1)
    """Rank of the projection. A weight with no more rows or columns is not projected."""
    galore_update_proj_gap: int = Field(50, ge=1)
    """Steps after which the projection is computed anew."""
    galore_scale: float = Field(1.0, gt=0)
    """Projected updates are scaled by this."""
    galore_proj_type: Annotated[str, About(text=True, choices=("std", "reverse_std", "left", "right", "full"))] = "std"
    """On which side gradients are projected, by GaLore's names: `std`, `reverse_std`, `left`, `right`, `full`."""
    galore_optim_per_parameter: bool = False
    """Change each weight as soon as its gradient is there, and free that at once: no two gradients are held."""
    galore_with_embedding: bool = False
    """Project the gradients of the embedding too."""
    galore_quantization: bool = False
    """Q-GaLore: projections are computed the more rarely the less they change, and with `galore_proj_quant` they are
    quantised. The weights stay as they are, unlike in the paper."""
    galore_proj_quant: bool = False
    """With Q-GaLore, quantise the projection matrices."""
    galore_proj_bits: int | None = Field(None, ge=1, le=8)
    """Bits of a quantised projection matrix. 4 unless given."""
    galore_proj_group_size: int | None = Field(None, ge=1)
    """Numbers of a projection matrix that share a scale. 256 unless given."""
    galore_cos_threshold: float = Field(0.4, ge=-1, le=1)
    """With Q-GaLore, a projection whose cosine similarity to the one before is above this is kept for longer."""
    galore_gamma_proj: int = Field(2, ge=1)
    """Factor by which such a projection is kept longer."""
    galore_queue_size: int = Field(5, ge=1)
    """Number of the last similarities that are averaged for that."""


class LisaParams(Params):
    """LISA: a few layers at a time are trained, others after a while."""

    starred: ClassVar = frozenset({"lisa_activated_layers"})

    lisa_activated_layers: int = Field(0, ge=0)
    """Layers trained at a time beside embeddings and output head, often 2 or 8; 0: LISA is off."""
    lisa_step_interval: int = Field(20, ge=1)
    """Steps after which other layers are drawn. What the optimizer keeps of those before is given up."""


class LlamaproParams(Params):
    """LLaMA Pro: new layers between the model's own, which alone are trained."""

    starred: ClassVar = frozenset({"llamapro_num_new_blocks"})

    llamapro_num_new_blocks: int = Field(4, ge=1)
    """Layers to put in."""
    llamapro_num_groups: int | None = Field(None, ge=1)
    """Number of places, evenly spread, at which they are put in. A place for each unless given."""


class AdaloraParams(Params):
    """AdaLoRA: LoRA that moves its rank to where it is needed."""

    adalora_target_r: int = Field(8, ge=1)
    """Rank on average at the end."""
    adalora_init_r: int = Field(12, ge=1)
    """Rank of each matrix at the start."""
    adalora_tinit: int = Field(0, ge=0)
    """Steps at the start in which no rank is taken away."""
    adalora_tfinal: int = Field(0, ge=0)
    """Steps at the end in which ranks stay as they are."""
    adalora_deltaT: int = Field(1, ge=1)
    """Steps between two changes of the ranks."""
    adalora_beta1: float = Field(0.85, gt=0, lt=1)
    """How slowly the running mean of a singular value's importance follows."""
    adalora_beta2: float = Field(0.85, gt=0, lt=1)
    """How slowly the running mean of its uncertainty follows."""
    adalora_orth_reg_weight: float = Field(0.5, ge=0)
    """Weight of the loss that keeps the matrices orthogonal."""


class ReftParams(Params):
    """ReFT: an edit of the hidden states instead of the weights."""

    starred: ClassVar = frozenset({"reft_layers", "reft_rank"})

    reft_layers: Integers | None = None
    """Numbers of the layers whose output is edited. All unless given."""
    reft_rank: Annotated[int, About(most=4096)] = Field(4, ge=1)
    """Rank of the edit."""
    reft_intervention_type: Literal[
        "NoreftIntervention",
        "LoreftIntervention",
        "ConsreftIntervention",
        "LobireftIntervention",
        "DireftIntervention",
        "NodireftIntervention",
    ] = "LoreftIntervention"
    """Form of the edit, by pyreft's names."""
    reft_args: Annotated[JsonObject | None, About(text=True)] = None
    """Further settings of the edit, by pyreft's names: `dropout` (the part of the edited states that is dropped while
    training), `act_fn` (an activation function of what the edit is made of, by transformers' name) and, in
    NoreftIntervention, `add_bias`. Which of them an intervention takes is told where it takes another."""


class LigerParams(Params):
    """Liger: fused kernels for training."""

    use_liger: Annotated[bool, About(TRAINING)] = False
    """Replace layers and loss by Liger's fused kernels: less memory, faster steps, on a GPU."""
