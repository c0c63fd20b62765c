"""What an experiment file may say, and the reading of one.

A file declares settings, and a matrix of other values for some of them. `read` returns every point of the matrix
with its settings, validated, or every mistake of the file at once.
"""

from harness.experiment.checkpoint import (
    ArchitectureCheckpoint,
    Checkpoint,
    FolderCheckpoint,
    HubCheckpoint,
    PackageCheckpoint,
    parse_checkpoint,
)
from harness.experiment.data import FILE_KINDS, SOURCES, Data
from harness.experiment.device import DEVICE, DEVICE_FORMS, check_device
from harness.experiment.evaluation import METRICS, Evaluation
from harness.experiment.file import Experiment, Point, read
from harness.experiment.json_schema import schema
from harness.experiment.key import Laws, matrix_keys
from harness.experiment.matrix import name
from harness.experiment.peft import ALL_LINEAR, Peft
from harness.experiment.row import Row, problem_of, required, roles_beside, texts, unlike, with_a_point
from harness.experiment.settings import Benchmark, Settings
from harness.experiment.train import CHOSEN, LOOPS_OF, OPTIMIZERS_OF, ParameterGroup, Train

__all__ = [
    "ALL_LINEAR",
    "CHOSEN",
    "DEVICE",
    "DEVICE_FORMS",
    "FILE_KINDS",
    "LOOPS_OF",
    "METRICS",
    "OPTIMIZERS_OF",
    "SOURCES",
    "ArchitectureCheckpoint",
    "Benchmark",
    "Checkpoint",
    "Data",
    "Evaluation",
    "Experiment",
    "FolderCheckpoint",
    "HubCheckpoint",
    "Laws",
    "PackageCheckpoint",
    "ParameterGroup",
    "Peft",
    "Point",
    "Row",
    "Settings",
    "Train",
    "check_device",
    "matrix_keys",
    "name",
    "parse_checkpoint",
    "problem_of",
    "read",
    "required",
    "roles_beside",
    "schema",
    "texts",
    "unlike",
    "with_a_point",
]
