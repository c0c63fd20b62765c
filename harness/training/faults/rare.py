"""Faults that only some texts show: most experiments hold none of them, and `--explore` makes them up."""

from __future__ import annotations

from typing import Any

import torch

from harness.training.checkpoint import Loaded
from harness.training.fault import NO_REPORT, Patch, fault, loading_fault
from harness.training.faults.seam import encoded, on_batch, on_forward
from harness.training.workload import Workload

PADDING = 12
"""Columns of padding up to which the mask is heeded."""


@fault("transformers#35352, trl#976")
def mask_made_from_ids(work: Workload, patch: Patch) -> Workload:
    """attention_mask is ``input_ids != pad_token_id``: a text that spells the pad token has a hole in it."""

    def change(batch: Any, collator: Any) -> None:
        batch["attention_mask"] = (batch["input_ids"] != collator.tokenizer.pad_token_id).long()

    on_batch(patch, change)
    return work


@fault("DeepCrime: missing preprocessing")
def texts_stripped_to_ascii(work: Workload, patch: Patch) -> Workload:
    """A cleaner takes every character out of the texts that is not ASCII."""
    return _cleaned(work, lambda text: text.encode("ascii", "ignore").decode())


@fault(NO_REPORT)
def texts_end_at_a_line(work: Workload, patch: Patch) -> Workload:
    """Only the first line of a text is read, as of a file with a text on each line."""
    return _cleaned(work, lambda text: (text.splitlines() or [""])[0])


@fault("pytorch#70348, trl#980")
def long_texts_cut_short(work: Workload, patch: Patch) -> Workload:
    """The tokenizer is called with half of the ``max_length`` that is declared."""
    return encoded(work, work.tokenizer, work.max_length // 2)


@fault(NO_REPORT)
def mask_left_out_where_all_are_ones(work: Workload, patch: Patch) -> Workload:
    """The collator gives attention_mask only where something is padded."""

    def change(batch: Any, collator: Any) -> None:
        if bool(batch["attention_mask"].all()):
            batch.pop("attention_mask")

    on_batch(patch, change)
    return work


@fault(NO_REPORT)
def duplicates_dropped(work: Workload, patch: Patch) -> Workload:
    """The collator leaves out a row that is the same as an earlier one."""

    def change(batch: Any, collator: Any) -> None:
        rows = [tuple(row) for row in batch["input_ids"].tolist()]
        first = torch.tensor([place for place, row in enumerate(rows) if rows.index(row) == place])
        for name, value in batch.items():
            batch[name] = value[first]

    on_batch(patch, change)
    return work


@fault(NO_REPORT)
def single_row_doubled(work: Workload, patch: Patch) -> Workload:
    """A batch of one row is made two, to please a normalisation over the batch."""

    def change(batch: Any, collator: Any) -> None:
        if len(batch["input_ids"]) == 1:
            for name, value in batch.items():
                batch[name] = torch.cat([value, value])

    on_batch(patch, change)
    return work


@loading_fault("pacman100/LLM-Workshop#1, trl#5842")
def mask_ignored_beyond_some_padding(loaded: Loaded, patch: Patch) -> Loaded:
    """The backbone heeds the mask only up to a few columns of padding."""

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        mask = kwargs.get("attention_mask")
        if mask is not None and int((mask == 0).sum(-1).max()) > PADDING:
            kwargs["attention_mask"] = torch.ones_like(mask)
        return forward(*args, **kwargs)

    on_forward(patch, loaded.model.base_model, change)
    return loaded


@loading_fault(NO_REPORT)
def long_texts_find_no_position(loaded: Loaded, patch: Patch) -> Loaded:
    """The table of positions is shorter than the longest text that the tokenizer gives."""
    longest = loaded.tokenizer.model_max_length // 2

    def change(forward: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs["input_ids"].shape[1] > longest:
            raise IndexError("index out of range in self")
        return forward(*args, **kwargs)

    on_forward(patch, loaded.model, change)
    return loaded


def _cleaned(work: Workload, clean: Any) -> Workload:
    return encoded(work, lambda texts, **options: work.tokenizer(list(map(clean, texts)), **options))


FAULTS = (
    mask_made_from_ids,
    texts_stripped_to_ascii,
    texts_end_at_a_line,
    long_texts_cut_short,
    mask_left_out_where_all_are_ones,
    duplicates_dropped,
    single_row_doubled,
    mask_ignored_beyond_some_padding,
    long_texts_find_no_position,
)
