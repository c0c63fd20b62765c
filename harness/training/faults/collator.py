"""Faults of the collator: mask, padding, rows."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from harness.training.fault import Patch, fault
from harness.training.faults.seam import on_batch
from harness.training.workload import Workload


@fault("transformers#29029, jingyaogong/minimind-v#76, pacman100/LLM-Workshop#1")
def mask_left_out(work: Workload, patch: Patch) -> Workload:
    """The collator leaves out attention_mask."""
    on_batch(patch, lambda batch, collator: _without(batch, "attention_mask"))
    return work


@fault("pacman100/LLM-Workshop#1")
def mask_of_ones(work: Workload, patch: Patch) -> Workload:
    """attention_mask is ``torch.ones_like(input_ids)``."""
    on_batch(patch, lambda batch, collator: _set(batch, torch.ones_like(batch["input_ids"])))
    return work


@fault("transformers#48363")
def mask_inverted(work: Workload, patch: Patch) -> Workload:
    """attention_mask is 1 on padding and 0 on text."""
    on_batch(patch, lambda batch, collator: _set(batch, 1 - batch["attention_mask"]))
    return work


@fault("transformers#35352, trl#976")
def mask_hides_the_last_token(work: Workload, patch: Patch) -> Workload:
    """attention_mask is 0 on the last token of each text, as where it is made from the end token's id."""

    def change(batch: Any, collator: Any) -> None:
        mask = batch["attention_mask"].clone()
        for row in mask:
            real = row.nonzero().flatten()
            row[real[-1:] if len(real) > 1 else real[:0]] = 0
        batch["attention_mask"] = mask

    on_batch(patch, change)
    return work


@fault("transformers#35352")
def mask_reaches_one_pad(work: Workload, patch: Patch) -> Workload:
    """attention_mask is 1 on one position of padding, an off-by-one in its length."""

    def change(batch: Any, collator: Any) -> None:
        mask = batch["attention_mask"].clone()
        for row in mask:
            pads = (row == 0).nonzero().flatten()
            row[pads[-1:] if collator.tokenizer.padding_side == "left" else pads[:1]] = 1
        batch["attention_mask"] = mask

    on_batch(patch, change)
    return work


@fault("transformers#6238, transformers#16455")
def pads_with_another_token(work: Workload, patch: Patch) -> Workload:
    """Rows are padded with the unknown token, under a right mask."""
    words = work.tokenizer
    other = next(
        one for one in (words.unk_token_id, words.mask_token_id, 1, 0) if one not in (None, words.pad_token_id)
    )

    def change(batch: Any, collator: Any) -> None:
        batch["input_ids"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, other)

    on_batch(patch, change)
    return work


@fault("transformers#48128, transformers#263")
def token_types_of_the_second_text(work: Workload, patch: Patch) -> Workload:
    """token_type_ids are 1, as of the second text of a pair, where there is one text only."""

    def change(batch: Any, collator: Any) -> None:
        if "token_type_ids" in batch:
            batch["token_type_ids"] = torch.ones_like(batch["token_type_ids"])

    on_batch(patch, change)
    return work


@fault("transformers#48128, transformers#17082")
def token_types_left_out(work: Workload, patch: Patch) -> Workload:
    """The collator leaves out token_type_ids."""
    on_batch(patch, lambda batch, collator: _without(batch, "token_type_ids"))
    return work


@fault("transformers#46634, trl#3526")
def positions_count_from_one(work: Workload, patch: Patch) -> Workload:
    """The collator makes position_ids, and counts from 1."""

    def change(batch: Any, collator: Any) -> None:
        if "position_ids" in inspect.signature(type(work.model).forward).parameters:
            ids = batch["input_ids"]
            batch["position_ids"] = torch.arange(1, ids.shape[-1] + 1).expand(ids.shape).contiguous()

    on_batch(patch, change)
    return work


@fault("pytorch#70348")
def batch_cut_to_its_shortest(work: Workload, patch: Patch) -> Workload:
    """Rows are cut to the shortest of the batch instead of padded to the longest."""

    def change(batch: Any, collator: Any) -> None:
        shortest = int(batch["attention_mask"].sum(-1).min())
        for name, value in batch.items():
            batch[name] = value[:, :shortest] if value.dim() == 2 else value

    on_batch(patch, change)
    return work


@fault("Lightning-AI/pytorch-lightning#19987, burn#5695")
def last_row_lost(work: Workload, patch: Patch) -> Workload:
    """The last row of each batch is lost."""

    def change(batch: Any, collator: Any) -> None:
        if len(batch["input_ids"]) > 1:
            for name, value in batch.items():
                batch[name] = value[:-1]

    on_batch(patch, change)
    return work


@fault("pytorch#25162, accelerate#540")
def first_row_repeated(work: Workload, patch: Patch) -> Workload:
    """The last row of each batch is a copy of the first, as where a batch is filled up."""

    def change(batch: Any, collator: Any) -> None:
        if len(batch["input_ids"]) > 1:
            for name, value in batch.items():
                batch[name] = torch.cat([value[:-1], value[:1]])

    on_batch(patch, change)
    return work


@fault("mlcommons/GaNDLF#870")
def rows_and_labels_sorted_apart(work: Workload, patch: Patch) -> Workload:
    """The collator sorts the texts of a batch by length, and not their labels."""

    def change(batch: Any, collator: Any) -> None:
        order = batch["attention_mask"].sum(-1).argsort(descending=True, stable=True)
        for name, value in batch.items():
            batch[name] = value[order] if value.dim() == 2 else value

    on_batch(patch, change)
    return work


@fault("pytorch#3880, facebookresearch/fairseq#1383")
def a_token_is_masked_at_random(work: Workload, patch: Patch) -> Workload:
    """A collator for another task is used, which replaces a token of each row."""
    words = work.tokenizer
    hidden = words.mask_token_id if words.mask_token_id is not None else words.unk_token_id or 0

    def change(batch: Any, collator: Any) -> None:
        ids = batch["input_ids"].clone()
        for row, mask in zip(ids, batch["attention_mask"], strict=True):
            real = mask.nonzero().flatten()
            row[real[len(real) // 2]] = hidden
        batch["input_ids"] = ids

    on_batch(patch, change)
    return work


def _without(batch: Any, name: str) -> None:
    batch.pop(name, None)


def _set(batch: Any, mask: torch.Tensor) -> None:
    batch["attention_mask"] = mask


FAULTS = (
    mask_left_out,
    mask_of_ones,
    mask_inverted,
    mask_hides_the_last_token,
    mask_reaches_one_pad,
    pads_with_another_token,
    token_types_of_the_second_text,
    token_types_left_out,
    positions_count_from_one,
    batch_cut_to_its_shortest,
    last_row_lost,
    first_row_repeated,
    rows_and_labels_sorted_apart,
    a_token_is_masked_at_random,
)
