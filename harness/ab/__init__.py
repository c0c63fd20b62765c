"""Two revisions of a project, or two sets of libraries, compared in one job: trainings in live processes take turns."""

from harness.ab.environment import Environments
from harness.ab.job import LIBRARIES, Job, compare_sides
from harness.ab.process import Side, SideFailed
from harness.ab.revision import Repository
from harness.ab.stopping import stopped_once

__all__ = [
    "LIBRARIES",
    "Environments",
    "Job",
    "Repository",
    "Side",
    "SideFailed",
    "compare_sides",
    "stopped_once",
]
