"""Defects of libraries that break a law in a set-up that is right, so that nobody looks for the mistake at home."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.laws.declared import train
from harness.laws.law import Verdict
from harness.record import Record

_COUNTED = ("causal-lm", "question-answering")
"""Tasks whose models count, or where there is nothing to count."""


_UNSHIFTED = (
    *("Bart", "BigBirdPegasus", "Blenderbot", "CpmAnt", "MBart", "Marian", "Mvp", "PLBart", "Pegasus", "TrOCR"),
    *("Whisper", "XLMWithLMHead", "XLNet"),
)
"""Whose loss of a language model does not shift."""


_UNTYPED = ("Albert", "Funnel", "Herbert", "RemBert", "RoFormer", "Splinter")
"""Whose tokenizers return no token types."""


@dataclass(frozen=True)
class Defect:
    """What is wrong in a library, where it shows, and what helps."""

    laws: tuple[str, ...]
    library: str
    """With the versions in which it was seen."""
    seen: str
    """When it was last found to be there, as year and month."""
    what: str
    remedy: str
    thread: str
    applies: Callable[[Record], bool]
    """Whether a record in which the law is broken has what it takes."""


_PER_TOKEN = ("token-classification", "masked-lm", "causal-lm", "seq2seq-lm")
"""Tasks whose loss is a mean over tokens."""


def _trainer_accumulates(record: Record) -> bool:
    said = train(record)
    alone = said["loop"] == "trainer" and said["gradient_accumulation"] > 1
    return alone and not said["label_smoothing"] and not said["compute_loss_func"]


DEFECTS: tuple[Defect, ...] = (
    Defect(
        laws=("accumulation_equivalent", "loss_is_the_declared_one", "gradient_is_the_declared_one", "loops_agree"),
        library="transformers, to 5.23",
        seen="2026-11",
        what="the Trainer leaves the division by num_items_in_batch to heads that take **kwargs, and most heads except "
        "those of causal language models take it and ignore it: gradients are too large by a factor of the number of "
        "micro-batches. AdamW hides it, clipping and SGD do not",
        remedy="train.compute_loss_func: true, which gives the Trainer a loss that divides",
        thread="https://github.com/huggingface/transformers/issues/47688",
        applies=lambda record: _trainer_accumulates(record) and _settings(record, "task") not in _COUNTED,
    ),
    Defect(
        laws=("accumulation_equivalent", "loss_is_the_declared_one", "gradient_is_the_declared_one", "loops_agree"),
        library="transformers, to 5.23",
        seen="2026-11",
        what="the Trainer only counts columns called labels: for question answering it takes the mean of the "
        "micro-batches' means, which gives the rows of a short one more weight",
        remedy="train.drop_last: true, so that all micro-batches have as many rows",
        thread="none found",
        applies=lambda record: _trainer_accumulates(record) and _settings(record, "task") == "question-answering",
    ),
    Defect(
        laws=("save_reload_equal",),
        library="transformers 5.23",
        seen="2026-11",
        what="BartConfig has 3 labels by default, but config.json leaves labels out if there are 2, the default of "
        "all other configs: loading makes a head for 3",
        remedy="give the labels names (data.label_names), or pass num_labels where the model is loaded",
        thread="none found",
        applies=lambda record: _architecture(record).startswith("Bart") and _settings(record, "data.num_labels") == 2,
    ),
    Defect(
        laws=("save_reload_equal",),
        library="transformers 5.23",
        seen="2026-11",
        what="_init_weights of Funnel and Youtu sets the pad token's row of the embedding to 0 through .data, even "
        "after it was loaded: what was learnt of it is lost, such as the end of a text if that is the pad token",
        remedy="pad with a token that means nothing else",
        thread="none found",
        applies=lambda record: _architecture(record).startswith(("Funnel", "Youtu")),
    ),
    Defect(
        laws=("save_reload_equal",),
        library="transformers 5.23",
        seen="2026-11",
        what="AutoModelForCausalLM builds the text part of Emu3 and Mllama, which saves a config that it cannot load",
        remedy="load and save the whole, with AutoModelForImageTextToText",
        thread="none found",
        applies=lambda record: _architecture(record).startswith(("Emu3", "Mllama")),
    ),
    Defect(
        laws=("loss_is_the_declared_one", "gradient_is_the_declared_one"),
        library="transformers, 4.x to 5.23",
        seen="2026-11",
        what="the causal heads of BART and its like, and of CPM-Ant, XLM and XLNet do not shift the labels: a model "
        "that copies its input has no loss",
        remedy="shift the labels by one where the batch is made",
        thread="none found",
        applies=lambda record: (
            _settings(record, "task") == "causal-lm" and _architecture(record).startswith(_UNSHIFTED)
        ),
    ),
    Defect(
        laws=("loss_is_the_declared_one", "gradient_is_the_declared_one"),
        library="transformers, 4.x to 5.23",
        seen="2026-11",
        what="ProphetNet's loss is the mean over all its streams, which predict each label from one token before it, "
        "from two, and so on; its logits are those of the first",
        remedy="disable_ngram_loss: true in config.json, for the loss of the first stream alone",
        thread="https://github.com/huggingface/transformers/issues/8553",
        applies=lambda record: _architecture(record).startswith("ProphetNet"),
    ),
    Defect(
        laws=("padding_changes_nothing", "examples_stay_apart", "future_unseen"),
        library="transformers, 4.x to 5.23",
        seen="2026-11",
        what="ProphetNet's get_predict_relative_pos_embeddings lays places out before heads and reads heads before "
        "places: with two heads or more, a place is biased by others, padding and those behind it among them",
        remedy="batches of texts and targets of one length",
        thread="https://github.com/huggingface/transformers/issues/24289",
        applies=lambda record: _architecture(record).startswith("ProphetNet"),
    ),
    Defect(
        laws=("labels_masked_right",),
        library="transformers, 4.29 to 5.23",
        seen="2026-11",
        what="DataCollatorForLanguageModeling ignores every id that is the pad token: if that is the end token, the "
        "end of a text is never learnt",
        remedy="make labels before padding and pad them with DataCollatorForSeq2Seq, or give the tokenizer a pad token "
        "of its own",
        thread="https://github.com/huggingface/transformers/issues/23530",
        applies=lambda record: _settings(record, "task") == "causal-lm" and _pads_with_its_end(record),
    ),
    Defect(
        laws=("tokens_match_tokenizer",),
        library="transformers, 5.0 to 5.23",
        seen="2026-11",
        what="the tokenizers of ALBERT, Funnel, HerBERT, RemBERT, RoFormer and Splinter return no token_type_ids any "
        "more: both texts of a pair are read as the first",
        remedy="model_input_names: [input_ids, token_type_ids, attention_mask] in tokenizer_config.json",
        thread="https://github.com/huggingface/transformers/issues/48128",
        applies=lambda record: _leaves_types_out(record),
    ),
    Defect(
        laws=("loss_finite",),
        library="torch and transformers 5, where a checkpoint is stored in fp16",
        seen="2026-11",
        what="from_pretrained keeps the file's dtype, and in fp16 AdamW's eps of 1e-8 is 0: weights become NaN, which "
        "the Trainer logs as a loss of 0.0",
        remedy="load with dtype=torch.float32, and let autocast do the rest",
        thread="https://github.com/huggingface/peft/issues/1249",
        applies=lambda record: record.checkpoint is not None and record.checkpoint.dtype == "float16",
    ),
    Defect(
        laws=("evaluation_loss_is_right",),
        library="transformers, 4.x to 5.23",
        seen="2026-11",
        what="Trainer.evaluate takes eval_loss as the mean of the batches' mean losses: if batches differ in how "
        "many tokens have a label, it depends on the batch size, and so does a perplexity made from it",
        remedy="sum the losses of tokens in compute_metrics, or evaluate in batches of one and weight them",
        thread="https://github.com/huggingface/transformers/issues/39241",
        applies=lambda record: _settings(record, "train.loop") == "trainer" and _task(record) in _PER_TOKEN,
    ),
)
"""By law; what is mended is taken out."""


def explained(verdict: Verdict, record: Record) -> Verdict:
    """The verdict, which names a known defect where the record has what it takes."""
    if verdict.outcome != "broken":
        return verdict
    for defect in DEFECTS:
        if verdict.law in defect.laws and defect.applies(record):
            known = f"known defect of {defect.library}: {defect.what}. Remedy: {defect.remedy} ({defect.thread})"
            return replace(verdict, cause=f"{verdict.cause}; {known}" if verdict.cause else known)
    return verdict


def _pads_with_its_end(record: Record) -> bool:
    words = record.tokenizer
    return words is not None and words.pad_token_id in words.end_token_ids


def _leaves_types_out(record: Record) -> bool:
    words = record.tokenizer
    known = words is not None and words.name.startswith(_UNTYPED)
    return known and any(one.pair and "token_type_ids" not in one.columns for one in record.examples)


def _architecture(record: Record) -> str:
    return record.checkpoint.architecture if record.checkpoint is not None else ""


def _settings(record: Record, key: str) -> object:
    return record.settings.get(key)


def _task(record: Record) -> object:
    return _settings(record, "task")
