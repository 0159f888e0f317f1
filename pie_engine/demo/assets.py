"""Where the demo's shipped files are, and the settings that were chosen for them."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from pie_engine.config import RunConfig
from pie_engine.errors import CheckpointError

_HERE = Path(__file__).parent
CHECKPOINT = _HERE / "checkpoint"
CLIP = _HERE / "clip"
SEVERITY_ONNX = _HERE / "severity.onnx"
SEVERITY_JSON = _HERE / "severity.json"
TRAINING_JSON = _HERE / "training.json"
DEMO_JSON = _HERE / "demo.json"
DOMAIN_CHECKPOINT = _HERE / "domains" / "checkpoint"  # fundus photographs and skin lesions


@dataclass(frozen=True)
class DemoDefaults:
    """Settings under which the shipped checkpoint was validated."""

    prompt: str
    healthy_prompt: str
    negative_prompt: str
    guidance_scale: float
    regression_guidance_scale: float  # towards the healthy prompt; docs/evaluation.md says why it is another
    regression_beta2: float
    steps: int
    strength: float
    num_inference_steps: int
    inversion: str  # "noise" or "ddim"
    beta1: float
    beta2: float
    resolution: int
    seed: int

    def run_config(self) -> RunConfig:
        """These settings, as the engine takes them."""
        return RunConfig(
            steps=self.steps,
            strength=self.strength,
            num_inference_steps=self.num_inference_steps,
            guidance_scale=self.guidance_scale,
            inversion=self.inversion,
            negative_prompt=self.negative_prompt,
            beta1=self.beta1,
            beta2=self.beta2,
            resolution=self.resolution,
            seed=self.seed,
        )

    def regression_config(self) -> RunConfig:
        """Settings for the way back, from the disease towards `healthy_prompt`."""
        return replace(self.run_config(), guidance_scale=self.regression_guidance_scale, beta2=self.regression_beta2)


def domain_file(name: str) -> Path:
    """A shipped file of the domains beside the chest, such as "fundus.json", which declares its classifier."""
    return _HERE / "domains" / name


def load_defaults(path: Path = DEMO_JSON) -> DemoDefaults:
    """Read `demo.json`, or another domain's file of the same kind."""
    try:
        return DemoDefaults(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path.name} is missing or damaged ({error}); reinstall pie-engine") from error
