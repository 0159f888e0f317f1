"""What configs may say, held to bounds before a library builds anything of them.

Files in the wild carry keys of other versions and other libraries. Those are dropped; the known ones are passed on as
they were written. The bounds are several times what Stable Diffusion v1.x needs: they keep a file of a few bytes from
asking for minutes or gigabytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import pydantic
from pydantic import Field, model_validator

from pie_engine.errors import CheckpointError

# Each takes 35 ms to make; Stable Diffusion v1.x has 16.
MAX_TRANSFORMERS = 128
# Of a config, what is shown in messages.
_SHOWN = 80


class Description(pydantic.BaseModel):
    """Base of what describes something in a file that a stranger may have written: frozen, and strict about types."""

    model_config = pydantic.ConfigDict(
        frozen=True, strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=()
    )


Name = Annotated[str, Field(max_length=128)]
Names = Annotated[list[Name] | tuple[Name, ...], Field(min_length=1, max_length=16)]
Level = Annotated[int, Field(ge=1, le=16)]  # layers within a level
Width = Annotated[int, Field(ge=1, le=16384)]
Widths = Annotated[list[Width] | tuple[Width, ...], Field(min_length=1, max_length=6)]
Channels = Annotated[int, Field(ge=1, le=64)]
Groups = Annotated[int, Field(ge=1, le=1024)]
Kernel = Annotated[int, Field(ge=1, le=15)]
TokenId = Annotated[int, Field(ge=-1, le=1_000_000)]
Real = Annotated[float, Field(ge=-1e6, le=1e6)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Switch = bool | None


# One value for all levels, or one per level.
_PerLevel = Field(min_length=1, max_length=6)
LayerCounts = Level | Annotated[list[Level] | tuple[Level, ...], _PerLevel]
LayerCountsPerBlock = LayerCounts | Annotated[list[LayerCounts] | tuple[LayerCounts, ...], _PerLevel]
WidthOrWidths = Width | Widths
Switches = bool | Annotated[list[bool] | tuple[bool, ...], _PerLevel]
Side = Annotated[int, Field(ge=1, le=1024)]  # in latents
Sides = Side | Annotated[list[Side] | tuple[Side, ...], Field(min_length=2, max_length=2)] | None


class UNetDescription(Description):
    """diffusers' `UNet2DConditionModel`; `check_unet_config` refuses what is foreign to Stable Diffusion v1.x."""

    sample_size: Sides = None
    in_channels: Channels = 4
    out_channels: Channels = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: Real = 0
    down_block_types: Names = ()
    mid_block_type: Name | None = None
    up_block_types: Names = ()
    only_cross_attention: Switches = False
    block_out_channels: Widths = (320, 640, 1280, 1280)
    layers_per_block: LayerCounts = 2
    downsample_padding: Annotated[int, Field(ge=0, le=8)] = 1
    mid_block_scale_factor: Positive = 1
    dropout: Fraction = 0.0
    act_fn: Name = "silu"
    norm_num_groups: Groups | None = 32
    norm_eps: Epsilon = 1e-5
    cross_attention_dim: WidthOrWidths = 1280
    transformer_layers_per_block: LayerCountsPerBlock = 1
    reverse_transformer_layers_per_block: LayerCountsPerBlock | None = None
    encoder_hid_dim: Width | None = None
    encoder_hid_dim_type: Name | None = None
    attention_head_dim: WidthOrWidths | None = 8
    num_attention_heads: WidthOrWidths | None = None
    dual_cross_attention: bool = False
    use_linear_projection: bool = False
    class_embed_type: Name | None = None
    addition_embed_type: Name | None = None
    addition_time_embed_dim: Width | None = None
    num_class_embeds: Width | None = None
    upcast_attention: Switch = False
    resnet_time_scale_shift: Name = "default"
    resnet_skip_time_act: bool = False
    resnet_out_scale_factor: Positive = 1.0
    time_embedding_type: Name = "positional"
    time_embedding_dim: Width | None = None
    time_embedding_act_fn: Name | None = None
    timestep_post_act: Name | None = None
    time_cond_proj_dim: Width | None = None
    conv_in_kernel: Kernel = 3
    conv_out_kernel: Kernel = 3
    projection_class_embeddings_input_dim: Width | None = None
    attention_type: Name = "default"
    class_embeddings_concat: bool = False
    mid_block_only_cross_attention: Switch = None
    cross_attention_norm: Name | None = None
    addition_embed_type_num_heads: Width = 64

    @model_validator(mode="after")
    def _not_too_deep(self) -> UNetDescription:
        # Each level goes down and up once.
        layers = len(self.block_out_channels) * (2 * _most(self.layers_per_block) + 1)
        depth = layers * _most(self.transformer_layers_per_block)
        if depth > MAX_TRANSFORMERS:
            raise ValueError(f"asks for up to {depth} transformers, at most {MAX_TRANSFORMERS} are built")
        return self


