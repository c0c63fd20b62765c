"""Cases: which there are, in which order, and what they are called."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from harness.experiment import Data, Experiment, HubCheckpoint, Point, Settings, name, read
from harness.plan import Case, cases, expand, find

GOOD = "checkpoint: gpt2\ndata: {sequences: [a], labels: [0]}\n"
LAWS: dict[str, type[BaseModel]] = {}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root") / "a.yaml"


def plan(file: Path, text: str, devices: Sequence[str] = ("cpu", "cuda"), override: bool = False) -> tuple[Case, ...]:
    file.write_text(GOOD + text, encoding="utf-8")
    return cases(read(file, LAWS), devices, root=file.parent, override=override)


def ids(*args: Any, **kwargs: Any) -> list[str]:
    return [case.id for case in plan(*args, **kwargs)]


# --- Ids and devices -------------------------------------------------------------------------------------------------


def test_a_case_knows_its_file_device_and_values(file: Path) -> None:
    """Its name is what a pytest node id starts with."""
    case = plan(file, "matrix: {precision: [bf16]}")[1]
    assert (case.experiment, case.path, case.id, case.name) == ("a.yaml", file, "cuda-bf16", "a.yaml::cuda-bf16")
    assert case.values == (("precision", "bf16"),)
    assert (case.settings.device, case.settings.precision) == ("cuda", "bf16")


def test_names_are_relative_to_the_root(file: Path) -> None:
    """With forward slashes, and upwards too."""
    file.write_text(GOOD)
    read_file = read(file, LAWS)
    names = [cases(read_file, ["cpu"], root=root)[0].name for root in (file.parent.parent, file.parent / "below")]
    assert names == [f"{file.parent.name}/a.yaml::cpu", "../a.yaml::cpu"]


def test_without_a_device_each_configured_one_runs(file: Path) -> None:
    """The device comes first in the id, and outermost in the order; one named twice counts once."""
    matrix = "matrix: {train.loop: [custom, trainer]}"
    expected = ["cpu-custom", "cpu-trainer", "cuda-custom", "cuda-trainer"]
    assert ids(file, matrix) == expected
    assert ids(file, matrix, ("cpu", "cuda", "cpu")) == expected
    assert ids(file, "") == ["cpu", "cuda"]


def test_a_device_of_the_file_is_the_only_one(file: Path) -> None:
    """It stands first in the ids too, so that they say where a case runs."""
    assert ids(file, "device: mps\nmatrix: {precision: [fp32, bf16]}") == ["mps-fp32", "mps-bf16"]


def test_devices_in_the_matrix_keep_their_place(file: Path) -> None:
    """The order written is the order of ids and of cases."""
    text = "matrix: {train.loop: [custom, trainer], device: [cpu, cuda:1]}"
    assert ids(file, text, ("mps",)) == ["custom-cpu", "custom-cuda:1", "trainer-cpu", "trainer-cuda:1"]


def test_points_with_and_without_a_device(file: Path) -> None:
    """Each point is asked by itself."""
    text = "matrix: {precision: [fp32], include: [{train.seed: 1}, {precision: bf16, device: mps}]}"
    assert ids(file, text) == ["cpu-fp32-1", "cuda-fp32-1", "bf16-mps"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["mps", "cuda"]),
        ("device: cpu\n", ["mps", "cuda"]),
        ("matrix: {device: [cpu, cuda], precision: [fp32, bf16]}", ["mps-fp32", "mps-bf16", "cuda-fp32", "cuda-bf16"]),
        ("matrix: {precision: [fp32, bf16], device: [cpu, cuda]}", ["fp32-mps", "fp32-cuda", "bf16-mps", "bf16-cuda"]),
        (
            "matrix: {device: [cpu], include: [{precision: bf16, device: cuda}]}",
            ["mps", "mps-bf16", "cuda", "cuda-bf16"],
        ),
    ],
)
def test_given_devices_override(file: Path, text: str, expected: list[str]) -> None:
    """They take the place of the file's, as if it had named them, and points that become equal are one."""
    planned = plan(file, text, ("mps", "cuda"), override=True)
    assert [case.id for case in planned] == expected
    assert {case.settings.device for case in planned} == {"mps", "cuda"}
    assert all(dict(case.values).get("device", case.settings.device) == case.settings.device for case in planned)


def test_an_overridden_case_has_the_id_that_it_has_without(file: Path) -> None:
    """So that `--device cpu` and a run of everything can be compared."""
    text = "matrix: {device: [cpu, cuda], train.loop: [custom], precision: [fp32]}"
    assert ids(file, text) == ["cpu-custom-fp32", "cuda-custom-fp32"]
    assert ids(file, text, ("cpu",), override=True) == ["cpu-custom-fp32"]


def test_no_devices_no_cases(file: Path) -> None:
    """Where nothing is configured, only files with a device of their own run."""
    assert ids(file, "", ()) == []
    assert ids(file, "device: cpu", ()) == ["cpu"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "none"),
        (True, "true"),
        (False, "false"),
        (3, "3"),
        (5e-5, "5e-05"),
        (0.1, "0.1"),
        ("custom", "custom"),
        ("google-bert/bert-base-uncased@v1", "google-bert_bert-base-uncased_v1"),
        ("cuda:0", "cuda:0"),
        ("a::b", "a__b"),
        ("a:", "a_"),
        (":a", "_a"),
        ("é [1]", "___1_"),
        ("", "_"),
        (["a"], "sequences2"),
        ({"a": 1}, "sequences2"),
    ],
)
def test_values_in_ids(value: Any, expected: str) -> None:
    """Text as it is, where a node id can hold it; lists and mappings by their key and place."""
    assert name("data.sequences", value, 2) == expected


