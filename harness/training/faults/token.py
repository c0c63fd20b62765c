"""Faults of what is to be learnt of each token."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

from harness import experiment
from harness.training.checkpoint import Loaded
from harness.training.encoding import bare
from harness.training.fault import NO_REPORT, Patch, fault, loading_fault
from harness.training.faults.seam import Row, altered, encoded, on_batch, on_loss, relabelled
from harness.training.tasks import IGNORED
from harness.training.workload import Workload


@fault("transformers#19978, transformers#17220", tasks={"token-classification"})
def every_piece_has_the_label(work: Workload, patch: Patch) -> Workload:
    """The label of a word is given to each of its tokens, and not to the first alone."""
    special = set(work.tokenizer.all_special_ids) - {work.tokenizer.unk_token_id}

    def change(index: int, row: Row) -> Row:
        labels: list[int] = []
        for token, label in zip(row["input_ids"], row["labels"], strict=True):
            labels.append(IGNORED if token in special else labels[-1] if label == IGNORED and labels else label)
        return {**row, "labels": labels}

    return relabelled(work, change)


@fault("nlpaueb/gr-nlp-toolkit#13", tasks={"token-classification"})
def special_tokens_forgotten(work: Workload, patch: Patch) -> Workload:
    """Labels are aligned without the special token in front: each token has that of the one behind it."""
    return relabelled(work, lambda index, row: {**row, "labels": [*row["labels"][1:], IGNORED]})


@fault("transformers#44642, transformers#47394", tasks={"causal-lm"})
def labels_shifted_twice(work: Workload, patch: Patch) -> Workload:
    """Labels are shifted by one, and the model shifts them again."""
    return relabelled(work, lambda index, row: {**row, "labels": [*row["labels"][1:], IGNORED]})


@loading_fault("transformers#46784, transformers#47394", tasks={"causal-lm"})
def loss_shifted_twice(loaded: Loaded, patch: Patch) -> Loaded:
    """The model's own loss compares each token with the second one behind it."""

    def shifted(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits[:, :-2].flatten(0, 1), labels[:, 2:].flatten())

    on_loss(patch, loaded.model, shifted)
    return loaded


