"""Rows of data: what each task reads of one, and how a file may write it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from harness.errors import count, meant, shown
from harness.experiment.model import Declared, expected_by, found_by, problem
from harness.experiment.source import Location

Row: TypeAlias = Mapping[str, Any]
"""A value for each role that the task reads."""

TaskName: TypeAlias = Literal[
    "sequence-classification",
    "token-classification",
    "question-answering",
    "multiple-choice",
    "masked-lm",
    "causal-lm",
    "seq2seq-lm",
]

Problem: TypeAlias = Literal["single_label_classification", "multi_label_classification", "regression"]
"""As transformers calls them."""

NAMED_CLASS = "number the classes from 0, and name them in data.label_names"


def _label(value: Any) -> Any:
    """A class, a list of classes or a number."""
    if isinstance(value, bool) or not isinstance(value, int | float | list):
        expected = "a class (a whole number), a list of classes, or a number with a point"
        raise problem(shown(value), expected, NAMED_CLASS if isinstance(value, str) else "")
    if isinstance(value, float):
        return _FLOAT.validate_python(value)
    return _CLASSES.validate_python(value) if isinstance(value, list) else _CLASS.validate_python(value)


_Text: TypeAlias = Annotated[str, Field(pattern=r"\S")]
_Class: TypeAlias = Annotated[int, Field(ge=0, strict=True)]
_FLOAT: TypeAdapter[float] = TypeAdapter(Annotated[float, Field(allow_inf_nan=False)])
_CLASS: TypeAdapter[int] = TypeAdapter(_Class)
_CLASSES: TypeAdapter[list[int]] = TypeAdapter(list[_Class])


class ClassifiedText(Declared):
    """A text or a pair of texts, and its class, its classes, or a number."""

    text: _Text
    text_pair: _Text | None = None
    label: Annotated[Any, BeforeValidator(_label)]


class LabelledWords(Declared):
    """Words, and the class of each."""

    words: list[_Text] = Field(min_length=1)
    labels: list[_Class]


class Question(Declared):
    """A question, a text, and the answer as it stands in the text."""

    question: _Text
    context: _Text
    answer: _Text
    answer_start: int | None = Field(default=None, ge=0)


class Choice(Declared):
    """The beginning of a text, ways in which it may go on, and the right one's number."""

    text: _Text
    choices: list[_Text] = Field(min_length=2)
    label: _Class


class Text(Declared):
    """A text."""

    text: _Text


class PromptAndAnswer(Declared):
    """What is given, and what is to be learnt."""

    prompt: _Text
    answer: _Text


class Message(Declared):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: _Text


class Chat(Declared):
    """Turns of a chat; those of the assistant are to be learnt."""

    messages: list[Message] = Field(min_length=1)


class SourceAndTarget(Declared):
    """A text, and the one to be made of it."""

    text: _Text
    target: _Text


ROLES: dict[str, tuple[type[Declared], ...]] = {
    "sequence-classification": (ClassifiedText,),
    "token-classification": (LabelledWords,),
    "question-answering": (Question,),
    "multiple-choice": (Choice,),
    "masked-lm": (Text,),
    "causal-lm": (Text, PromptAndAnswer, Chat),
    "seq2seq-lm": (SourceAndTarget,),
}
"""The kinds of row that each task reads; the roles of a row are the fields of its kind."""

Wrong: TypeAlias = tuple[Location, PydanticCustomError]


def mistakes(task: str, rows: Sequence[Row], classes: int | None, problem_type: str | None) -> ValidationError | None:
    """What is wrong with rows that a file writes, located below ``rows``; none where nothing is.

    Args:
        task: reads them.
        rows: as written.
        classes: the declared number of classes.
        problem_type: as declared.
    """
    if problem_type == "regression":
        rows = [with_a_point(row) for row in rows]
    details: list[InitErrorDetails] = []
    for number, row in enumerate(rows):
        kind = _kind(task, row)
        details += [_detail(("rows", number, *place), error) for place, error in _unknown(task, kind, row)]
        try:
            kind.model_validate({role: value for role, value in row.items() if role in kind.model_fields})
        except ValidationError as error:
            details += [_relocated(("rows", number), each) for each in error.errors(include_url=False)]
        else:
            found = [*_unlike(rows[0], row), *_inconsistent(kind, row, classes, problem_type)]
            details += [_detail(("rows", number, *place), error) for place, error in found]
    return ValidationError.from_exception_data("Data", details) if details else None


