"""What is in the data: labels, unknown tokens, texts that were cut, texts with two labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from harness.errors import count
from harness.laws.law import Verdict, broken, held, invalid, law, not_applicable
from harness.record import Data, Record, Row

SOME, MANY = 12, 700
"""Rows from which on it is no chance that all have one label: of a whole source, and of rows that were drawn."""

Share = Annotated[float, Field(ge=0, le=1, description="The largest share that still holds, 0 to 1.")]


@law()
def labels_in_range(record: Record) -> Verdict:
    """Every label is one of the model's classes, counted from 0, and is called what the data call it.

    Judged on all rows of a small source, on the drawn rows of a large one, and on the labels that reached the
    model in the kept batches. A label of -100 is outside, too: the loss ignores it silently, and the row teaches
    nothing. A label beyond the last class is an index out of bounds, and on a GPU an assertion that does not say where.
    If nobody declares how many classes there are, and each has a row but class 0, labels are counted from 1, and the
    head has a class that nothing teaches.

    The rows are not all of one class: many datasets are sorted by label, and their first thousand rows teach to say one
    word. Of a source that is looked at as a whole that is judged from 12 rows on, since two sentences with one label
    may be a trial; of rows that are drawn from 700 on: a class with one row in a hundred is missing from so many in one
    of a thousand runs.
    """
    if (data := _seen(record)) is None:
        return invalid("no row was looked at")
    if data.label_names and data.config_label_names not in ((), data.label_names):
        return broken(
            f"the classes are {', '.join(data.label_names)}, and the model's config has "
            f"{', '.join(data.config_label_names)}",
            cause="names were given to numbers twice, in another order: predictions have the names of other classes",
        )
    if not data.labels:
        return not_applicable("labels are no single numbers")
    if data.outside:
        return broken(
            f"{_shown(data.outside)}: expected a label from 0 to {data.classes - 1}",
            cause="labels are counted from 1, mark what is not labelled, or belong to another head",
        )
    if _from_one(data):
        return broken(
            f"none of {_rows(data)} has the label 0, and each from 1 to {data.classes - 1} occurs",
            cause="labels are counted from 1; if there is a class 0, only without a row, declare data.num_labels",
        )
    streams = record.settings.get("data.streaming")
    if len(data.labels) == 1 and data.classes > 1 and data.seen >= (SOME if data.seen == data.rows else MANY):
        return broken(
            f"{_rows(data)}: all have the label {next(iter(data.labels))}, of {data.classes} classes",
            cause="rows are sorted by label, and only the first are taken: "
            + ("raise data.shuffle_buffer" if streams else "declare data.shuffle_seed beside data.limit"),
        )
    for batch in record.batches:
        for row, label in enumerate(batch.tensors.get("labels", ())):
            if isinstance(label, int) and not 0 <= label < data.classes:
                place = f" (example {batch.examples[row]})" if row < len(batch.examples) else ""
                return broken(
                    f"step {batch.step + 1}, row {row}{place}: label {label}, "
                    f"expected one from 0 to {data.classes - 1}",
                    cause="the collator changes labels on their way to the model",
                )
    return held(f"{_rows(data)}, {len(data.labels)} of {data.classes} classes")


@law()
def no_conflicting_duplicates(record: Record, *, share: Share = 0.01) -> Verdict:
    """No text occurs in the data with two different labels, except for a small share of the rows.

    Texts are compared without regard to case and spaces. Such rows teach both labels, and limit the accuracy that can
    be reached. The default allows 1 in 100, a convention: large hand-labelled sets have a few (Northcutt, Athalye and
    Mueller 2021 estimate 3.3 % wrong labels in ten well-known ones, on average).
    """
    if (data := _seen(record)) is None:
        return invalid("no row was looked at")
    if not data.labels:
        return not_applicable("labels are no single numbers")
    if data.conflicting > share * data.seen:
        return broken(
            f"{data.conflicting} of {_rows(data)} have a text that another one has with another label (allowed "
            f"{share:.1%}): {_shown(data.conflicts)}",
            cause="labels were joined to the wrong texts, a row was labelled twice, or half of a pair is missing",
        )
    return held(f"{data.conflicting} of {_rows(data)}")


@law()
def tokens_are_known(record: Record, *, share: Share = 0.05) -> Verdict:
    """The tokenizer knows the words of the data: only few tokens are the unknown token.

    Special tokens are not counted. To the model all unknown tokens are the same word. The default of 1 in 20 is a
    convention: occasional foreign names and emoji pass it, another script or a lost normalizer does not. Byte-level
    tokenizers have no unknown tokens.
    """
    if (data := _seen(record)) is None:
        return invalid("no row was looked at")
    if data.unknown_tokens is None:
        return not_applicable("the tokenizer has no unknown token")
    if data.unknown_tokens > share * data.tokens:
        return broken(
            f"{data.unknown_tokens} of {data.tokens} tokens are unknown (allowed {share:.1%}): "
            + _shown(data.most_unknown),
            cause="the tokenizer belongs to another language or checkpoint, or its normaliser is lost",
        )
    return held(f"{data.unknown_tokens} of {data.tokens} tokens unknown in {_rows(data)}")


@law()
def texts_are_whole(record: Record, *, share: Share = 0.1) -> Verdict:
    """Texts reach the model whole: only few are longer than the maximum length.

    What is truncated is lost silently, and often holds what the label is about. The default of 1 in 10 is a convention;
    an experiment that truncates on purpose declares a larger share.
    """
    if (data := _seen(record)) is None:
        return invalid("no row was looked at")
    longest = record.tokenizer.max_length if record.tokenizer else None
    if data.cut > share * data.seen:
        return broken(
            f"{data.cut} of {_rows(data)} are cut to {longest} tokens (allowed {share:.1%}): {_shown(data.most_cut)}",
            cause="train.max_length is too small, or the checkpoint is for shorter texts",
        )
    return held(f"{data.cut} of {_rows(data)} cut")


def _from_one(data: Data) -> bool:
    """Whether nobody declares how many classes there are, and each has a row but the first."""
    others = {str(label) for label in range(1, data.classes)}
    return not data.classes_declared and data.rows == data.seen and len(others) > 1 and data.labels.keys() == others


def _seen(record: Record) -> Data | None:
    return record.data if record.data is not None and record.data.seen else None


def _rows(data: Data) -> str:
    """How many rows were looked at; of how many, where not all were."""
    if data.rows is None or data.rows == data.seen:
        return count(data.seen, "row")
    return f"{data.seen} rows drawn of {data.rows}"


def _shown(rows: Sequence[Row]) -> str:
    return "; ".join(f"row {row.row} ({row.text!r}): {row.note}" for row in rows)