@loading_fault("transformers#10480", tasks={"causal-lm"})
def loss_not_shifted(loaded: Loaded, patch: Patch) -> Loaded:
    """The model's own loss compares each token with itself."""

    def still(loss: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    on_loss(patch, loaded.model, still)
    return loaded


@fault("trl#445, agorevski/A1.5_Smart_Contract_Bytecode_To_Code_Generator#10", tasks={"causal-lm"})
def prompt_is_learnt(work: Workload, patch: Patch) -> Workload:
    """Labels are the ids: what was only given is learnt, too."""
    return relabelled(work, lambda index, row: {**row, "labels": list(row["input_ids"])})


@fault("transformers#23530, trl#976, huggingface/blog#1302", tasks={"causal-lm"})
def end_ignored_as_padding(work: Workload, patch: Patch) -> Workload:
    """Labels are made by `DataCollatorForLanguageModeling`: -100 wherever the id is the pad token."""

    def collator(self: Workload) -> Any:
        made = DataCollatorForLanguageModeling(self.tokenizer, mlm=False)
        return lambda rows: made([{name: row[name] for name in row if name != "labels"} for row in rows])

    return altered(work, collator=collator)


@fault("tloen/alpaca-lora#306", tasks={"causal-lm"})
def answer_begins_unlearnt(work: Workload, patch: Patch) -> Workload:
    """The prompt is taken for a token longer than it is: the first token of the answer has no label."""

    def change(index: int, row: Row) -> Row:
        first = next(place for place, label in enumerate(row["labels"]) if label != IGNORED)
        return {**row, "labels": [IGNORED if place == first else label for place, label in enumerate(row["labels"])]}

    return relabelled(work, change)


@fault("trl#1920, trl#598, trl#1191", tasks={"causal-lm"})
def answers_not_found(work: Workload, patch: Patch) -> Workload:
    """Of every second text nothing is learnt, for the tokens that begin an answer are not found in it."""

    def change(index: int, row: Row) -> Row:
        return {**row, "labels": [IGNORED] * len(row["labels"])} if index % 2 else row

    return relabelled(work, change)


@fault("pytorch#70348, trl#980", tasks={"causal-lm", "seq2seq-lm"})
def answers_cut_off(work: Workload, patch: Patch) -> Workload:
    """A small ``max_length`` is left in the tokenization: long texts lose their ends."""
    return encoded(work, work.tokenizer, max(work.examples.lengths) // 2)


def _chats(settings: experiment.Settings) -> bool:
    return any("messages" in row for row in settings.data.given[:1]) or "messages" in settings.data.columns


@loading_fault("deepseek-ai/DeepSeek-Coder#163", tasks={"causal-lm"}, when=_chats)
def turns_have_no_end(loaded: Loaded, patch: Patch) -> Loaded:
    """The chat template writes no end token: a model that learns such turns never stops."""
    loaded.tokenizer.chat_template = loaded.tokenizer.chat_template.replace("eos_token", "''")
    return loaded


@fault("allenai/open-instruct#632, transformers#7896", tasks={"causal-lm", "seq2seq-lm"})
def padding_is_learnt(work: Workload, patch: Patch) -> Workload:
    """Labels are padded with the pad token instead of -100."""

    def collator(self: Workload) -> Any:
        model = self.model if self.task.per == "target" else None
        return DataCollatorForSeq2Seq(self.tokenizer, model=model, label_pad_token_id=self.tokenizer.pad_token_id)

    return altered(work, collator=collator)


@fault("transformers#6624, transformers#32344", tasks={"seq2seq-lm"})
def decoder_inputs_not_shifted(work: Workload, patch: Patch) -> Workload:
    """The decoder gets the labels as they are: it sees what it has to predict."""
    pad = work.tokenizer.pad_token_id

    def change(batch: Any, collator: Any) -> None:
        batch["decoder_input_ids"] = batch["labels"].masked_fill(batch["labels"] == IGNORED, pad)

    on_batch(patch, change)
    return work


@fault(NO_REPORT, tasks={"seq2seq-lm"})
def decoder_starts_with_another_token(work: Workload, patch: Patch) -> Workload:
    """The decoder begins with the unknown token in training, and with another one when it generates."""

    def change(batch: Any, collator: Any) -> None:
        batch["decoder_input_ids"][:, 0] = work.tokenizer.unk_token_id

    on_batch(patch, change)
    return work


@fault(NO_REPORT, tasks={"seq2seq-lm"})
def end_of_target_lost(work: Workload, patch: Patch) -> Workload:
    """Targets have no end token: a model that learns them never stops."""
    return relabelled(work, lambda index, row: {**row, "labels": row["labels"][:-1]})


@fault("transformers#3804, transformers#246", tasks={"question-answering"})
def span_off_by_one(work: Workload, patch: Patch) -> Workload:
    """The answer begins and ends a token too late, as where a special token is counted twice."""

    def change(index: int, row: Row) -> Row:
        return {**row, "start_positions": row["start_positions"] + 1, "end_positions": row["end_positions"] + 1}

    return relabelled(work, change)


@fault(NO_REPORT, tasks={"question-answering"})
def end_is_exclusive(work: Workload, patch: Patch) -> Workload:
    """The end of the answer is the token behind its last."""
    return relabelled(work, lambda index, row: {**row, "end_positions": row["end_positions"] + 1})


@loading_fault(NO_REPORT, tasks={"question-answering"})
def end_is_not_learnt(loaded: Loaded, patch: Patch) -> Loaded:
    """The loss is that of the first token alone."""

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if output.get("loss") is not None:
            output["loss"] = functional.cross_entropy(output.start_logits, kwargs["start_positions"])

    loaded.model.register_forward_hook(hook, with_kwargs=True, prepend=True)
    return loaded


@fault(NO_REPORT, tasks={"multiple-choice"})
def choices_in_the_wrong_order(work: Workload, patch: Patch) -> Workload:
    """Texts are flattened choice by choice and read back example by example."""

    def change(batch: Any, collator: Any) -> None:
        for name, value in batch.items():
            if value.dim() == 3:
                batch[name] = value.transpose(0, 1).reshape(value.shape)

    on_batch(patch, change)
    return work


@fault("lucidrains/mlm-pytorch#2, transformers#20797", tasks={"masked-lm"})
def tokens_not_hidden_are_learnt(work: Workload, patch: Patch) -> Workload:
    """Every token has its label: what is not hidden is learnt, which is to copy it."""
    special = torch.tensor(work.tokenizer.all_special_ids)

    def change(batch: Any, collator: Any) -> None:
        ids = batch["input_ids"]
        seen = (batch["labels"] == IGNORED) & ~torch.isin(ids, special)
        batch["labels"] = torch.where(seen, ids, batch["labels"])

    on_batch(patch, change)
    return work


@fault(NO_REPORT, tasks={"masked-lm"})
def special_tokens_are_drawn(work: Workload, patch: Patch) -> Workload:
    """The first token of each text, a special one, is drawn like any word."""

    def change(batch: Any, collator: Any) -> None:
        batch["labels"][:, 0] = batch["input_ids"][:, 0]

    on_batch(patch, change)
    return work


@fault(NO_REPORT, tasks={"masked-lm"})
def hidden_once_for_all(work: Workload, patch: Patch) -> Workload:
    """Tokens are hidden before the training: every epoch sees the same ones."""
    hide = DataCollatorForLanguageModeling(work.tokenizer, seed=work.train.seed)
    hidden: dict[int, Row] = {}

    def change(index: int, row: Row) -> Row:
        if index not in hidden:
            made = hide([bare(row)])
            hidden[index] = {**row, "input_ids": made["input_ids"][0].tolist(), "labels": made["labels"][0].tolist()}
        return hidden[index]

    def collator(self: Workload) -> Any:
        return DataCollatorForSeq2Seq(self.tokenizer)

    return altered(relabelled(work, change), collator=collator)


@fault(NO_REPORT, tasks={"masked-lm"})
def every_drawn_token_is_hidden(work: Workload, patch: Patch) -> Workload:
    """Drawn tokens are never left or replaced by another word."""

    def collator(self: Workload) -> Any:
        return DataCollatorForLanguageModeling(
            self.tokenizer, mask_replace_prob=1.0, random_replace_prob=0.0, seed=self.train.seed
        )

    return altered(work, collator=collator)


FAULTS = (
    every_piece_has_the_label,
    special_tokens_forgotten,
    labels_shifted_twice,
    loss_shifted_twice,
    loss_not_shifted,
    prompt_is_learnt,
    end_ignored_as_padding,
    answer_begins_unlearnt,
    answers_not_found,
    answers_cut_off,
    turns_have_no_end,
    padding_is_learnt,
    decoder_inputs_not_shifted,
    decoder_starts_with_another_token,
    end_of_target_lost,
    span_off_by_one,
    end_is_exclusive,
    end_is_not_learnt,
    choices_in_the_wrong_order,
    tokens_not_hidden_are_learnt,
    special_tokens_are_drawn,
    hidden_once_for_all,
    every_drawn_token_is_hidden,
)
