"""Which way imports go, what modules offer, and where torch is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parent

LAYERS = (
    ("__main__",),
    ("ab",),
    ("plugin",),
    ("github",),
    ("session",),
    ("hooks",),
    ("report", "journal"),
    ("compare",),
    ("throughput", "mutation"),
    ("account", "steadiness"),
    ("laws",),
    ("engines",),
    ("progress",),
    ("training",),
    ("store",),
    ("record", "plan"),
    ("experiment", "exploration"),
    ("schedule", "selection", "errors", "option"),
)
"""Each may import what stands below it. What stands on one line does not know of each other."""

HEAVY = (
    "torch",
    "transformers",
    "tokenizers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "scipy",
    "datasets",
    "peft",
)


@dataclass(frozen=True)
class Import:
    """One import of a module: where it stands, and what it brings in."""

    importer: str
    line: int
    imported: str
    at_once: bool
    """Executed when the importer is imported: neither in a function nor for type checkers alone."""

    def __str__(self) -> str:
        return f"{self.importer}, line {self.line}: {self.imported}"


def module_name(path: Path) -> str:
    """`harness/laws/__init__.py` is `harness.laws`."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Whether a module of the harness has that name."""
    path = ROOT.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, wherever it stands."""

    def walk(node: ast.AST, at_once: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module_name(path), node.lineno, alias.name, at_once)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: a relative import"
            for alias in node.names:
                # `from harness import plan` imports the module harness.plan
                name = f"{node.module}.{alias.name}"
                yield Import(module_name(path), node.lineno, name if is_module(name) else str(node.module), at_once)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                yield from walk(child, False)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from walk(child, at_once and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


FILES = sorted(ROOT.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports(path)]


def part(module: str) -> str:
    """The part of the harness that a module belongs to; empty for the package itself."""
    return [*module.split("."), ""][1]


def rank(name: str) -> int:
    """How far down a part stands."""
    return next(rank for rank, layer in enumerate(LAYERS) if name in layer)


def test_every_part_has_its_place() -> None:
    """A new module is written into the layers here, and into section 5 of the design."""
    parts = {path.stem if path.is_file() else path.name for path in ROOT.iterdir() if path.name != "__pycache__"}
    parts = {name for name in parts if (ROOT / f"{name}.py").exists() or (ROOT / name / "__init__.py").exists()}

    assert parts - {"__init__"} == {name for layer in LAYERS for name in layer}


def test_imports_point_down() -> None:
    """No part imports one that stands above or beside it: not at once, not in a function, not for its types."""
    inside = [found for found in IMPORTS if found.imported.startswith("harness.") and part(found.importer)]

    wrong = [
        str(found)
        for found in inside
        if part(found.importer) != part(found.imported) and rank(part(found.importer)) >= rank(part(found.imported))
    ]

    assert wrong == []


def test_no_module_imports_itself_in_a_circle() -> None:
    """At the time of import, modules need each other in one direction only, also within a part."""
    needs: dict[str, set[str]] = {}
    for found in IMPORTS:
        if found.at_once and found.imported.startswith("harness."):
            needs.setdefault(found.importer, set()).add(found.imported)
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for needed in needs.get(module, ()):
                # A package that gathers its modules is imported with each of them: that is no circle.
                if not module.startswith(f"{needed}."):
                    visit(needed, (*way, module))
            done.add(module)

    for module in needs:
        visit(module, ())


def test_torch_lives_in_training() -> None:
    """Only `harness/training` imports torch, transformers and their kind, wherever the import stands; statistics take
    numpy and scipy where they are computed."""
    wrong = [
        str(found)
        for found in IMPORTS
        if found.imported.partition(".")[0] in HEAVY
        and part(found.importer) != "training"
        and (found.at_once or found.importer != "harness.compare.statistic")
    ]

    assert wrong == []


def test_training_is_imported_late() -> None:
    """Outside of it, training is imported where a case runs or devices are asked for, never with a module."""
    into = [
        found
        for found in IMPORTS
        if part(found.imported) == "training" and part(found.importer) != "training" and "harness" in found.imported
    ]

    assert [str(found) for found in into if found.at_once] == []
    assert {part(found.importer) for found in into} <= {"engines", "__main__"}


def test_everything_above_training_imports_without_torch() -> None:
    """Each module outside of `harness/training` can be imported where torch cannot."""
    modules = [name for name in map(module_name, FILES) if part(name) != "training"]
    code = f"import importlib, no_torch\nfor name in {modules!r}: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )

    assert done.stderr == ""


def offered(path: Path) -> Iterator[str]:
    """What a module defines for others, or takes from modules below it for others to find here."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name):
                yield name
            case ast.Assign(value=ast.Call(func=ast.Name(id="TypeVar"))):
                pass  # for its own annotations
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.ImportFrom(module=str(module)) if module.startswith(f"{module_name(path)}."):
                yield from (alias.name for alias in node.names)


def listed(path: Path) -> list[str] | None:
    """A module's `__all__`, if it has one."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return list(ast.literal_eval(value))
    return None


@pytest.mark.parametrize("path", [path for path in FILES if listed(path) is not None], ids=module_name)
def test_all_is_exact(path: Path) -> None:
    """Where there is an `__all__`, it holds every public name of the module once, sorted, and no other."""
    public = {name for name in offered(path) if not name.startswith("_") or name == "__version__"}

    assert listed(path) == sorted(public, key=lambda name: (not name.isupper(), not name[0].isupper(), name))


def test_only_public_names_of_pytest_are_used() -> None:
    """The plugin stands on pytest's documented names: nothing is imported from `_pytest`."""
    assert [str(found) for found in IMPORTS if found.imported.partition(".")[0] == "_pytest"] == []


def test_no_module_has_a_name_that_says_nothing() -> None:
    """Modules own something, and their name says what."""
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "core", "base"}

    assert {path.stem for path in FILES} & vague == set()
