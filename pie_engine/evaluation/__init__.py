"""What runs have simulated, in numbers: `pie-engine eval`, `align` and `compare`.

from pie_engine.evaluation import align, compare, evaluate

summary = evaluate(["out/a", "out/b"], "evaluation", clip="CLIP_FOLDER", classifiers=["pneumonia.json"])
matrix = align(["out/a", "out/b"], "alignment", clip="CLIP_FOLDER")
against = compare(["out"], "comparison", classifiers=["pneumonia.json"])
"""

from pie_engine.evaluation.align import align
from pie_engine.evaluation.align_texts import read_prompts
from pie_engine.evaluation.compare import compare
from pie_engine.evaluation.evaluate import evaluate
from pie_engine.evaluation.runs import Run, find_runs

__all__ = ["Run", "align", "compare", "evaluate", "find_runs", "read_prompts"]
