"""A law in words."""

from __future__ import annotations

from collections.abc import Iterable

from tabulate import tabulate

from harness.laws.known import DEFECTS
from harness.laws.law import Law


def explain(law: Law) -> str:
    """Statement, reason with the source of every threshold, what it judges, and its options, as Markdown."""
    subject = f"Compares cases that differ in `{law.axis}` alone." if law.axis else ""
    probes = f"Needs the probe{'s' * (len(law.probes) > 1)} {', '.join(sorted(law.probes))}." if law.probes else ""
    parts = [f"## {law.name}", f"**{law.statement}**", law.reason, f"{subject} {probes}".strip(), _options(law)]
    return "\n\n".join(part for part in parts if part)


def page(laws: Iterable[Law]) -> str:
    """All laws, as the page `docs/laws.md`."""
    return "\n\n".join([_INTRODUCTION, _TABLES, *map(explain, laws), _known()]) + "\n"


def _known() -> str:
    """The known defects, as a table."""
    rows = [(", ".join(d.laws), d.library, d.seen, d.what, d.remedy, d.thread) for d in DEFECTS]
    headers = ("law", "library", "last seen", "what is wrong", "remedy", "thread")
    table = tabulate(rows, headers=headers, tablefmt="github", disable_numparse=True)
    return f"{_DEFECTS}\n\n{table}"


_INTRODUCTION = """\
# Laws

<!-- Printed by `harness explain`; a test says that it is current. -->

A law is a statement that is true of every correct fine-tuning. It reads the record of a case, or of several, and is an
item of pytest: `experiments/course.yaml::cpu-custom-fp32::loss_decreases`. Its verdict is one of

- **held**: the item passes;
- **broken**: it fails, with the tensor or parameter, the step, the numbers and the likely cause;
- **vacuous**: nothing was found, but nothing could have been (all sequences have the same length, say): skipped;
- **not applicable**: the law says nothing about this case: skipped with the reason;
- **invalid**: the evidence is not enough to judge (too few steps, say): skipped with the reason.

Some laws need a *probe*: extra work after the training, see
[what the laws cost](experiments.md#what-the-laws-cost). Many probes use the *twin*: a copy of the model in fp32 on the
CPU, without dropout, where two right ways of computing the same thing differ only by rounding. Tolerances rest on the
figures that are called *measured*.

An experiment turns a law off, or sets its options, under `invariants`:

```yaml
invariants:
  loss_decreases: {by: 0.3, window: 10}
  backbone_changes: false
```"""


_TABLES = """\
Two tables, each made by a command, show how good the laws are: [which law catches which mistake](faults.md)
(`harness mutate`), and [what they say of right trainings](zoo.md) of every architecture (`harness report --laws`)."""


_DEFECTS = """\
## Known defects of libraries

These break a law although the set-up is right. The verdict is *broken*, and its cause names the defect. An experiment
that has to live with one declares it in `expect_broken`, and fails as soon as it is fixed."""


def _options(law: Law) -> str:
    fields = law.options.model_fields
    lines = [f"- `{name}` (default {_default(field.default)}): {field.description}" for name, field in fields.items()]
    return "\n".join(["Options:", "", *lines]) if lines else ""


def _default(value: object) -> str:
    return "none" if value is None else f"{value}"
