"""What is wrong with a checkpoint's rotary part, and how to fix it.

Only JSON, the headers of safetensors files and the metadata of GGUF files are read: no model is
built, no pickle is opened, and no code of a checkpoint runs. Before a config is replaced,
transformers makes a model of it without weights and memory: what loaded before loads after.
"""

from ropex.config.edits import Edit
from ropex.doctor.diagnosis import RULES, diagnose, examine
from ropex.doctor.findings import Finding, Problem, Rule
from ropex.doctor.reading import Checkpoint, read
from ropex.doctor.repair import Repair, repair, repaired
from ropex.engines.facts import ENGINES

__all__ = [
    "ENGINES", "RULES", "Checkpoint", "Edit", "Finding", "Problem", "Repair", "Rule", "diagnose",
    "examine", "read", "repair", "repaired",
]  # fmt: skip
