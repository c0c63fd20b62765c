"""The rows of a declared source, alike whether they are written out, in files, or on the Hub.

A row is a mapping from roles (`text`, `text_pair`, `label`) to values. Rows of a table can be had by their place, those
of a stream only in their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import Any

from harness import experiment
from harness.errors import DataError, count, shown
from harness.training import repository

Row = dict[str, Any]

WHOLE = 5_000
"""Rows up to which a table is checked before training; rows of larger ones are checked when they are drawn."""
SHOWN = 5
"""Rows that a message or a record names, at most."""


@dataclass(frozen=True)
class Labels:
    """The classes, and how the data writes them."""

    count: int | None
    """None where labels are no classes."""
    names: tuple[str, ...] | None = None
    """By number; none where they have no names."""
    written: tuple[str, ...] | None = None
    """The name behind each number in the data, where those are not the numbers of `names`."""
    among: int | None = None
    """Where a row has a list of classes: how many there are."""
    problem: str | None = None
    """Of labels of whole texts that are no classes, as `problem_type` says it."""

    def number(self, value: Any) -> int:
        """The class of a label as the data writes it.

        Raises:
            ValueError: it is none of them; says what it is.
        """
        if self.written is not None and type(value) is int and 0 <= value < len(self.written):
            value = self.written[value]
        if isinstance(value, str) and self.names is not None:
            if value in self.names:
                return self.names.index(value)
            raise ValueError(f"the label {shown(value)} is none of {_list(self.names)}")
        if isinstance(value, bool):  # `true` in a csv file is no text
            value = next(
                (number for number, name in enumerate(self.names or ()) if name.lower() == str(value).lower()), value
            )
        if not isinstance(value, int):
            raise ValueError(f"the label is {_described(value)}, expected {self._expected()}")
        if self.count is not None and not 0 <= value < self.count:
            raise ValueError(f"the label {int(value)} is not from 0 to {self.count - 1}")
        return int(value)

    def numbered(self, row: Row) -> Row:
        """The row with the number of each class in a list that stands there by its name, or by another number.

        Raises:
            ValueError: there is no such name.
        """
        for role in ("label", "labels"):
            found = row.get(role)
            if not isinstance(found, list):
                continue
            named = any(isinstance(each, str) for each in found)
            if named and self.names is None:
                raise ValueError(f"{role} is {found}, expected numbers, or names that are in data.label_names")
            if named or self.written is not None:
                row = {**row, role: [self.number(each) if type(each) in (str, int) else each for each in found]}
        return row

    def _expected(self) -> str:
        return "a whole number" if self.names is None else f"a whole number or one of {_list(self.names)}"


@dataclass
class Dropped:
    """Rows that were left out, and why."""

    first: list[tuple[int, str, str]] = field(default_factory=list)
    """Place, text and reason of the first of them."""
    _places: set[int] = field(default_factory=set)

    @property
    def number(self) -> int:
        """How many they are."""
        return len(self._places)

    def add(self, place: int, row: Row, reason: str) -> None:
        """Count a row, once in however many epochs."""
        if place in self._places:
            return
        self._places.add(place)
        if len(self.first) < SHOWN:
            self.first.append((place, next(experiment.texts(row), "")[:60], reason))


@dataclass(frozen=True)
class Source:
    """What tables and streams have in common."""

    name: str
    """For messages: a dataset, a file, or the key of the experiment."""
    labels: Labels
    task: str = "sequence-classification"
    drops: bool = False
    """Whether rows that cannot be used are left out."""
    revision: str | None = None
    dropped: Dropped = field(default_factory=Dropped)

    def usable(self, place: int, row: Row) -> Row:
        """The row with its label as a number.

        Raises:
            ValueError: it holds nothing to train on; says why.
        """
        if self.task == "sequence-classification":
            for role in ("text", "text_pair"):
                if role in row and not (isinstance(row[role], str) and row[role].strip()):
                    raise ValueError(f"{role} is {_described(row[role])}, expected text")
            if "label" not in row:
                return row
            if self.labels.count is not None:
                return {**row, "label": self.labels.number(row["label"])}
        if self.labels.problem == "regression":
            row = experiment.with_a_point(row)
        row = self.labels.numbered(row)
        if (wrong := experiment.unlike(self.task, row, self.labels.among, self.labels.problem)) is not None:
            raise ValueError(wrong)
        return row

    def refuse(self, reasons: Sequence[tuple[int, str]]) -> DataError:
        """The error that names the first of these rows."""
        first = "; ".join(f"row {place}: {reason}" for place, reason in reasons[:SHOWN])
        more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
        return DataError(f"{self.name}: {first}{more}")


@dataclass(frozen=True)
class Table(Source):
    """Rows that can be had by their index, from 0 to the length."""

    rows: Any = ()
    """A list of rows, or a `datasets.Dataset` whose columns are roles."""
    order: Sequence[int] | None = None
    """The place in the source of each index, where it is another one."""

    def __len__(self) -> int:
        return len(self.rows) if self.order is None else len(self.order)

    def place(self, index: int) -> int:
        """Where in the source a row is."""
        return index if self.order is None else int(self.order[index])

    def get(self, indices: Sequence[int]) -> list[Row]:
        """These rows, checked.

        Raises:
            DataError: one of them holds nothing to train on.
        """
        places = [self.place(index) for index in indices]
        found, wrong = [], []
        for place, row in zip(places, self.raw(places), strict=True):
            try:
                found.append(self.usable(place, row))
            except ValueError as error:
                wrong.append((place, str(error)))
        if wrong:
            raise self.refuse(wrong)
        return found

    def raw(self, places: Sequence[int]) -> list[Row]:
        """Rows of the source as they are written."""
        if isinstance(self.rows, list):
            return [self.rows[place] for place in places]
        columns = self.rows[list(places)]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def first(self, most: int) -> list[Row]:
        """The first rows, checked: as many, or all of them."""
        return self.get(range(min(most, len(self))))


@dataclass(frozen=True)
class Stream(Source):
    """Rows that come one after the other."""

    rows: Any = ()
    """A `datasets.IterableDataset`."""
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    files: tuple[Path, ...] = ()
    """Where they are read from, if that is on this machine."""

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        """Place in the source and row of each, from the first on, checked.

        Raises:
            DataError: a row holds nothing to train on, or cannot be read.
        """
        for place, row in self.raw():
            try:
                yield place, self.usable(place, row)
            except ValueError as error:
                if not self.drops:
                    raise self.refuse([(place, str(error))]) from None
                self.dropped.add(place, row, str(error))

    def raw(self) -> Iterator[tuple[int, Row]]:
        """The same, as they are written."""
        rows = iter(self.rows)
        for place in range(self.limit) if self.limit is not None else numbers():
            with repository.reading(self.name, self.files):
                values = next(rows, None)
            if values is None:
                if place == 0:
                    raise DataError(f"{self.name}: no rows")
                return
            missing = [column for column in self.columns.values() if column not in values]
            if missing:
                raise _no_column(self.name, missing, sorted(values))
            yield place, {role: values[column] for role, column in self.columns.items()}

    def first(self, most: int) -> list[Row]:
        """The first rows, checked: as many, or all of them."""
        return [row for _, row in islice(self, most)]


Rows = Table | Stream


def open_rows(data: experiment.Data, task: str) -> Rows:
    """The rows that an experiment declares. Those of small tables are checked here, all others when they are drawn.

    Raises:
        Unavailable: the Hub cannot be reached and nothing is cached.
        DataError: the rows cannot be had or used; says which and why.
    """
    if data.given:
        names, classes = _names(data), data.resolved_num_labels
        key = "data.rows" if data.sequences is None else "data.sequences"
        labels = Labels(classes, names) if _has_classes(data, task) else _other_labels(data, task, names, classes)
        return Table(key, labels, task, rows=[dict(row) for row in data.given])
    with _quiet():
        if data.streaming:
            return _stream(data, task)
        return _table(data, task)


def open_beside(data: experiment.Data, task: str, known: Labels, section: str) -> Table:
    """Rows that are not trained on, whose classes are those of the rows that are; a stream is read to its limit.

    Args:
        data: as `Evaluation.rows_beside` makes it.
        task: reads them.
        known: the classes of the rows that are trained on.
        section: of the experiment file, for messages.

    Raises:
        Unavailable: the Hub cannot be reached and nothing is cached.
        DataError: the rows cannot be had or used; says which and why.
    """
    if data.given:
        key = "rows" if data.sequences is None else "sequences"
        shared = replace(known, written=None)
        return Table(f"{section}.{key}", shared, task, rows=[dict(row) for row in data.given])
    with _quiet():
        if not data.streaming:
            return _table(data, task, known)
        stream = _stream(data, task, known)
        read = list(stream)
    # Their labels are numbers now, whatever they were written as.
    return Table(
        name=stream.name,
        labels=replace(known, written=None),
        task=task,
        drops=stream.drops,
        revision=stream.revision,
        dropped=stream.dropped,
        rows=[row for _, row in read],
    )


def _has_classes(data: experiment.Data, task: str) -> bool:
    """Whether the label of a row is one of some classes."""
    labels = (row.get("label", 0) for row in data.given[:1])
    return task == "sequence-classification" and experiment.problem_of(labels, data.problem_type).startswith("single")


def _table(data: experiment.Data, task: str, known: Labels | None = None) -> Table:
    found = repository.load(data)
    roles = _roles(data, task, found.columns or (), found.name)
    rows, wanted = found.rows, sorted(set(roles.values()))
    if sorted(rows.column_names) != wanted:
        rows = rows.select_columns(wanted)
    if not len(rows):
        raise DataError(f"{found.name}: split {data.split} has no rows")
    _require_types(found.name, rows.features, roles, data, task)
    taken = _order(len(rows), data)
    rows = _renamed(rows, roles)
    table = Table(
        name=found.name,
        labels=_labels_beside(known, found.name, rows.features)
        if known is not None
        else _labels(data, found.name, rows, taken)
        if _has_classes(data, task)
        else _listed_labels(data, task, found.name, rows.features),
        task=task,
        drops=data.invalid_rows == "drop",
        revision=found.revision,
        rows=rows,
        order=taken,
    )
    if table.drops:
        return _without_invalid(table)
    if len(table) <= WHOLE:
        table.get(range(len(table)))
    return table


def _stream(data: experiment.Data, task: str, known: Labels | None = None) -> Stream:
    found = repository.load(data)
    first: Any = {}
    if found.columns is None:  # csv and json say what columns they have with their first row only
        with repository.reading(found.name, found.files):
            first = next(iter(found.rows), None)
        if first is None:
            raise DataError(f"{found.name}: split {data.split} has no rows")
    roles = _roles(data, task, found.columns or tuple(first), found.name)
    features = getattr(found.rows, "features", None)
    if features is not None:
        _require_types(found.name, features, roles, data, task)
    by_role = {role: (features or {}).get(column) for role, column in roles.items()}
    return Stream(
        name=found.name,
        labels=_labels_beside(known, found.name, by_role)
        if known is not None
        else _declared_labels(data, found.name, by_role)
        if _has_classes(data, task)
        else _listed_labels(data, task, found.name, by_role),
        task=task,
        drops=data.invalid_rows == "drop",
        revision=found.revision,
        rows=found.rows,
        columns=roles,
        limit=data.limit,
        files=found.files,
    )


def _roles(data: experiment.Data, task: str, columns: Sequence[str], name: str) -> dict[str, str]:
    """The column of each role: as declared, else the one that has the role's name."""
    needed = experiment.required(task, {*columns, *data.columns}, data.columns)
    optional = [role for role in experiment.roles_beside(task, needed) if role in columns]
    said = {role: data.columns.get(role, role) for role in needed}
    said |= {role: role for role in optional if role not in data.columns} | data.columns
    missing = [column for column in said.values() if column not in columns]
    if missing:
        raise _no_column(name, missing, columns)
    return said


