"""Every example, its label, and when it comes."""

from __future__ import annotations

from collections import Counter

from harness.laws.law import Verdict, broken, held, invalid, law, vacuous
from harness.record import Record


@law()
def labels_travel(record: Record) -> Verdict:
    """Every row of a batch carries the label of its own example.

    The index of an example travels with it through loader and collator, so a shuffle of one without the other is
    seen. Exact.
    """
    labels = {example.index: example.label for example in record.examples}
    if not record.batches or not labels.keys() >= {index for batch in record.batches for index in batch.examples}:
        return invalid("no batch was kept, or not every example of the kept ones")
    count = 0
    for batch in record.batches:
        found = batch.tensors.get("labels")
        if found is None:
            return broken(f"step {batch.step + 1}: no labels among the model's arguments: {', '.join(batch.tensors)}")
        if len(found) != len(batch.examples):
            return broken(f"step {batch.step + 1}: {len(found)} labels for {len(batch.examples)} examples")
        for row, (index, label) in enumerate(zip(batch.examples, found, strict=True)):
            count += 1
            if label != labels[index]:
                return broken(
                    f"step {batch.step + 1}, row {row} (example {index}): label {label}, declared {labels[index]}",
                    cause="labels and texts are ordered apart, or the labels are mapped to other numbers",
                )
    if len(set(labels.values())) == 1:
        return vacuous(f"all examples have the label {next(iter(labels.values()))}: a mix-up would not show")
    return held(f"{count} rows")


@law()
def every_example_once(record: Record) -> Verdict:
    """Every epoch sees each example once, and no two epochs have the same order where shuffling is declared.

    Judged on the indices that the loader drew. An epoch that the run does not finish must not repeat an example.
    """
    size, drawn = record.settings["data.examples"], [index for batch in record.steps.examples for index in batch]
    if not drawn:
        return invalid("the loader drew nothing")
    epochs = [tuple(drawn[start : start + size]) for start in range(0, len(drawn), size)]
    for number, epoch in enumerate(epochs, start=1):
        again = [index for index, count in Counter(epoch).items() if count > 1]
        if again:
            never = sorted(set(range(size)) - set(epoch))
            return broken(
                f"epoch {number}: example {again[0]} was drawn {Counter(epoch)[again[0]]} times"
                + (f", example {never[0]} never" if never and len(epoch) == size else ""),
                cause="sampling with replacement, or a last batch that is dropped or carried over",
            )
    whole = [epoch for epoch in epochs if len(epoch) == size]
    if not whole:
        return held(f"{len(drawn)} of {size} examples in an epoch that the run does not finish, none twice")
    shuffled = record.settings["train.shuffle"]
    if not shuffled and any(epoch != tuple(range(size)) for epoch in whole):
        return broken("train.shuffle is false, and the order is not that of the data")
    if shuffled and size > 3 and len(whole) > 1 and len(set(whole)) == 1:  # 4 examples: equal by chance in 1 of 24
        return broken(
            f"all {len(whole)} epochs have the same order",
            cause="the sampler is never told the epoch (set_epoch), or the data is not shuffled",
        )
    return held(f"{len(whole)} whole epochs of {size} examples")