class VaeDescription(Description):
    """diffusers' `AutoencoderKL`."""

    in_channels: Channels = 3
    out_channels: Channels = 3
    down_block_types: Names = ()
    up_block_types: Names = ()
    block_out_channels: Widths = (64,)
    layers_per_block: Level = 1
    act_fn: Name = "silu"
    latent_channels: Channels = 4
    norm_num_groups: Groups = 32
    sample_size: Annotated[int, Field(ge=1, le=16384)] | list[Width] | None = None  # in pixels
    scaling_factor: Positive | None = None
    shift_factor: Real | None = None
    latents_mean: Annotated[list[Real], Field(max_length=64)] | None = None
    latents_std: Annotated[list[Real], Field(max_length=64)] | None = None
    force_upcast: Switch = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


class TextEncoderDescription(Description):
    """transformers' `CLIPTextModel`."""

    architectures: Names | None = None
    model_type: Name | None = None
    vocab_size: Annotated[int, Field(ge=1, le=1_000_000)] = 49408
    hidden_size: Width = 512
    intermediate_size: Annotated[int, Field(ge=1, le=65536)] = 2048
    projection_dim: Width | None = None
    num_hidden_layers: Annotated[int, Field(ge=1, le=64)] = 12
    num_attention_heads: Groups = 8
    max_position_embeddings: Annotated[int, Field(ge=3, le=4096)] = 77
    hidden_act: Name = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    attention_dropout: Fraction = 0.0
    initializer_range: Real = 0.02
    initializer_factor: Real = 1.0
    pad_token_id: TokenId | None = None
    bos_token_id: TokenId | None = None
    eos_token_id: TokenId | list[TokenId] | None = None


class SchedulerDescription(Description):
    """Every setting of diffusers' schedulers for Stable Diffusion v1.x."""

    class_name: Name = Field(alias="_class_name")
    diffusers_version: Name | None = Field(default=None, alias="_diffusers_version")
    # Each is a row of several tables; Stable Diffusion has 1,000.
    num_train_timesteps: Annotated[int, Field(ge=1, le=10_000)] = 1000
    beta_start: Fraction = 0.0001
    beta_end: Fraction = 0.02
    beta_schedule: Name = "linear"
    trained_betas: Annotated[list[Fraction], Field(min_length=1, max_length=10_000)] | None = None
    prediction_type: Name = "epsilon"
    timestep_spacing: Name = "leading"
    timestep_type: Name = "discrete"
    steps_offset: Annotated[int, Field(ge=0, le=1000)] = 0
    clip_sample: Switch = None
    clip_sample_range: Positive = 1.0
    thresholding: Switch = False
    dynamic_thresholding_ratio: Fraction = 0.995
    sample_max_value: Positive = 1.0
    rescale_betas_zero_snr: Switch = False
    set_alpha_to_one: Switch = False
    skip_prk_steps: Switch = False
    interpolation_type: Name = "linear"
    final_sigmas_type: Name = "zero"
    sigma_min: Real | None = None
    sigma_max: Real | bool | None = None
    use_karras_sigmas: Switch = False
    use_exponential_sigmas: Switch = False
    use_beta_sigmas: Switch = False
    use_flow_sigmas: Switch = False
    use_lu_lambdas: Switch = False
    use_dynamic_shifting: Switch = False
    time_shift_type: Name = "exponential"
    flow_shift: Real | None = None
    shift_terminal: Real | None = None
    solver_order: Annotated[int, Field(ge=1, le=3)] = 2
    predictor_order: Annotated[int, Field(ge=1, le=4)] = 2
    corrector_order: Annotated[int, Field(ge=0, le=4)] = 2
    solver_type: Name = "midpoint"
    algorithm_type: Name = "dpmsolver++"
    lower_order_final: Switch = True
    euler_at_final: Switch = False
    predict_x0: Switch = True
    disable_corrector: Annotated[list[Annotated[int, Field(ge=0, le=10_000)]], Field(max_length=10_000)] = []
    # diffusers writes its default, minus infinity, as JavaScript spells it.
    lambda_min_clipped: Annotated[float, Field(le=1e6, allow_inf_nan=True)] = float("-inf")
    variance_type: Name | None = None
    original_inference_steps: Annotated[int, Field(ge=1, le=10_000)] = 50
    timestep_scaling: Positive = 10.0