def _no_column(name: str, missing: Sequence[str], columns: Sequence[str]) -> DataError:
    noun = "no column" if len(missing) == 1 else "no columns"
    listed = " and ".join(map(repr, missing))
    return DataError(f"{name}: {noun} {listed}, it has {_list(columns)}; data.columns says which column is what")


def _renamed(rows: Any, roles: dict[str, str]) -> Any:
    """Columns by their role; one column may have two."""
    for role, column in roles.items():
        if list(roles.values()).count(column) > 1:
            raise DataError(f"column {column!r} has two roles in data.columns, expected one column for each")
        if role in roles.values() and roles[role] != role:
            # Two names that change places go by way of a third.
            rows = rows.rename_columns({column: f"{number} " for number, column in enumerate(roles.values())})
            return rows.rename_columns({f"{number} ": role for number, role in enumerate(roles)})
    names = {column: role for role, column in roles.items() if column != role}
    return rows.rename_columns(names) if names else rows


def _require_types(name: str, features: Any, roles: dict[str, str], data: experiment.Data, task: str) -> None:
    """Texts are text, and classes are names or whole numbers."""
    for role in ("text", "text_pair"):
        kind = _kind(features.get(roles.get(role, "")))
        if kind and kind not in ("string", "large_string", "null"):
            raise DataError(f"{name}: column {roles[role]!r} holds {kind}, expected text for the role {role}")
    kind = _kind(features.get(roles.get("label", "")))
    if _has_classes(data, task) and kind.startswith(("float", "double", "decimal")):
        raise DataError(
            f"{name}: column {roles['label']!r} holds {kind}, expected classes as names or whole numbers "
            "(a column of numbers with an empty cell is read as floats); for numbers say data.problem_type: regression"
        )
    if _has_classes(data, task) and kind.endswith(("List", "Sequence")):
        raise DataError(
            f"{name}: column {roles['label']!r} holds lists, expected classes as names or whole numbers; for several "
            "classes of a row say data.problem_type: multi_label_classification"
        )


