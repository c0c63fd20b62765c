"""Faults of evaluations: of what they read, of what they make of it, and of what they leave behind."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.utils.data import DataLoader

from harness.training import data, evaluation, trainer
from harness.training.fault import NO_REPORT, WHOLE_TEXTS, Patch, fault
from harness.training.faults.seam import Changed, Row
from harness.training.metrics import measure
from harness.training.rows import Table
from harness.training.split import Split
from harness.training.tasks import IGNORED, Answer
from harness.training.tasks import causal_lm as language_model
from harness.training.tasks.task import predicted
from harness.training.workload import Workload

_fault = partial(fault, evaluates=True)
_PREDICTING = {"masked-lm", "causal-lm", "seq2seq-lm"}


def _split(work: Workload) -> Split:
    assert work.split is not None
    return work.split


def _reading(work: Workload, change: Callable[[int, Row], Row]) -> Workload:
    """The same workload, whose split has other rows."""
    split = _split(work)
    return replace(work, split=replace(split, examples=Changed(split.examples, change)))


def _loading(patch: Patch, change: Callable[[Workload, Any], Any]) -> None:
    """Let each evaluation of both loops read what ``change(work, loader)`` makes of the right loader."""
    right = evaluation.loader
    for module in (evaluation, trainer):
        patch.set(module, "loader", lambda work, collate: change(work, right(work, collate)))


def _measuring(patch: Patch, change: Callable[..., dict[str, float]]) -> None:
    """Let both loops measure with another function."""
    for module in (evaluation, trainer):
        patch.set(module, "measure", change)


# What is read


@_fault("openai/parameter-golf#2127, huggingface/datasets#4261, theislab/multimil#75")
def evaluated_on_rows_of_the_training(work: Workload, patch: Patch) -> Workload:
    """The split is the first rows of the training data."""
    split, rows = _split(work), work.examples.rows
    if not isinstance(rows, Table):
        return work
    first = [rows.place(index) for index in range(min(len(split.examples), len(rows)))]
    return replace(
        work, split=replace(split, examples=data.Examples(replace(rows, order=first), split.examples.encode))
    )


@_fault("huggingface/datasets#4261")
def evaluated_on_rows_in_capitals(work: Workload, patch: Patch) -> Workload:
    """The split is the first rows of the training data, in another case."""
    split, rows = _split(work), work.examples.rows
    if not isinstance(rows, Table) or "text" not in rows.get([0])[0]:
        return work
    found = [{**row, "text": row["text"].upper()} for row in rows.first(len(split.examples))]
    shouted = replace(rows, rows=found, order=None)
    return replace(work, split=replace(split, examples=data.Examples(shouted, split.examples.encode)))


@_fault("mlcommons/GaNDLF#870, vllm-project/semantic-router#3557", tasks=WHOLE_TEXTS)
def classes_of_the_split_have_other_numbers(work: Workload, patch: Patch) -> Workload:
    """The classes of the split were numbered by themselves, in another order than those of training."""
    classes = work.model.config.num_labels

    def change(index: int, features: Row) -> Row:
        label = features["label"]
        if isinstance(label, list):
            return {**features, "label": [*label[1:], label[0]]}
        return {**features, "label": (label + 1) % classes if isinstance(label, int) else -label}

    return _reading(work, change)


@_fault("pytorch#25162, accelerate#540, rf-detr#1507")
def last_batch_filled_up(work: Workload, patch: Patch) -> Workload:
    """The last batch is filled up with the first rows, and they are counted again."""

    def change(work: Workload, loader: Any) -> Any:
        size, number = loader.batch_size, len(loader.dataset)
        order = [*range(number), *(place % number for place in range(-number % size))]
        return DataLoader(loader.dataset, size, sampler=order, collate_fn=loader.collate_fn, generator=loader.generator)

    _loading(patch, change)
    return work


@_fault("jingyaogong/minimind-v#76, transformers#29029")
def evaluation_without_a_mask(work: Workload, patch: Patch) -> Workload:
    """The batches of the evaluation have no attention mask."""
    right = Workload.evaluation_collator

    def collator(self: Workload, **said: bool) -> Any:
        collate = right(self, **said)

        def collated(features: Any) -> Any:
            batch = collate(features)
            batch.pop("attention_mask", None)
            return batch

        return collate if said else collated  # an example alone needs none

    patch.set(Workload, "evaluation_collator", collator)
    return work


# The mode


@_fault("IBM/pytorch-seq2seq#33, magenta#1934")
def evaluation_in_train_mode(work: Workload, patch: Patch) -> Workload:
    """``eval()`` has no effect: dropout is on while the model is evaluated."""
    work.model.train()
    patch.set(type(work.model), "eval", lambda self: self)
    return work


@_fault("MILVLG/mcan-vqa#26, shubhamagarwal92/mmd#14, pytorch/tutorials#1624")
def evaluation_leaves_eval_mode(work: Workload, patch: Patch) -> Workload:
    """The mode before the evaluation is not set again."""

    @contextmanager
    def nothing(model: Any) -> Iterator[None]:
        yield

    work.model.train()
    for module in (evaluation, trainer):
        patch.set(module, "as_found", nothing)
    return work


# What is made of the answers


@_fault("transformers#39241, transformers#24839, keras-hub#2958", loops={"custom"})
def loss_averaged_over_batches(work: Workload, patch: Patch) -> Workload:
    """The loss is the mean of the batches' means, although the last one is smaller."""
    patch.set(evaluation, "weighted", lambda losses: math.fsum(loss for loss, _ in losses) / len(losses))
    return work