def with_a_point(row: Row) -> dict[str, Any]:
    """The row whose label is no class, although it may be written as one: a class is not below 0, a number may be."""
    label = row.get("label")
    return {**row, "label": float(label)} if type(label) is int else {**row}


def unlike(task: str, row: Row, classes: int | None = None, problem_type: str | None = None) -> str | None:
    """What keeps a row from being one of the task's, in words; none where nothing does."""
    wrong = mistakes(task, [row], classes, problem_type)
    if wrong is None:
        return None
    first = wrong.errors(include_url=False)[0]
    said = first["msg"] if first["type"] == "mistake" else f"found {found_by(first)}, expected {expected_by(first)}"
    return f"{'.'.join(str(part) for part in first['loc'][2:]) or 'the row'}: {said}"


def required(task: str, available: Collection[str], declared: Collection[str] = ()) -> tuple[str, ...]:
    """The roles that a row must have: of the first kind of row that the available ones make, and has the declared."""
    fitting = [kind for kind in ROLES[task] if set(declared) <= kind.model_fields.keys()] or ROLES[task]
    kinds = [tuple(role for role, field in kind.model_fields.items() if field.is_required()) for kind in fitting]
    return next((kind for kind in kinds if set(kind) <= set(available)), kinds[0])


def roles_beside(task: str, needed: Collection[str]) -> tuple[str, ...]:
    """All roles of the kind of row that has these."""
    return next(tuple(kind.model_fields) for kind in ROLES[task] if set(needed) <= kind.model_fields.keys())


def _kind(task: str, row: Row) -> type[Declared]:
    """The kind whose first role the row has, or the task's first."""
    kinds = ROLES[task]
    return next((kind for kind in kinds if next(iter(kind.model_fields)) in row), kinds[0])


def _detail(place: Location, error: PydanticCustomError) -> InitErrorDetails:
    return InitErrorDetails(type=error, loc=place, input=None)


def _relocated(place: Location, error: Any) -> InitErrorDetails:
    """An error of a row, as an error of the data."""
    context = error.get("ctx", {})
    kind = PydanticCustomError("mistake", error["msg"], context) if error["type"] == "mistake" else error["type"]
    return InitErrorDetails(type=kind, loc=(*place, *error["loc"]), input=error["input"], ctx=context)


def _unknown(task: str, kind: type[Declared], row: Row) -> Iterator[Wrong]:
    """Roles that rows of this task do not have."""
    known = list(kind.model_fields)
    others = [next(iter(other.model_fields)) for other in ROLES[task] if other is not kind]
    instead = f" (or a row with {' or '.join(others)})" if others else ""
    for role in row:
        if role not in known:
            yield (str(role),), problem("an unknown role", f"one of {', '.join(known)}{instead}", meant(role, known))


def _unlike(first: Row, row: Row) -> Iterator[Wrong]:
    """Rows of one batch must have the same roles, and labels of one type."""
    if row.keys() != first.keys():
        yield (), problem(f"a row with {', '.join(row)}", f"{', '.join(first)}, as in the first row")
    elif len(row.get("choices", ())) != len(first.get("choices", ())):
        found, expected = count(len(row["choices"]), "choice"), f"{len(first['choices'])}, as in the first row"
        yield ("choices",), problem(found, expected)
    elif type(row.get("label")) is not type(first.get("label")):
        yield ("label",), problem(shown(row["label"]), f"a label as in the first row, which has {_label_kind(first)}")


def _label_kind(row: Row) -> str:
    names = {int: "a class", float: "a number", list: "a list of classes"}
    return names.get(type(row["label"]), shown(row["label"]))