def _kind(feature: Any) -> str:
    """The data type of a column; empty where it is not known."""
    if feature is None:
        return ""
    return str(getattr(feature, "dtype", None) or type(feature).__name__)


def _order(size: int, data: experiment.Data) -> Sequence[int] | None:
    """The places that are taken, in order; none where that is every place in its own."""
    if data.shuffle_seed is not None:
        import torch

        places = torch.randperm(size, generator=torch.Generator().manual_seed(data.shuffle_seed))
        return places[: data.limit].numpy()
    return None if data.limit is None or data.limit >= size else range(data.limit)


def _other_labels(data: experiment.Data, task: str, names: tuple[str, ...] | None, classes: int | None) -> Labels:
    """Labels that are no single class of a text: lists of classes, numbers, or nothing."""
    if task == "sequence-classification":
        problem = experiment.problem_of((row["label"] for row in data.given[:1]), data.problem_type)
        return Labels(None, names, among=None if problem == "regression" else classes, problem=problem)
    return Labels(None, names, among=classes if task == "token-classification" else None)


def _listed_labels(data: experiment.Data, task: str, name: str, features: Mapping[str, Any]) -> Labels:
    """The same of a source that may name the classes itself, and has to be asked how many there are.

    Raises:
        DataError: nobody says it, or names differ.
    """
    words, names = task == "token-classification", _names(data)
    if not words and data.problem_type != "multi_label_classification":
        return _other_labels(data, task, names, None)
    own = _own_names(features)
    names = names or own
    if own is not None and names != own:
        raise DataError(f"{name}: the labels are {_list(own)}, and data.label_names has {_list(names or ())}")
    classes = data.declared_num_labels or (len(own) if own and words else None)
    if classes is None:
        there = f": it has {_list(own)}" if own else ""
        raise DataError(f"{name}: how many classes there are is not known: data.label_names or num_labels{there}")
    return _other_labels(data, task, names, classes)