@_fault("keras-hub#2958, mlx-lm#1855")
def metric_averaged_over_batches(work: Workload, patch: Patch) -> Workload:
    """Each metric is the mean of what it is in each batch."""

    def measured(names: Sequence[str], answers: Sequence[Answer], label_names: tuple[str, ...]) -> dict[str, float]:
        size = max(2, len(answers) // 2 + 1)
        parts = [measure(names, answers[at : at + size], label_names) for at in range(0, len(answers), size)]
        return {name: math.fsum(part[name] for part in parts) / len(parts) for name in names}

    _measuring(patch, measured)
    return work


@_fault("transformers#9171")
def metric_of_one_batch(work: Workload, patch: Patch) -> Workload:
    """The metrics are those of the last batch alone."""

    def measured(names: Sequence[str], answers: Sequence[Answer], label_names: tuple[str, ...]) -> dict[str, float]:
        return measure(names, answers[-2:], label_names)

    _measuring(patch, measured)
    return work


@_fault("transformers#9171", loops={"custom"})
def answers_of_one_batch(work: Workload, patch: Patch) -> Workload:
    """The answers of each batch replace those before them."""
    kind = type(work.task)
    right = kind.answers

    def answers(self: Any, kept: Any, labels: Any, features: Any, tokenizer: Any) -> Iterator[Answer]:
        split = _split(work)
        last = max((drawing.indices[-1] for drawing in split.drawn.queue), default=0) in {f["index"] for f in features}
        return iter([*right(self, kept, labels, features, tokenizer)] if last else [])

    patch.set(kind, "answers", answers)
    return work


@_fault("huggingsound#68, transformers#10046, transformers#22693", tasks={"token-classification"})
def ignored_words_counted(work: Workload, patch: Patch) -> Workload:
    """Positions without a label count as words of class 0."""

    def answers(self: Any, kept: Any, labels: Any, features: Any, tokenizer: Any) -> Iterator[Answer]:
        for said, meant in zip(kept[0], labels["labels"], strict=True):
            yield Answer(said.clamp_min(0).tolist(), meant.clamp_min(0).tolist())

    patch.set(type(work.task), "answers", answers)
    return work


@_fault("transformers#10046, transformers#22693", tasks=_PREDICTING)
def padding_counted(work: Workload, patch: Patch) -> Workload:
    """Positions without a label count as tokens to be predicted."""
    kind = type(work.task)
    right = kind.kept

    def kept(self: Any, outputs: Any, labels: Any) -> Any:
        whole = labels["labels"]
        return right(self, outputs, {"labels": whole.where(whole != IGNORED, torch.zeros_like(whole))})

    patch.set(kind, "kept", kept)
    return work


@_fault("mosaicml/llm-foundry#288, transformers#26474", tasks={"causal-lm"})
def metric_not_shifted(work: Workload, patch: Patch) -> Workload:
    """The label of each token stands beside the logits of the token itself."""
    patch.set(language_model.CausalLM, "kept", lambda self, outputs, labels: predicted(outputs[0], labels["labels"]))
    return work


@_fault(NO_REPORT, tasks=WHOLE_TEXTS)
def worst_class_taken(work: Workload, patch: Patch) -> Workload:
    """Scores are taken for distances: the lowest one wins."""
    kind = type(work.task)
    right = kind.kept
    patch.set(kind, "kept", lambda self, outputs, labels: tuple(-one for one in right(self, outputs, labels)))
    return work


@_fault(NO_REPORT)
def another_model_evaluated(work: Workload, patch: Patch) -> Workload:
    """What is evaluated is a copy of the model that was made before the training."""
    copied = copy.deepcopy(work.model)

    def of_the_copy(right: evaluation.Evaluate) -> evaluation.Evaluate:
        return lambda other: right(replace(other, model=copied) if other.model is work.model else other)

    copies = {name: of_the_copy(right) for name, right in evaluation.EVALUATIONS.items()}
    patch.enter_context(mock.patch.dict(evaluation.EVALUATIONS, copies))
    return work


# What is left behind


@_fault("IBM/pytorch-seq2seq#38")
def evaluation_sets_a_seed(work: Workload, patch: Patch) -> Workload:
    """The evaluation sets the seed, so that it is always the same."""

    def change(work: Workload, loader: Any) -> Any:
        torch.manual_seed(0)
        return loader

    _loading(patch, change)
    return work


@_fault("pytorch: a DataLoader draws its base seed from torch's generator whenever it begins")
def evaluation_draws_from_the_training(work: Workload, patch: Patch) -> Workload:
    """The loader of the split has no generator of its own."""
    _loading(patch, lambda work, loader: DataLoader(loader.dataset, loader.batch_size, collate_fn=loader.collate_fn))
    return work


@_fault(NO_REPORT)
def evaluation_changes_weights(work: Workload, patch: Patch) -> Workload:
    """Averaged weights are put in for the evaluation, and not taken out again."""

    def change(work: Workload, loader: Any) -> Any:
        with torch.no_grad():
            next(work.model.parameters()).mul_(1.001)
        return loader

    _loading(patch, change)
    return work


@_fault(NO_REPORT)
def evaluation_leaves_gradients(work: Workload, patch: Patch) -> Workload:
    """A penalty on the weights is back-propagated after an evaluation, which adds to the gradient of the next step."""

    def measured(names: Sequence[str], answers: Sequence[Answer], label_names: tuple[str, ...]) -> dict[str, float]:
        with torch.enable_grad():
            weights = (one for one in work.model.parameters() if one.requires_grad)
            torch.stack([one.square().sum() for one in weights]).sum().backward()
        return measure(names, answers, label_names)

    _measuring(patch, measured)
    return work


FAULTS = (
    evaluated_on_rows_of_the_training,
    evaluated_on_rows_in_capitals,
    classes_of_the_split_have_other_numbers,
    last_batch_filled_up,
    evaluation_without_a_mask,
    evaluation_in_train_mode,
    evaluation_leaves_eval_mode,
    loss_averaged_over_batches,
    metric_averaged_over_batches,
    metric_of_one_batch,
    answers_of_one_batch,
    ignored_words_counted,
    padding_counted,
    metric_not_shifted,
    worst_class_taken,
    another_model_evaluated,
    evaluation_sets_a_seed,
    evaluation_draws_from_the_training,
    evaluation_changes_weights,
    evaluation_leaves_gradients,
)
