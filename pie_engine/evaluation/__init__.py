"""What runs have simulated, in figures: `pie-engine eval`.

from pie_engine.evaluation import evaluate

summary = evaluate(["out/a", "out/b"], "evaluation", clip="CLIP_FOLDER", classifiers=["pneumonia.json"])
"""

from pie_engine.evaluation.figures import evaluate
from pie_engine.evaluation.runs import Run, find_runs

__all__ = ["Run", "evaluate", "find_runs"]
