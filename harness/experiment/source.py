"""YAML text as a tree in which every value knows the file and line that wrote it.

The language is YAML 1.2's core schema: `5e-5` is a number, and `yes`, `on` and dates are text. Tags, merge keys and
second documents are refused. Mistakes are collected, not raised, so that one reading shows them all.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from harness.errors import InvalidExperiment, Mistake, shown

Scalar: TypeAlias = bool | int | float | str | None
Location: TypeAlias = tuple[str | int, ...]
"""The keys and list positions that lead from the top of a file to a value."""

# libyaml's parser where PyYAML was built with it: several times as fast, and it gives the same events.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Deeper or wider than any experiment, and shallow and narrow enough that no file exhausts the stack or the memory.
_MAX_DEPTH = 100
_MAX_ALIASED = 100_000

_CONSTANTS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# A hundred digits at most: Python refuses to convert a few thousand, and no setting has so many.
_INTEGER = re.compile(r"[-+]?[0-9]{1,100}|0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_TABBED = re.compile(r"[ ]*\t")
_NON_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the place that wrote it: the line of its key in a mapping, its own line in a list."""

    value: "Scalar | list[Node] | dict[str, Node]"
    file: Path
    line: int

    def mistake(self, location: Location, found: str, expected: str, hint: str = "") -> Mistake:
        """A mistake at this place."""
        return Mistake(self.file, self.line, dotted(location), found, expected, hint)


def read(path: Path) -> tuple[Node, list[Mistake]]:
    """The file laid over the bases that it extends, and what is wrong with how they are written.

    Raises:
        InvalidExperiment: a file can't be read at all; holds the mistakes up to there.
    """
    layers: list[Node] = []
    mistakes: list[Mistake] = []
    chain: list[Path] = []
    following: Path | None = path
    while following is not None:
        chain.append(following)
        try:
            layer, found = _compose(following)
        except InvalidExperiment as error:
            raise InvalidExperiment((*mistakes, *error.mistakes)) from None
        mistakes += found
        following = None
        if isinstance(layer.value, dict) and (extends := layer.value.pop("extends", None)):
            following = _base(extends, chain, mistakes)
        layers.append(layer)
    return reduce(overlay, reversed(layers)), mistakes


