"""Faults of the labels."""

from __future__ import annotations

import random
from typing import Any

import torch

from harness.training.fault import NO_REPORT, WHOLE_TEXTS, Patch, fault
from harness.training.faults.seam import Row, declared_labels, on_batch, relabelled
from harness.training.workload import Workload


@fault("mlcommons/GaNDLF#870, tensorflow#50124", tasks=WHOLE_TEXTS)
def labels_shuffled_apart(work: Workload, patch: Patch) -> Workload:
    """Inputs and labels are shuffled independently of each other."""
    labels = right = declared_labels(work)
    while labels == right and len(set(labels)) > 1:
        labels = random.Random(5).sample(labels, len(labels))
        labels = labels[1:] + labels[:1]
    return relabelled(work, lambda index, row: {**row, "label": labels[index % len(labels)]})


@fault("mlcommons/GaNDLF#870", tasks=WHOLE_TEXTS)
def labels_of_the_next_row(work: Workload, patch: Patch) -> Workload:
    """The column of labels is off by one row."""
    labels = declared_labels(work)
    return relabelled(work, lambda index, row: {**row, "label": labels[(index + 1) % len(labels)]})


@fault("vllm-project/semantic-router#3557", tasks=WHOLE_TEXTS)
def labels_renumbered(work: Workload, patch: Patch) -> Workload:
    """The map from names to numbers is made anew, in another order than the declared one."""
    last = work.model.config.num_labels - 1
    return relabelled(work, lambda index, row: {**row, "label": last - row["label"]})


@fault("vllm-project/semantic-router#3557", when=lambda settings: bool(settings.data.label_names))
def names_of_classes_exchanged(work: Workload, patch: Patch) -> Workload:
    """``id2label`` has the names in another order than the labels: what is predicted has the name of another class."""
    names = list(work.model.config.id2label.values())
    work.model.config.id2label = dict(enumerate(reversed(names)))
    work.model.config.label2id = {name: number for number, name in work.model.config.id2label.items()}
    return work


@fault("dcgp#86", tasks=WHOLE_TEXTS)
def one_label_for_all(work: Workload, patch: Patch) -> Workload:
    """Every example gets the first label, as where a comparison of strings never holds."""
    return relabelled(work, lambda index, row: {**row, "label": 0})


@fault("DeepCrime: change labels of training data", tasks=WHOLE_TEXTS)
def a_label_is_noisy(work: Workload, patch: Patch) -> Workload:
    """One example in the whole set has a wrong label."""
    classes = work.model.config.num_labels

    def change(index: int, row: Row) -> Row:
        return {**row, "label": (row["label"] + 1) % classes} if index == 0 else row

    return relabelled(work, change)


@fault("transformers#11012, adapter-hub/adapters#40", tasks=WHOLE_TEXTS)
def labels_as_one_hot_floats(work: Workload, patch: Patch) -> Workload:
    """Labels are one-hot floats, for which heads silently take binary cross-entropy."""
    classes = work.model.config.num_labels

    def change(batch: Any, collator: Any) -> None:
        batch["labels"] = torch.nn.functional.one_hot(batch["labels"], classes).float()

    on_batch(patch, change)
    return work


@fault("transformers#2491, trl#980", tasks=WHOLE_TEXTS)
def a_label_is_ignored(work: Workload, patch: Patch) -> Workload:
    """The first row of each batch has the label -100, which the loss ignores."""

    def change(batch: Any, collator: Any) -> None:
        batch["labels"][0] = -100

    on_batch(patch, change)
    return work


@fault("trl#1920, trl#598, pytorch#116349", tasks=WHOLE_TEXTS)
def all_labels_ignored_once(work: Workload, patch: Patch) -> Workload:
    """Every label of the batches that hold the last example is -100: their mean loss is that of nothing."""
    last = len(work.examples.lengths) - 1
    return relabelled(work, lambda index, row: {**row, "label": -100} if index >= last - work.train.batch_size else row)


@fault(NO_REPORT, tasks=WHOLE_TEXTS)
def texts_with_two_labels(work: Workload, patch: Patch) -> Workload:
    """Every second row repeats the text of the row before, with a label of its own, as after a join on a wrong key."""

    def change(index: int, row: Row) -> Row:
        if index % 2 == 0 or index >= len(work.examples.lengths):
            return row
        before = work.examples[index - 1]
        return {**before, "label": row["label"], "index": row["index"], "place": row["place"]}

    return relabelled(work, change)


@fault(NO_REPORT, tasks=WHOLE_TEXTS)
def labels_lost(work: Workload, patch: Patch) -> Workload:
    """The column of labels has a name that the model does not know."""

    def change(batch: Any, collator: Any) -> None:
        batch.pop("labels", None)

    on_batch(patch, change)
    return work


FAULTS = (
    labels_shuffled_apart,
    labels_of_the_next_row,
    labels_renumbered,
    names_of_classes_exchanged,
    one_label_for_all,
    a_label_is_noisy,
    labels_as_one_hot_floats,
    a_label_is_ignored,
    all_labels_ignored_once,
    texts_with_two_labels,
    labels_lost,
)
