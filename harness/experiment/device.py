"""How an experiment, or the command line, names a device."""

import re
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, WithJsonSchema

from harness.errors import meant, shown
from harness.experiment.model import problem

DEVICE_FORMS = "cpu, cuda, cuda:N, cuda:all or mps"
DEVICE = r"^(cpu|mps|cuda|cuda:all|cuda:(0|[1-9][0-9]*))$"


def check_device(name: str) -> str:
    """Return the name as it is.

    Raises:
        ValueError: no device is named so.
    """
    if not re.fullmatch(DEVICE, name):
        # Spelled alike, `gpu` is nearer to `cpu`, which is not what anybody means by it.
        hint = "did you mean 'cuda'?" if "gpu" in name.lower() else meant(name, ("cpu", "mps", "cuda", "cuda:all"))
        raise problem(shown(name), DEVICE_FORMS, hint)
    return name


Device: TypeAlias = Annotated[str, AfterValidator(check_device), WithJsonSchema({"type": "string", "pattern": DEVICE})]
