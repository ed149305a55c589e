"""Settings that only one family of models has: what `model_kwargs` may hold, and the environment variables in its
place."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from engines.params.base import Params


class ModelKwargs(Params):
    """The settings of one family. Each is also read from the environment variable of its name."""

    model_types: ClassVar[tuple[str, ...]]
    """The values of `model_type` that belong to the family."""


class Qwen2VlKwargs(ModelKwargs):
    """Qwen2-VL and QVQ: how images and videos are scaled and which frames are taken."""

    model_types = ("qwen2_vl", "qvq")
    starred = frozenset({"MAX_PIXELS", "VIDEO_MAX_PIXELS", "FPS_MAX_FRAMES"})

    IMAGE_FACTOR: int = Field(28, ge=1)
    """Height and width of an image are scaled to multiples of this."""
    MIN_PIXELS: int = Field(4 * 28 * 28, ge=1)
    """Images with fewer pixels are scaled up to this many."""
    MAX_PIXELS: int = Field(16384 * 28 * 28, ge=1)
    """Images with more pixels are scaled down to this many. Every 28 times 28 pixels are one token."""
    MAX_RATIO: int = Field(200, ge=1)
    """An image whose long side is more than this many times its short side is refused."""
    VIDEO_MIN_PIXELS: int = Field(128 * 28 * 28, ge=1)
    """Video frames with fewer pixels are scaled up to this many."""
    VIDEO_MAX_PIXELS: int = Field(768 * 28 * 28, ge=1)
    """Video frames with more pixels are scaled down to this many."""
    VIDEO_TOTAL_PIXELS: int = Field(24576 * 28 * 28, ge=1)
    """All frames of a video together are scaled down to this many pixels."""
    FRAME_FACTOR: int = Field(2, ge=1)
    """The number of frames taken from a video is a multiple of this."""
    FPS: float = Field(2.0, gt=0)
    """Frames taken from each second of a video."""
    FPS_MIN_FRAMES: int = Field(4, ge=1)
    """The fewest frames taken from a video."""
    FPS_MAX_FRAMES: int = Field(768, ge=1)
    """The most frames taken from a video."""


class InternVlKwargs(ModelKwargs):
    """InternVL 1.5: how an image is cut into tiles."""

    model_types = ("internvl", "internvl_phi3")

    MAX_NUM: int = Field(12, ge=1)
    """The most tiles of one image."""
    INPUT_SIZE: int = Field(448, ge=1)
    """Height and width of a tile, in pixels."""


class InternVl2Kwargs(ModelKwargs):
    """InternVL 2 and 2.5: how images and video frames are cut into tiles."""

    model_types = ("internvl2", "internvl2_phi3", "internvl2_5")

    MAX_NUM: int = Field(12, ge=1)
    """The most tiles of one image."""
    INPUT_SIZE: int = Field(448, ge=1)
    """Height and width of a tile, in pixels."""
    VIDEO_MAX_NUM: int = Field(1, ge=1)
    """The most tiles of one video frame."""
    VIDEO_SEGMENTS: int = Field(8, ge=1)
    """Frames taken from a video, evenly spread."""


class MiniCpmV26Kwargs(ModelKwargs):
    """MiniCPM-V 2.6: how images and video frames are cut into slices."""

    model_types = ("minicpmv2_6",)

    MAX_SLICE_NUMS: int = Field(9, ge=1)
    """The most slices of one image."""
    VIDEO_MAX_SLICE_NUMS: int = Field(1, ge=1)
    """The most slices of one video frame."""
    MAX_NUM_FRAMES: int = Field(64, ge=1)
    """The most frames taken from a video."""


class Ovis16Kwargs(ModelKwargs):
    """Ovis 1.6: how an image is cut into parts."""

    model_types = ("ovis1_6",)

    MAX_PARTITION: int | None = Field(None, ge=1)
    """The most parts of one image. The model's own limit unless given."""


class MplugOwl3Kwargs(ModelKwargs):
    """mPLUG-Owl3: which frames of a video are taken."""

    model_types = ("mplug_owl3", "mplug_owl3_241101")

    MAX_NUM_FRAMES: int = Field(16, ge=1)
    """The most frames taken from a video."""


class Xcomposer24KhdKwargs(ModelKwargs):
    """InternLM-XComposer2-4KHD: how an image is cut into parts."""

    model_types = ("xcomposer2_4khd",)

    HD_NUM: int = Field(55, ge=1)
    """The most parts of one image."""


class Xcomposer25Kwargs(ModelKwargs):
    """InternLM-XComposer2.5: how an image is cut into parts."""

    model_types = ("xcomposer2_5",)

    HD_NUM: int | None = Field(None, ge=1)
    """The most parts of one image. Unless given, 24 where the prompt has one image and 6 where it has more."""


class VideoCogVlm2Kwargs(ModelKwargs):
    """CogVLM2-Video: which frames of a video are taken."""

    model_types = ("video_cogvlm2",)

    NUM_FRAMES: int = Field(24, ge=1)
    """Frames taken from a video, evenly spread."""


class Phi3VisionKwargs(ModelKwargs):
    """Phi-3-Vision: how an image is cut into crops."""

    model_types = ("phi3_vision",)

    NUM_CROPS: int = Field(4, ge=1)
    """The most crops of one image."""


class Llama31OmniKwargs(ModelKwargs):
    """LLaMA-Omni: how speech becomes a spectrogram."""

    model_types = ("llama3_1_omni",)

    N_MELS: int = Field(128, ge=1)
    """Mel bands of the spectrogram."""


class VideoLlavaKwargs(ModelKwargs):
    """Video-LLaVA: which frames of a video are taken."""

    model_types = ("video_llava",)

    NUM_FRAMES: int = Field(16, ge=1)
    """Frames taken from a video, evenly spread."""


FAMILIES: tuple[type[ModelKwargs], ...] = (
    Qwen2VlKwargs,
    InternVlKwargs,
    InternVl2Kwargs,
    MiniCpmV26Kwargs,
    Ovis16Kwargs,
    MplugOwl3Kwargs,
    Xcomposer24KhdKwargs,
    Xcomposer25Kwargs,
    VideoCogVlm2Kwargs,
    Phi3VisionKwargs,
    Llama31OmniKwargs,
    VideoLlavaKwargs,
)


def family_of(model_type: str) -> type[ModelKwargs] | None:
    """Return the settings that models of this type have, None where they have none of their own."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)


def resolve_model_kwargs(
    model_type: str, given: Mapping[str, Any] | None, environ: Mapping[str, str]
) -> ModelKwargs | None:
    """Return the settings of a model: those given, then those in the environment, then the family's defaults.

    Raises ValueError where a setting is given that the family does not have, or has a value that it cannot have.
    """
    upper = {name.upper(): value for name, value in (given or {}).items()}
    family = family_of(model_type)
    if family is None:
        if upper:
            raise ValueError(f"model_kwargs: models of type {model_type!r} have no settings of their own")
        return None
    from_environment = {name: environ[name] for name in family.model_fields if name in environ}
    return family.model_validate(from_environment | upper)
