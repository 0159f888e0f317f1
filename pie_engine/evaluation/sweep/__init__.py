"""Studies over many runs of one engine.

from pie_engine.evaluation.sweep import Design, Evaluators, read_patients, sweep

design = Design(read_patients("patients.csv"), RunConfig(steps=10), {"strength": (0.3, 0.5), "mask": ("on", "off")})
summary = sweep(engine, design, Evaluators.load(["classifier.json"]), "sweep")
"""

from pie_engine.evaluation.sweep.design import Design
from pie_engine.evaluation.sweep.patients import read_patients
from pie_engine.evaluation.sweep.sweep import Evaluators, sweep

__all__ = ["Design", "Evaluators", "read_patients", "sweep"]