def test_lists_and_mappings_are_numbered(file: Path) -> None:
    """By their place in the list, whatever `exclude` leaves; those of `include` go on counting."""
    text = """\
matrix:
  data.sequences: [[a], [b], [c]]
  exclude: [{data.sequences: [a]}]
  include: [{data.sequences: [d]}]
"""
    assert ids(file, text, ("cpu",)) == ["cpu-sequences1", "cpu-sequences2", "cpu-sequences3"]


def test_points_made_by_hand_have_names() -> None:
    """A point without names makes them from its values."""
    settings = Settings(checkpoint=HubCheckpoint(id="gpt2"), data=Data(sequences=["a"], labels=[0]))
    made = Experiment(Path("b.yaml"), "", (Point((("train.seed", 3), ("train.betas", [0.5, 0.6])), settings),))
    assert [case.name for case in cases(made, ["cpu"], root=Path())] == ["b.yaml::cpu-3-betas0"]


@given(texts=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), min_size=1, max_size=3))
def test_any_value_makes_a_node_id(texts: list[str]) -> None:
    """Ids are of plain characters, and never hold or start the `::` that separates a node id."""
    joined = "-".join(name("checkpoint", text) for text in texts)
    assert joined.isascii()
    assert not set(joined) & set(" /[]\\\n")
    assert "::" not in joined
    assert joined.strip(":") == joined


@given(
    lists=st.fixed_dictionaries(
        {},
        optional={
            "train.loop": st.just(["custom", "trainer"]),
            "device": st.lists(st.sampled_from(["cpu", "cuda", "mps"]), min_size=1, unique=True),
            "precision": st.just(["bf16", "fp32"]),
        },
    ),
    devices=st.lists(st.sampled_from(["cpu", "cuda", "mps"]), min_size=1, unique=True),
)
def test_override_is_as_if_written(file: Path, lists: dict[str, list[str]], devices: list[str]) -> None:
    """Devices given on the command line, and the same devices in the file, plan the same cases in the same order."""

    def matrix(lists: dict[str, list[str]]) -> str:
        return f"matrix: {lists}" if lists else ""

    written = plan(file, matrix({**lists, "device": devices} if "device" in lists else lists), devices)
    assert plan(file, matrix(lists), devices, override=True) == written
    assert len({case.id for case in written}) == len(written)


# --- cuda:all --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "expected"), [(0, ["cuda:0"]), (1, ["cuda:0"]), (3, ["cuda:0", "cuda:1", "cuda:2"])])
def test_every_cuda_device(file: Path, count: int, expected: list[str]) -> None:
    """There is a case for each, and one to be skipped where there is none."""
    expanded = expand(plan(file, "matrix: {precision: [fp32], device: ['cuda:all']}"), lambda: count)
    assert [case.id for case in expanded] == [f"fp32-{device}" for device in expected]
    assert [case.settings.device for case in expanded] == expected
    assert [dict(case.values)["device"] for case in expanded] == expected


def test_the_machine_is_not_asked_in_vain(file: Path) -> None:
    """Counting needs torch: it is done once, and only for `cuda:all`."""
    asked: list[int] = []

    def count() -> int:
        asked.append(1)
        return 2

    assert expand(plan(file, ""), count) == plan(file, "")
    assert not asked
    planned = expand(plan(file, "matrix: {train.seed: [1, 2]}", ("cpu", "cuda:all")), count)
    assert [case.id for case in planned] == ["cpu-1", "cpu-2", "cuda:0-1", "cuda:1-1", "cuda:0-2", "cuda:1-2"]
    assert len(asked) == 1


def test_a_device_beside_all_of_them_is_one_case(file: Path) -> None:
    """`cuda:0` and `cuda:all` overlap."""
    planned = expand(plan(file, "matrix: {device: ['cuda:0', 'cuda:all']}"), lambda: 2)
    assert [case.id for case in planned] == ["cuda:0", "cuda:1"]


# --- Files -----------------------------------------------------------------------------------------------------------


def test_find(tmp_path: Path) -> None:
    """Below a folder, experiments sorted and without bases; a file that is named is taken in any case, and once."""
    for path in ("b.yaml", "a.yml", "_base.yaml", ".hidden.yaml", "c.txt", "in/d.yaml", "_in/e.yaml", ".in/f.yaml"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    (tmp_path / "folder.yaml").mkdir()
    assert find([tmp_path]) == tuple(tmp_path / path for path in ("a.yml", "b.yaml", "in/d.yaml"))
    named = [tmp_path / path for path in ("_base.yaml", "c.txt", "none.yaml")]
    assert find([*named, tmp_path / "in", tmp_path / "_base.yaml"]) == (*named, tmp_path / "in/d.yaml")
    assert find([tmp_path / "_in"]) == (tmp_path / "_in/e.yaml",)


def test_the_folder_of_a_tokenizer_is_declared_as_seen_from_the_file(tmp_path: Path) -> None:
    """Two checkouts, or two machines, declare the same."""
    declared = []
    for checkout in ("one", "two"):
        (tmp_path / checkout / "words").mkdir(parents=True)
        (tmp_path / checkout / "words" / "tokenizer.json").write_text("{}")
        file = tmp_path / checkout / "a.yaml"
        file.write_text("checkpoint: acme/model\ntokenizer: ./words\ndata: {sequences: [a], labels: [0]}\n")
        (only,) = cases(read(file, {}), ["cpu"], root=file.parent)
        declared.append(only.declared())
    assert declared[0]["settings"]["tokenizer"] == "words"
    assert declared[0] == declared[1]