def _names(data: experiment.Data) -> tuple[str, ...] | None:
    """The names of the classes that the experiment declares."""
    return tuple(data.label_names) if data.label_names else None


def _own_names(features: Mapping[str, Any]) -> tuple[str, ...] | None:
    """What a source calls its classes, whether a row has one of them or a list."""
    feature = features.get("label") or features.get("labels")
    return tuple(getattr(getattr(feature, "feature", feature), "names", None) or ()) or None


def _labels_beside(known: Labels, name: str, features: Mapping[str, Any]) -> Labels:
    """The classes of training, as these rows write them: a dataset may number the same names in another order."""
    own = _own_names(features)
    if own is None or known.names is None:
        return replace(known, written=None)
    if not set(own) <= set(known.names):
        raise DataError(f"{name}: the labels are {_list(own)}, and those of training {_list(known.names)}")
    return replace(known, written=own if own != known.names else None)


def _declared_labels(data: experiment.Data, name: str, features: Mapping[str, Any]) -> Labels:
    """The classes that the experiment or the features tell of: all that can be known of a stream."""
    own = _own_names(features)
    names = _names(data) or own
    if own is not None and names is not None and set(names) != set(own):
        raise DataError(f"{name}: the labels are {_list(own)}, and data.label_names has {_list(names)}")
    if names is not None:
        if data.num_labels is not None and data.num_labels != len(names):
            raise DataError(
                f"{name}: {count(len(names), 'label')} ({_list(names)}), and num_labels is {data.num_labels}"
            )
        return Labels(len(names), names, own if own != names else None)
    if data.num_labels is None:
        raise DataError(f"{name}: the labels of a stream are not known before its end: data.label_names or num_labels")
    return Labels(data.num_labels)