class PeftDescription(Description):
    """Of peft's settings, those that change what a LoRA adds to the weights."""

    lora_alpha: Real | None = None
    # A layer's name: an expression in its place could take longer to match than the model to run.
    alpha_pattern: (
        Annotated[
            dict[Annotated[str, Field(max_length=256, pattern=r"^\^?(\\\.|[\w.-])+$")], Real], Field(max_length=5000)
        ]
        | None
    ) = None
    use_rslora: Switch = None
    use_dora: Switch = None


class IndexDescription(Description):
    """The index of a sharded model: tensor -> file."""

    weight_map: Annotated[dict[Annotated[str, Field(max_length=512)], Name], Field(min_length=1, max_length=20_000)]


def validate_config(description: type[Description], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The keys of a config that its description knows, with their values as they were written.

    Raises:
        CheckpointError: a value of another type or beyond its bounds.
    """
    try:
        description.model_validate(dict(values))
    except pydantic.ValidationError as error:
        raise CheckpointError(
            f"config of {source} is not usable ({first_problem(error, values)}); copy or download it again"
        ) from None
    known = {field.alias or name for name, field in description.model_fields.items()}
    return {key: value for key, value in values.items() if key in known}


def first_problem(error: pydantic.ValidationError, values: Any) -> str:
    """The first thing that is wrong with a description, in words: "layers_per_block is 100000, should be ... 16"."""
    problems = error.errors(include_url=False)
    # Of a field that may be one thing or another, what says most: the bound of the kind that it has.
    first = problems[0]
    for problem in problems:
        if problem["loc"][:1] == first["loc"][:1] and not problem["type"].endswith(("_type", "_parsing")):
            first = problem
            break
    place, value = _place(first["loc"], values, missing=first["type"] == "missing")
    said = re.sub(r"^(Input|Value error,) *", "", first["msg"])
    if first["type"] in ("missing", "extra_forbidden"):
        return f"{place} is {'missing' if first['type'] == 'missing' else 'unknown'}"
    return f"{place} is {shown(value)}, {said}" if place else said


def _place(parts: Sequence[int | str], values: Any, *, missing: bool) -> tuple[str, Any]:
    """Where in `values` a problem lies, in words, and what stands there; parts that name types are left out."""
    names: list[str] = []
    for part in parts:
        known = range(len(values)) if isinstance(values, list | tuple) else values
        if isinstance(known, Mapping | range) and part in known:
            values = values[part]
        elif missing and part == parts[-1]:
            values = None
        else:
            break
        names.append(shown(part, 40) if isinstance(part, str) and not re.fullmatch(r"[\w-]{1,40}", part) else str(part))
    return ".".join(names), values


def shown(value: Any, limit: int = _SHOWN) -> str:
    """A value from a file, short enough for a message."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 4 * limit:
        return f"a number of {value.bit_length()} bits"
    text = repr(value[: limit + 1] if isinstance(value, str | list | tuple) else value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def bare(value: Any, limit: int = _SHOWN) -> str:
    """As `shown`, and text without quotes."""
    return value[:limit] if isinstance(value, str) else shown(value, limit)


def _most(value: Any) -> int:
    return max(map(_most, value)) if isinstance(value, list | tuple) else int(value)