def _inconsistent(kind: type[Declared], row: Row, classes: int | None, problem_type: str | None) -> Iterator[Wrong]:
    """Values that do not fit each other."""
    if kind is ClassifiedText:
        yield from _wrong_label(row["label"], classes, problem_type)
    elif kind is LabelledWords:
        if len(row["words"]) != len(row["labels"]):
            yield ("labels",), problem(count(len(row["labels"]), "label"), f"{len(row['words'])}, one for each word")
        yield from _too_high(row["labels"], classes, ("labels",))
    elif kind is Choice and row["label"] >= len(row["choices"]):
        yield ("label",), problem(str(row["label"]), f"a choice from 0 to {len(row['choices']) - 1}")
    elif kind is Question:
        yield from _wrong_answer(row)
    elif kind is Chat and not any(message["role"] == "assistant" for message in row["messages"]):
        yield ("messages",), problem("no message of the assistant", "at least one: there is nothing to learn")


def _wrong_label(label: Any, classes: int | None, problem_type: str | None) -> Iterator[Wrong]:
    fitting = {
        "single_label_classification": (int,),
        "multi_label_classification": (list,),
        "regression": (int, float),
    }
    if problem_type is not None and not isinstance(label, fitting[problem_type]):
        expected = {"regression": "a number", "multi_label_classification": "a list of classes"}
        yield (
            ("label",),
            problem(shown(label), f"{expected.get(problem_type, 'a class')} (problem_type is {problem_type})"),
        )
    elif isinstance(label, list):
        if len(set(label)) != len(label):
            hint = "list the classes that apply, not a 0 or 1 for each" if set(label) == {0, 1} else ""
            yield ("label",), problem(f"{label}", "each class once", hint)
        yield from _too_high(label, classes, ("label",))
    elif isinstance(label, int) and problem_type != "regression" and classes is not None and label >= classes:
        yield ("label",), _beyond(label, classes)


def _too_high(labels: Iterable[int], classes: int | None, place: Location) -> Iterator[Wrong]:
    for number, label in enumerate(labels):
        if classes is not None and label >= classes:
            yield (*place, number), _beyond(label, classes)


def _beyond(label: int, classes: int) -> PydanticCustomError:
    return problem(str(label), f"a label from 0 to {classes - 1} (num_labels is {classes})")


def _wrong_answer(row: Row) -> Iterator[Wrong]:
    answer, context, start = row["answer"], row["context"], row.get("answer_start")
    times = context.count(answer)
    if times == 0:
        yield ("answer",), problem(shown(answer), "words as they stand in the context")
    elif start is None and times > 1:
        expected = "answer_start, the number of characters before the one that is meant"
        yield ("answer",), problem(f"{shown(answer)}, {times} times in the context", expected)
    elif start is not None and not context.startswith(answer, start):
        places = ", ".join(str(place) for place in range(len(context)) if context.startswith(answer, place))
        yield ("answer_start",), problem(f"{start}, where the answer does not stand", f"one of {places}")


def problem_of(labels: Iterable[Any], declared: str | None = None) -> str:
    """What kind of problem labels of sequences pose: several classes each, a number, or one class."""
    if declared is not None:
        return declared
    first = next(iter(labels), 0)
    if isinstance(first, list | tuple):
        return "multi_label_classification"
    return "regression" if isinstance(first, float) else "single_label_classification"


def classes_in(rows: Iterable[Row]) -> int:
    """The highest class and one, at least 2; of rows whose ``label`` or ``labels`` are classes."""
    found = (row.get("labels", row.get("label", 0)) for row in rows)
    highest = max((max(each, default=0) if isinstance(each, list | tuple) else each for each in found), default=0)
    return max(int(highest) + 1, 2)


def texts(value: Any) -> Iterator[str]:
    """Every text in a row, or in what it holds."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from texts(each)


def roles(task: str) -> tuple[str, ...]:
    """All roles that rows of a task may have."""
    return tuple(dict.fromkeys(role for kind in ROLES[task] for role in kind.model_fields))