def overlay(base: Node, over: Node) -> Node:
    """Mappings are merged key by key, at every depth; anything else in `over` replaces what `base` had."""
    if not (isinstance(base.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(base.value)
    for key, node in over.value.items():
        merged[key] = overlay(merged[key], node) if key in merged else node
    return Node(merged, over.file, over.line)


def nest(key: str, node: Node) -> Node:
    """The mapping in which the dotted `key` leads to the node."""
    for part in reversed(key.split(".")):
        node = Node({part: node}, node.file, node.line)
    return node


def plain(node: Node) -> Any:
    """The value as ordinary dicts, lists and scalars."""
    value = node.value
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, list):
        return [plain(child) for child in value]
    return value


def locate(node: Node, location: Location) -> Node:
    """The node that the location leads to, or the last one before the way ends."""
    for step in location:
        match node.value, step:
            case dict() as entries, str() if step in entries:
                node = entries[step]
            case list() as items, int() if step < len(items):
                node = items[step]
            case _:
                break
    return node


def dotted(location: Location) -> str:
    """The location as text: `data.labels[2]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in location).removeprefix(".")


def scalar(text: str) -> Scalar:
    """What YAML 1.2's core schema reads from unquoted text (section 10.3.2 of its specification)."""
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    # Nearly all text starts with a letter: only what can be a number pays for the patterns.
    if text[0] not in "+-.0123456789":
        return text
    if _INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NON_FINITE.fullmatch(text):
        return float(text.replace(".", "").lower())
    return text


def _base(extends: Node, chain: list[Path], mistakes: list[Mistake]) -> Path | None:
    """The file that `extends` names, or None and one mistake more."""
    if not isinstance(extends.value, str) or not extends.value:
        mistakes.append(extends.mistake(("extends",), shown(plain(extends)), "the name of one file"))
        return None
    base = chain[-1].parent / extends.value
    try:
        exists, circular = base.is_file(), base.resolve() in [path.resolve() for path in chain]
    # A name with a NUL in it, or a circle of links: neither is a file.
    except (OSError, ValueError, RuntimeError):
        exists, circular = False, False
    if not exists:
        found = f"{shown(extends.value)}, which is no file"
        mistakes.append(
            extends.mistake(("extends",), found, f"a file, named as seen from {chain[-1].parent.absolute()}")
        )
        return None
    if circular:
        circle = " -> ".join(path.name for path in (*chain, base))
        mistakes.append(extends.mistake(("extends",), f"the circle {circle}", "a base that does not lead back here"))
        return None
    return base


def _compose(path: Path) -> tuple[Node, list[Mistake]]:
    text = _text(path)
    composer = _Composer(path, yaml.parse(text, Loader=_LOADER))
    try:
        root = composer.document()
    except yaml.YAMLError as error:
        line, found, expected = _line(error, text), f"a syntax error ({_problem(error)})", "valid YAML"
        if _TABBED.match("".join(text.splitlines(keepends=True)[line - 1 : line])) and "start any token" in found:
            found, expected = "a tab before the text", "spaces"
        raise InvalidExperiment((*composer.mistakes, Mistake(path, line, "", found, expected))) from None
    return root, composer.mistakes


def _text(path: Path) -> str:
    line = 1
    try:
        content = path.read_bytes()
        line = content.count(b"\n") + 1
        # The signature that some Windows editors put first is not part of the text.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        content = error.object  # without the signature
        line = content[: error.start].count(b"\n") + 1
        found = f"the byte 0x{content[error.start]:02x}, which is not UTF-8"
    except IsADirectoryError:
        found = "a folder"
    except FileNotFoundError:
        found = "no such file"
    except (OSError, ValueError) as error:
        line, found = 1, f"an unreadable file ({getattr(error, 'strerror', None) or error})"
    raise InvalidExperiment([Mistake(path, line, "", found, "a YAML file in UTF-8")])


def _line(error: yaml.YAMLError, text: str) -> int:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        return int(mark.line) + 1
    character = getattr(error, "character", None)
    return text[: text.find(chr(character))].count("\n") + 1 if isinstance(character, int) else 1


def _problem(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)


class _Composer:
    """Builds the tree from the parser's events, because PyYAML's own composer follows nesting without a limit."""

    def __init__(self, file: Path, events: Iterator[Any]) -> None:
        self.file = file
        self.events = events
        self.mistakes: list[Mistake] = []
        # None while the anchored value is still being read: an alias to it then leads into itself.
        self.anchors: dict[str, Node | None] = {}
        self.aliased = 0

    def document(self) -> Node:
        """The file's one mapping."""
        root = Node(None, self.file, 1)
        if self.starts_document():
            event = next(self.events)
            root = self.node(event, (), _start(event))
        if self.starts_document():
            self.mistakes.append(
                root.mistake((), "a second document", "one document a file", "remove what follows ---")
            )
        if not isinstance(root.value, dict):
            self.mistakes.append(root.mistake((), shown(plain(root)), "a mapping that starts like `checkpoint: ...`"))
            raise InvalidExperiment(self.mistakes)
        return root

    def starts_document(self) -> bool:
        """Whether another document follows."""
        return any(isinstance(event, yaml.DocumentStartEvent) for event in self.events)

    def node(self, event: Any, location: Location, line: int) -> Node:
        """The value that starts with the event."""
        if len(location) > _MAX_DEPTH:
            self.stop(event, location, f"more than {_MAX_DEPTH} levels", "a flatter file")
        if isinstance(event, yaml.AliasEvent):
            return Node(self.alias(event, location), self.file, line)
        if event.tag is not None:
            self.refuse(event, location, f"the tag {_tag(event.tag)}", "plain YAML without tags")
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node = Node(self.value(event, location), self.file, line)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def value(self, event: Any, location: Location) -> Scalar | list[Node] | dict[str, Node]:
        if isinstance(event, yaml.ScalarEvent):
            return scalar(event.value) if event.implicit[0] and event.tag is None else str(event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(location)
        return self.mapping(location)

    def sequence(self, location: Location) -> list[Node]:
        items: list[Node] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*location, len(items)), _start(event)))
        return items

    def mapping(self, location: Location) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            key = self.key(event, location)
            node = self.node(next(self.events), (*location, key or ""), _start(event))
            if key is None:
                continue
            if key in entries:
                found = f"the key a second time (first on line {entries[key].line})"
                self.mistakes.append(node.mistake((*location, key), found, "each key once"))
            else:
                entries[key] = node
        return entries

    def key(self, event: Any, location: Location) -> str | None:
        """The key's text, or None and a mistake where it is something else."""
        key = plain(self.node(event, (*location, "key"), _start(event)))
        if not isinstance(key, str):
            hint = f"put it in quotes: '{event.value}'" if getattr(event, "value", "") else ""
            self.refuse(event, location, f"{shown(key)} as a key", "text as a key", hint)
            return None
        if key == "<<" and isinstance(event, yaml.ScalarEvent) and event.implicit[0]:
            self.refuse(event, location, "the merge key <<", "keys written out, or a base file under `extends`")
            return None
        return key

    def alias(self, event: Any, location: Location) -> Scalar | list[Node] | dict[str, Node]:
        node = self.anchors.get(event.anchor)
        if node is None:
            inside = " inside its own value" if event.anchor in self.anchors else ""
            self.refuse(
                event, location, f"the alias *{event.anchor}{inside}", f"a value marked &{event.anchor} above it"
            )
            return None
        self.repeat(event, node, location, len(location))
        return node.value

    def repeat(self, event: Any, node: Node, location: Location, depth: int) -> None:
        """Count what an alias repeats: a few lines of aliases to aliases can stand for billions of values."""
        self.aliased += 1
        if self.aliased > _MAX_ALIASED:
            self.stop(event, location, f"aliases that repeat more than {_MAX_ALIASED:,} values", "values written out")
        if depth > _MAX_DEPTH:
            self.stop(event, location, f"more than {_MAX_DEPTH} levels", "a flatter file")
        for child in _children(node):
            self.repeat(event, child, location, depth + 1)

    def refuse(self, event: Any, location: Location, found: str, expected: str, hint: str = "") -> None:
        self.mistakes.append(Mistake(self.file, _start(event), dotted(location), found, expected, hint))

    def stop(self, event: Any, location: Location, found: str, expected: str) -> None:
        self.refuse(event, location[:3], found, expected)
        raise InvalidExperiment(self.mistakes)


def _children(node: Node) -> Iterable[Node]:
    match node.value:
        case dict() as entries:
            return entries.values()
        case list() as items:
            return items
    return ()


def _start(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _tag(tag: str) -> str:
    return tag.replace("tag:yaml.org,2002:", "!!")
