"""What a run is compared with: PIE itself, or a baseline, and what a baseline needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pie_engine.config.checks import number, one_of
from pie_engine.config.run import RunConfig
from pie_engine.errors import ConfigError

METHODS = ("pie", "walk", "one-shot", "previous", "vae", "control")
# By option, the methods that it belongs to.
METHOD_OPTIONS = {
    "start_prompt": ("walk",),
    "total_strength": ("walk", "one-shot"),
    "healthy_prompt": ("control",),
}


@dataclass(frozen=True)
class MethodConfig:
    """How the frames after the input come about (docs/baselines.md).

    Attributes:
        name: "pie"; "walk", a Stable Diffusion walk from the inverted input to the item's noise and from the start
            prompt to the item's; "one-shot", one image-to-image edit of the input per frame, of rising strength;
            "previous", the input again; "vae", repeated round trips through the autoencoder; "control", PIE towards the
            healthy prompt.
        start_prompt: where a walk's embeddings begin; None means the empty prompt.
        total_strength: share of the schedule that a walk, or the last edit of one-shot, noises the input by. None means
            1 for a walk, and for one-shot what N rounds amount to, see `pie_engine.rounds.methods.matched_steps`.
        healthy_prompt: what a control moves towards; needed by it.

    Raises:
        ConfigError: an unknown name, a value out of range, or an option of another method.
    """

    name: str = "pie"
    start_prompt: str | None = None
    total_strength: float | None = None
    healthy_prompt: str | None = None

    def __post_init__(self) -> None:
        one_of("method", self.name, METHODS)
        for option, owners in METHOD_OPTIONS.items():
            if getattr(self, option) is not None and self.name not in owners:
                raise ConfigError(
                    f"{option.replace('_', '-')} belongs to --method {' and '.join(owners)}, not to {self.name!r}; "
                    "leave it out"
                )
        for option in ("start_prompt", "healthy_prompt"):
            _check_text(option.replace("_", "-"), getattr(self, option))
        if self.name == "control" and self.healthy_prompt is None:
            raise ConfigError("method 'control' has nothing to move towards; pass --healthy-prompt TEXT")
        if self.total_strength is not None:
            number("total-strength", self.total_strength, 0.0, 1.0, "pass --total-strength 1", open_low=True)

    @property
    def is_pie(self) -> bool:
        """Whether its frames are rounds of PIE."""
        return self.name in ("pie", "control")

    def check(self, config: RunConfig) -> None:
        """Refuse settings that this method has no use for. Raises ConfigError."""
        schedule = config.schedule
        if (
            self.name == "control"
            and schedule is not None
            and any(one.prompt is not None for one in schedule.stretches)
        ):
            raise ConfigError("the schedule's prompts would take the place of healthy-prompt; leave them out of it")
        if self.is_pie:
            return
        if schedule is not None:
            raise ConfigError(f"a schedule is for rounds, which method {self.name!r} has not; leave out --schedule")
        refused: list[tuple[str, str | None, str]] = [("semantics", config.semantics, "engine")]
        if self.name in ("previous", "vae"):
            refused.append(("inversion", config.inversion, "noise"))
        if self.name in ("walk", "previous", "vae"):
            refused.append(("noise", config.noise, "shared"))
        for option, value, allowed in refused:
            if value != allowed:
                raise ConfigError(
                    f"{option} {value!r} means nothing to method {self.name!r}; pass --{option} {allowed}"
                )
        if self.total_strength is not None and int(config.num_inference_steps * self.total_strength) < 1:
            raise ConfigError(
                f"total-strength {self.total_strength:g} of {config.num_inference_steps} steps runs no denoising step; "
                "pass a greater one, or more --num-inference-steps"
            )

    def to_dict(self) -> dict[str, Any]:
        """The name, and what was set for it."""
        options = {option: getattr(self, option) for option in METHOD_OPTIONS}
        return {"name": self.name, **{option: value for option, value in options.items() if value is not None}}


def _check_text(option: str, text: object) -> None:
    if text is None:
        return
    if not isinstance(text, str):
        raise ConfigError(f"{option} of type {type(text).__name__} is not text; pass a string")
    try:
        text.encode()
    except UnicodeEncodeError:  # bytes of another encoding on the command line
        raise ConfigError(f"{option} {text!a} is not UTF-8; pass it in that encoding") from None