def _labels(data: experiment.Data, name: str, rows: Any, taken: Sequence[int] | None) -> Labels:
    """The classes of a table: as declared, as its features name them, or as its rows do."""
    named = data.label_names or _own_names(rows.features)
    if named or (data.num_labels is not None and not _kind(rows.features["label"]).endswith("string")):
        return _declared_labels(data, name, rows.features)
    column = rows.select_columns(["label"])
    values = {
        value for value in (column.select(taken) if taken is not None else column).unique("label") if value is not None
    }
    if not values:
        raise DataError(f"{name}: no row has a label")
    if not all(isinstance(value, str) for value in values):
        odd = next((value for value in values if not isinstance(value, int)), None)
        if odd is not None:
            raise DataError(f"{name}: the label is {_described(odd)}, expected classes as names or whole numbers")
        return Labels(max(int(max(values)) + 1, 2))
    names = tuple(sorted(values))
    if data.num_labels is not None and data.num_labels != len(names):
        raise DataError(f"{name}: {count(len(names), 'label')} ({_list(names)}), and num_labels is {data.num_labels}")
    if len(names) < 2:
        raise DataError(f"{name}: every row has the label {names[0]!r}; data.label_names says which others there are")
    return Labels(len(names), names)


def _without_invalid(table: Table) -> Table:
    """The table without the rows that hold nothing to train on; every row is looked at."""
    kept: list[int] = []
    for start in range(0, len(table), WHOLE):
        places = [table.place(index) for index in range(start, min(start + WHOLE, len(table)))]
        for place, row in zip(places, table.raw(places), strict=True):
            try:
                table.usable(place, row)
                kept.append(place)
            except ValueError as error:
                table.dropped.add(place, row, str(error))
    if not kept:
        place, _, reason = table.dropped.first[0]
        raise DataError(
            f"{table.name}: all {count(table.dropped.number, 'row')} dropped, the first (row {place}): {reason}"
        )
    return replace(table, order=kept) if table.dropped.number else table


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars of datasets out of pytest's output."""
    library = repository.library()
    hidden = library.are_progress_bars_disabled()
    library.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            library.enable_progress_bars()


def _described(value: Any) -> str:
    """A value in a message: what it is, where it is no text."""
    if value is None:
        return "missing (null)"
    if isinstance(value, str):
        return shown(value) if value.strip() else f"empty ({shown(value)})"
    return f"{shown(value)} ({type(value).__name__})"


def _list(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
