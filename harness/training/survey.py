"""What there is to see of the data: labels, unknown tokens, texts that were cut, texts with two labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from harness import experiment, record
from harness.training.checkpoint import Loaded
from harness.training.data import Examples
from harness.training.encoding import tokens_of
from harness.training.leakage import Leakage
from harness.training.rows import SHOWN, Row, Table
from harness.training.tasks import Features
from harness.training.workload import Workload

Noted = tuple[int, record.Row]
"""A row, and by how much it stands out."""


class Survey:
    """Counts over examples: over all of them where they are few, else over those that are drawn.

    Args:
        loaded: the checkpoint's own tokenizer tells what is unknown.
        work: its examples are looked at as the loop gets them.
        leakage: looks at each of them, too.
    """

    def __init__(self, loaded: Loaded, work: Workload, leakage: Leakage | None = None) -> None:
        self._leakage = leakage
        self._rows, self._work = loaded.rows, work
        self._unknown = loaded.tokenizer.unk_token_id
        self._special = frozenset(loaded.tokenizer.all_special_ids) - {self._unknown}
        self._classes = loaded.rows.labels.count or 0
        # GPT-2's unknown token is its end token, too: one in a text says nothing of a word.
        others = {loaded.tokenizer.eos_token_id, loaded.tokenizer.bos_token_id, loaded.tokenizer.pad_token_id}
        self._known = "unk_token" in loaded.tokenizer.special_tokens_map and self._unknown not in {None, *others}
        self._seen: set[int] = set()
        self._labels: Counter[int] = Counter()
        self._outside: list[record.Row] = []
        self._tokens = self._unknowns = self._cut = 0
        self._most_unknown: list[Noted] = []
        self._most_cut: list[Noted] = []
        self._texts: dict[bytes, tuple[Any, int, str]] = {}
        self._conflicting: dict[bytes, int] = {}
        self._conflicts: list[record.Row] = []
        self.whole = isinstance(work.examples, Examples)
        """Whether every row of the data was looked at."""
        if self.whole:
            self.look(work.examples[index] for index in range(len(work.examples.lengths)))

    def look(self, examples: Iterable[Features]) -> None:
        """Count these, each index once."""
        for features in examples:
            index = features["index"]
            if index not in self._seen and "row" in features:
                self._seen.add(index)
                self._look(features, features["row"])
                if self._leakage is not None:
                    self._leakage.look(features)

    def found(self) -> record.Data:
        """All that was counted."""
        rows = self._rows
        return record.Data(
            source=rows.name,
            revision=rows.revision,
            rows=self._size(),
            dropped=rows.dropped.number,
            dropped_rows=tuple(record.Row(row=row, text=text, note=note) for row, text, note in rows.dropped.first),
            label_names=rows.labels.names or (),
            config_label_names=tuple(self._work.model.config.id2label.values()),
            seen=len(self._seen),
            labels={str(label): number for label, number in sorted(self._labels.items())},
            outside=tuple(self._outside),
            classes=self._classes,
            classes_declared=self._work.settings.data.num_labels is not None or rows.labels.names is not None,
            tokens=self._tokens,
            unknown_tokens=self._unknowns if self._known else None,
            most_unknown=_first(self._most_unknown),
            cut=self._cut,
            most_cut=_first(self._most_cut),
            conflicting=sum(self._conflicting.values()),
            conflicts=tuple(self._conflicts),
        )

    def _size(self) -> int | None:
        """How many examples there are; of a stream, once its end was seen."""
        examples = self._work.examples
        if isinstance(examples, Examples):
            return len(examples)
        if isinstance(examples.rows, Table) and not examples.rows.drops:
            return len(examples.rows)
        return examples.ended

    def _look(self, features: Features, row: Row) -> None:
        label, ids = features.get("label"), [token for text in tokens_of(features) for token in text]
        if isinstance(label, int) and self._classes:
            self._labels[label] += 1
            if not 0 <= label < self._classes and len(self._outside) < SHOWN:
                self._outside.append(_note(features, row, f"label {label}"))
            self._compare(features, row, label)
        self._tokens += sum(token not in self._special for token in ids)
        if self._known and (unknown := ids.count(self._unknown)):
            self._unknowns += unknown
            _keep(self._most_unknown, unknown, _note(features, row, f"{unknown} of {len(ids)} tokens"))
        if cut := features.get("cut"):
            self._cut += 1
            _keep(self._most_cut, cut, _note(features, row, f"{cut} of {cut + len(ids)} tokens cut off"))

    def _compare(self, features: Features, row: Row, label: int) -> None:
        """Look for the same text with another label, case and spaces apart."""
        texts = [" ".join(text.casefold().split()) for text in experiment.texts(row)]
        key = hashlib.blake2b("\0".join(texts).encode("utf-8", "surrogatepass"), digest_size=12).digest()
        other, place, text = self._texts.setdefault(key, (label, features["place"], next(experiment.texts(row))[:60]))
        if key in self._conflicting:
            self._conflicting[key] += 1
        elif other != label:
            self._conflicting[key] = 2
            if len(self._conflicts) < 2 * SHOWN:
                self._conflicts += [
                    record.Row(row=place, text=text, note=f"label {other}"),
                    _note(features, row, f"label {label}"),
                ]


def _note(features: Features, row: Row, note: str) -> record.Row:
    return record.Row(
        row=features.get("place", features["index"]), text=next(experiment.texts(row), "")[:60], note=note
    )


def _keep(notes: list[Noted], much: int, row: record.Row) -> None:
    """Keep those that stand out most; the earlier first."""
    notes.append((much, row))
    notes.sort(key=lambda noted: -noted[0])
    del notes[SHOWN:]


def _first(notes: Sequence[Noted]) -> tuple[record.Row, ...]:
    return tuple(row for _, row in notes)
