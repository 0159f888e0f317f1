"""What a run is compared with: PIE itself, or a baseline, and what a baseline needs to know."""

from __future__ import annotations

from typing import Any

from pie_engine.config.run import RunConfig
from pie_engine.config.settings import setting, settings
from pie_engine.errors import ConfigError, mention, use

METHODS = ("pie", "interpolation", "walk", "one-shot", "previous", "vae", "control")
# By option, the methods that it belongs to.
METHOD_OPTIONS = {
    "start_prompt": ("walk",),
    "total_strength": ("walk", "one-shot"),
    "healthy_prompt": ("control",),
}


@settings
class MethodConfig:
    """How the frames after the input come about (docs/baselines.md).

    "pie"; "interpolation", latents on the straight line from the input to where PIE's rounds end; "walk", a Stable
    Diffusion walk from the inverted input to the item's noise and from the start prompt to the item's; "one-shot",
    one image-to-image edit of the input per frame, of rising strength; "previous", the input again; "vae", repeated
    round trips through the autoencoder; "control", PIE towards the healthy prompt.

    Raises:
        ConfigError: an unknown name, a value out of range, or an option of another method.
    """

    name: str = setting(
        "what gives the frames: PIE or a baseline (docs/baselines.md)", default="pie", choices=METHODS,
        called="method", label="Method", vary=", ".join(METHODS), on_a_line=False,
    )  # fmt: skip
    start_prompt: str | None = setting(
        "walk: where its embeddings begin", default=None, open="the empty prompt", metavar="TEXT", example='""',
    )  # fmt: skip
    total_strength: float | None = setting(
        "walk and one-shot: share of the schedule that the last frame runs", default=None, low=0.0, high=1.0,
        open_low=True, open="1; one-shot: what N rounds amount to", example=1, metavar="S",
    )  # fmt: skip
    healthy_prompt: str | None = setting(
        "control: what PIE moves towards instead of the prompt", default=None, open="needed by it", metavar="TEXT",
        example='""',
    )  # fmt: skip

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            return  # refused with the names that there are
        for option, owners in METHOD_OPTIONS.items():
            if getattr(self, option) is not None and self.name not in owners:
                raise ConfigError(
                    f"{mention(option)} belongs to method {' and '.join(owners)}, not to {self.name!r}; leave it out"
                )
        for option in ("start_prompt", "healthy_prompt"):
            _check_encoding(option, getattr(self, option))
        if self.name == "control" and self.healthy_prompt is None:
            raise ConfigError(f"method 'control' has nothing to move towards; pass {use('healthy_prompt', 'TEXT')}")

    @property
    def is_pie(self) -> bool:
        """Whether its frames are rounds of PIE."""
        return self.name in ("pie", "control")

    def check(self, config: RunConfig) -> None:
        """Refuse settings that this method has no use for. Raises ConfigError."""
        schedule = config.schedule
        if self.name == "control" and schedule is not None and any(one.prompt is not None for one in schedule.ranges):
            raise ConfigError(
                f"the schedule's prompts would take the place of {mention('healthy_prompt')}; leave them out of it"
            )
        if self.is_pie:
            return
        if schedule is not None:
            raise ConfigError(f"method {self.name!r} has no rounds for a schedule; leave out {mention('schedule')}")
        if config.tolerance is not None:
            raise ConfigError(
                f"{mention('tolerance')} {config.tolerance:g} is not used by method {self.name!r}, whose frames do not "
                "settle; leave it out"
            )
        refused: list[tuple[str, str | None, str]] = [
            ("semantics", config.semantics, "engine"), ("pace", config.pace, "constant"),
        ]  # fmt: skip
        if self.name in ("previous", "vae"):
            refused.append(("inversion", config.inversion, "noise"))
        if self.name in ("walk", "previous", "vae"):
            refused.append(("noise", config.noise, "shared"))
        for option, value, allowed in refused:
            if value != allowed:
                raise ConfigError(
                    f"{mention(option)} {value!r} is not used by method {self.name!r}; pass {use(option, allowed)}"
                )
        if self.total_strength is not None and int(config.num_inference_steps * self.total_strength) < 1:
            raise ConfigError(
                f"{mention('total_strength')} {self.total_strength:g} of {config.num_inference_steps} steps runs no "
                f"denoising step; pass a greater one, or more {mention('num_inference_steps')}"
            )

    def to_dict(self) -> dict[str, Any]:
        """The name, and what was set for it."""
        options = {option: getattr(self, option) for option in METHOD_OPTIONS}
        return {"name": self.name, **{option: value for option, value in options.items() if value is not None}}


def _check_encoding(name: str, text: str | None) -> None:
    try:
        (text or "").encode()
    except UnicodeEncodeError:  # bytes of another encoding on the command line
        raise ConfigError(f"{mention(name)} {text!a} is not UTF-8; pass it in that encoding") from None
