"""The loop's own evaluation of a few examples, in batches of two sizes, beside each example alone."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Subset

from harness.training import reference
from harness.training.checkpoint import Loaded
from harness.training.devices import find
from harness.training.encoding import bare
from harness.training.evaluation import EVALUATIONS, split_of
from harness.training.probes.result import chosen
from harness.training.tasks import IGNORED, Task
from harness.training.twin import same_draws, twin
from harness.training.workload import Workload

EXAMPLES = 10
"""Evaluated, at most: with batches of 3, 4 or 8 the last one is smaller."""


def evaluation(loaded: Loaded, work: Workload) -> dict[str, Any]:
    """What the evaluation of the loop says of the twin, with the trained weights and with those they started from.

    Beside it the answer to each example alone, without padding, read off by other code.
    """
    if work.split is None:
        return {}
    model = twin(work.model)
    indices = chosen(work.split.examples.lengths, EXAMPLES)
    sizes = [work.split.batch_size, 2 if work.split.batch_size == 3 else 3]
    train = work.train.model_copy(update={"compile": False})  # on the CPU there may be no compiler
    small = replace(work, model=model, train=train, device=find("cpu"), precision="fp32")
    after = _state(loaded, small, indices, sizes)
    model.load_state_dict(loaded.model.state_dict())
    return {"examples": indices, "sizes": sizes, "after": after, "before": _state(loaded, small, indices, sizes)}


def _state(loaded: Loaded, work: Workload, indices: list[int], sizes: list[int]) -> dict[str, Any]:
    """Of the model's present weights: the figures for each batch size, and the answers alone."""
    split = split_of(work)
    reported = []
    for size in sizes:
        some = replace(split, examples=Subset(split.examples, indices), batch_size=size)
        with same_draws():
            reported.append(EVALUATIONS[work.train.loop](replace(work, split=some)))
    alone = [_alone(loaded, work, index) for index in indices]
    return {
        "figures": [one.figures for one in reported],
        "answered": [len(one.answers) for one in reported],
        **{name: [one[name] for one in alone] for name in ("said", "meant", "loss", "nll", "terms")},
        "margin": min(one["margin"] for one in alone),
    }


def _alone(loaded: Loaded, work: Workload, index: int) -> dict[str, Any]:
    """The answer to one example: what is said and meant, its loss, and by how little another answer lost."""
    split, task = split_of(work), work.task
    features = split.examples[index]
    row = features["row"]
    batch = work.evaluation_collator(longest=True)([bare(features)])
    work.model.eval()
    with torch.no_grad(), same_draws():
        output = work.model(**batch)
    logits = [getattr(output, name).detach().double() for name in task.outputs]
    labels = {name: batch[name] for name in task.labels}
    if task.masked is None:  # what is hidden stands in the features alone
        declared = reference.example(loaded, task, index, row, work.max_length).label
        named = declared if isinstance(declared, dict) else {"labels": declared}
        labels = {name: torch.tensor([named[name]], dtype=labels[name].dtype) for name in task.labels}
    said, meant, margin = _answer(task, work.settings.task, [z[0] for z in logits], labels, features)
    terms = task.terms(labels)
    plain = copy.copy(task)
    plain.smoothing = 0.0
    loss, nll = (float(one.loss(logits, labels)) * terms if terms else 0.0 for one in (task, plain))
    return {"said": said, "meant": meant, "loss": loss, "nll": nll, "terms": terms, "margin": margin}


def _answer(
    task: Task, name: str, logits: list[torch.Tensor], labels: dict[str, torch.Tensor], features: dict[str, Any]
) -> tuple[Any, Any, float]:
    """What one example says and means, and the margin of the closest decision."""
    if name == "question-answering":
        return _span(logits, features)
    label, scores = labels["labels"][0].tolist(), logits[0].tolist()
    if name in ("sequence-classification", "multiple-choice"):
        return _whole(task, scores, label)
    shift = 1 if task.causal else 0
    places = [place for place, each in enumerate(label) if each != IGNORED and place >= shift]
    picked = [_highest(scores[place - shift]) for place in places]
    margin = min((each for _, each in picked), default=math.inf)
    said, meant = [best for best, _ in picked], [label[place] for place in places]
    if name == "token-classification":
        return said, meant, margin
    return sum(one == other for one, other in zip(said, meant, strict=True)), len(meant), margin


def _whole(task: Task, scores: list[float], label: Any) -> tuple[Any, Any, float]:
    """Of a whole text: a class, several, or a number."""
    if isinstance(label, list):
        return [int(each > 0) for each in scores], [int(each) for each in label], _share(map(abs, scores), scores)
    if isinstance(label, float):
        return scores[0], label, math.inf
    best, margin = _highest(scores)
    return best, label, margin


def _highest(scores: list[float]) -> tuple[int, float]:
    """The first of the highest, and by how much it leads, as a share of the largest in size."""
    best = max(range(len(scores)), key=lambda place: scores[place])
    others = [scores[best] - each for place, each in enumerate(scores) if place != best]
    return best, _share(others, scores)


def _share(distances: Any, scores: list[float]) -> float:
    return min(distances, default=math.inf) / max(max(map(abs, scores)), 1e-30)


def _span(logits: list[torch.Tensor], features: dict[str, Any]) -> tuple[str, str, float]:
    """Every span of the context, one by one."""
    start, end = (scores.tolist() for scores in logits)
    offsets, context = features["offsets"], features["row"]["context"]
    inside = [place for place, span in enumerate(offsets) if span is not None]
    sums = {(0, 0): start[0] + end[0]}
    sums |= {(one, other): start[one] + end[other] for one in inside for other in inside if one <= other}
    first, last = max(sums, key=lambda span: sums[span])
    lead = [sums[first, last] - each for span, each in sums.items() if span != (first, last)]
    said = context[offsets[first][0] : offsets[last][1]] if first else ""
    return said, features["row"]["answer"], _share(lead, [*start, *end])
