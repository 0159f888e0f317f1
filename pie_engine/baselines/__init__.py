"""What PIE is compared with, over the same backends, masks, outputs and report (docs/baselines.md).

from pie_engine.baselines import simulate

results = simulate(engine, items, config, "walk")
"""

from pie_engine.baselines.methods import matched_steps, slerp
from pie_engine.baselines.simulate import check_findings, simulate
from pie_engine.config import METHODS, MethodConfig

__all__ = ["METHODS", "MethodConfig", "check_findings", "matched_steps", "simulate", "slerp"]
