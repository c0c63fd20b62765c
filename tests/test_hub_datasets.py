"""Datasets of the Hub, from a server on this machine that speaks its protocol, through the real clients."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset
from hub import Answer, Hub, serving
from huggingface_hub import HfFileSystem, constants
from huggingface_hub.utils import _http
from test_hub import connect, unused_port, waits  # noqa: F401  # a fixture
from trial import attempt, case

from harness.experiment import Data, Evaluation
from harness.record import Record
from harness.training.rows import Stream, Table, open_rows

NAME = "acme/reviews"
REPOSITORY = f"datasets/{NAME}"
SHARD = "data/train-00000-of-00001.parquet"
TEXTS = ["warm soup", "cold bread", "fresh bread", "stale soup", "good", "bad"]


def parquet(folder: Path, texts: list[str] = TEXTS) -> bytes:
    """Rows whose labels, bad and good in turn, are named by the features."""
    table = Dataset.from_dict({"text": texts, "label": [(place + 1) % 2 for place in range(len(texts))]})
    table = table.cast_column("label", ClassLabel(names=["bad", "good"]))
    table.to_parquet(folder / "rows.parquet")
    return (folder / "rows.parquet").read_bytes()


def repository(folder: Path, texts: list[str] = TEXTS) -> dict[str, bytes]:
    """The files of a dataset with one split."""
    return {"README.md": b"---\nlicense: mit\n---\n# Reviews\n", SHARD: parquet(folder, texts)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:  # noqa: F811
    """A Hub with one dataset, which this process takes for the real one, and empty caches."""
    with serving(Hub()) as hub:
        hub.push(REPOSITORY, repository(tmp_path), "v1")
        reach(hub.address, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
        monkeypatch.setattr(datasets.config, "STREAMING_READ_RETRY_INTERVAL", 0)
        monkeypatch.setattr(datasets.config, "STREAMING_READ_MAX_RETRIES", 2)
        offline(monkeypatch, False)
        monkeypatch.setenv("NO_PROXY", "*")
        yield hub
        _http.close_session()
        HfFileSystem.clear_instance_cache()


def reach(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does to a process that starts."""
    connect(address, monkeypatch)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", address)
    _http.close_session()
    HfFileSystem.clear_instance_cache()  # it remembers address and listings


def offline(monkeypatch: pytest.MonkeyPatch, value: bool) -> None:
    """What HF_HUB_OFFLINE does to a process that starts."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", value)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", value)
    _http.close_session()
    HfFileSystem.clear_instance_cache()


def run(dataset: str = NAME, **said: Any) -> Record:
    """A few steps on that dataset, however they end."""
    trial = case(train={"steps": 2, "batch_size": 2})
    return attempt(replace(trial, settings=trial.settings.model_copy(update={"data": Data(dataset=dataset, **said)})))


def texts(dataset: str = NAME, **said: Any) -> list[str]:
    """Its texts, in order."""
    rows = open_rows(Data(dataset=dataset, **said), "sequence-classification")
    found = rows.get(range(len(rows))) if isinstance(rows, Table) else [row for _, row in rows]
    return [row["text"] for row in found]


# What is had


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_dataset_of_the_hub_trains(hub: Hub, revision: str | None, streaming: bool) -> None:
    """With or without a revision, at once or streamed; the record has the commit and the names of the classes."""
    record = run(revision=revision, streaming=streaming)
    assert record.finished, record.traceback
    assert record.data is not None
    assert record.data.source == (NAME if revision is None else f"{NAME}@{revision}")
    assert record.data.revision in hub._trees[REPOSITORY]
    assert record.data.label_names == ("bad", "good")
    assert {example.text: example.label for example in record.examples}.items() <= {
        (text, (place + 1) % 2) for place, text in enumerate(TEXTS)
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_revision_is_the_one_asked_for(hub: Hub, tmp_path: Path, streaming: bool) -> None:
    """A tag and a commit keep meaning what they meant after `main` has moved on."""
    first = hub.push(REPOSITORY, repository(tmp_path), "v1")
    second = hub.push(REPOSITORY, repository(tmp_path, ["new soup", "new bread"]))
    assert texts(streaming=streaming) == ["new soup", "new bread"]
    assert texts(revision="v1", streaming=streaming) == texts(revision=first, streaming=streaming) == TEXTS
    record = run(revision="main", streaming=streaming)
    assert record.data is not None
    assert record.data.revision == second


@pytest.mark.parametrize(
    ("streaming", "dataset", "names", "meant"),
    [
        (False, None, ["bad", "good"], (0, 1)),
        (True, None, ["bad", "good"], (0, 1)),
        (False, "acme/others", ["good", "bad"], (1, 0)),
        (True, "acme/others", ["good", "bad"], (1, 0)),
    ],
)
def test_rows_of_the_hub_are_evaluated_on(
    hub: Hub, tmp_path: Path, streaming: bool, dataset: str | None, names: list[str], meant: tuple[int, ...]
) -> None:
    """Another split of the same dataset, or another one that numbers the same names otherwise: they are one map."""
    table = Dataset.from_dict({"text": ["some soup", "some bread"], "label": [0, 1]})
    table.cast_column("label", ClassLabel(names=names)).to_parquet(tmp_path / "held.parquet")
    held = {"data/validation-00000-of-00001.parquet": (tmp_path / "held.parquet").read_bytes()}
    base = repository(tmp_path) if dataset is None else {"README.md": b"# Others\n"}
    commit = hub.push(REPOSITORY if dataset is None else f"datasets/{dataset}", {**base, **held})
    trial = case(train={"steps": 2, "batch_size": 2})
    said = Evaluation(dataset=dataset, split="validation", streaming=streaming, limit=2)
    changes = {"data": Data(dataset=NAME), "evaluation": said}
    record = attempt(replace(trial, settings=trial.settings.model_copy(update=changes)))
    assert record.finished, record.traceback
    assert record.evaluation is not None
    assert record.evaluation.scores[0].answers is not None
    assert record.evaluation.scores[0].answers.meant == meant
    assert (record.evaluation.source, record.evaluation.revision) == (dataset or NAME, commit)


def test_configurations_and_splits_are_the_repositorys(hub: Hub, tmp_path: Path) -> None:
    """`name` is one of those that the card lists, `split` one of its files."""
    card = (
        b"---\nconfigs:\n- config_name: short\n  data_files:\n  - split: train\n    path: short.csv\n"
        b"  - split: test\n    path: test.csv\n- config_name: long\n  data_files: long.csv\n---\n"
    )
    files = {
        name: f"text,label\nfrom {name},0\nand again,1\n".encode() for name in ("short.csv", "test.csv", "long.csv")
    }
    hub.push("datasets/acme/two", {"README.md": card, **files})
    assert texts("acme/two", name="short") == ["from short.csv", "and again"]
    assert texts("acme/two", name="short", split="train[:1]+test[:1]") == ["from short.csv", "from test.csv"]
    assert texts("acme/two", name="long") == ["from long.csv", "and again"]
    assert run("acme/two").reason.startswith("DataError: acme/two: cannot be read: Config name is missing.")
    assert "BuilderConfig 'middle' not found" in run("acme/two", name="middle").reason


def test_second_run_fetches_no_rows_again(hub: Hub) -> None:
    """What was had stays on this machine."""
    assert run().finished
    hub.requests.clear()
    assert run().finished
    assert not any("/blobs/" in request or SHARD in request for request in hub.requests)


def test_stream_is_read_in_ranges(hub: Hub, tmp_path: Path) -> None:
    """Of a large file, only what is asked for is fetched, and nothing is kept."""
    random = Random(0)
    many = [random.randbytes(500).hex() for _ in range(70_000)]
    data = "".join(f'{{"text": "{text}", "label": {place % 2}}}\n' for place, text in enumerate(many)).encode()
    hub.push("datasets/acme/large", {"README.md": b"# Large\n", "train.jsonl": data})
    rows = open_rows(Data(dataset="acme/large", streaming=True, limit=3, num_labels=2), "sequence-classification")
    assert isinstance(rows, Stream)
    assert [row["text"] for _, row in rows] == many[:3]
    ranges = [header["range"] for header in hub.headers if "range" in header]
    fetched = sum(int(end) - int(start) + 1 for start, _, end in (part[6:].partition("-") for part in ranges))
    assert ranges
    assert len(many[0]) < fetched < len(data) / 2
    kept = [*(tmp_path / "hub").rglob("*"), *(tmp_path / "datasets").rglob("*")]
    assert not any(path.stat().st_size > 1e5 for path in kept if path.is_file())


def test_broken_connection_is_resumed(
    hub: Hub,
    waits: list[float],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows whose first half came and then nothing more are asked for from there."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1)  # what is held of a chunk that is not full is lost
    data = next(data for tree in hub._trees[REPOSITORY].values() for path, data in tree.items() if path == SHARD)
    halves = iter([Answer(200, {"Content-Length": str(len(data))}, data[: len(data) // 2])])
    hub.fault = lambda request: next(halves, None) if request.startswith("GET /blobs/") else None
    record = run()
    assert record.finished, record.traceback
    assert any(header.get("range") == f"bytes={len(data) // 2}-" for header in hub.headers)
    assert waits


def test_busy_hub_is_asked_again(hub: Hub, waits: list[float]) -> None:  # noqa: F811
    """Too many requests at once are no reason to give up: the client waits as long as it is told."""
    answers = iter([Answer(429, {"Retry-After": "2"})])
    hub.fault = lambda request: next(answers, None) if request.startswith("GET /blobs/") else None
    assert run().finished
    assert waits


# What is not


@pytest.mark.parametrize(
    ("dataset", "said", "expected"),
    [
        ("acme/none", {}, "acme/none: no such repository on the Hub, or it is private"),
        (NAME, {"revision": "v9"}, f"{NAME}@v9: the repository has no revision 'v9'"),
        (NAME, {"split": "dev"}, f"{NAME}: cannot be read: Unknown split"),
        (NAME, {"split": "dev", "streaming": True}, f"{NAME}: no split 'dev', it has 'train'"),
        (NAME, {"columns": {"text": "review"}}, f"{NAME}: no column 'review', it has 'text', 'label'"),
        ("acme/gated", {}, "acme/gated: gated on the Hub: accept its terms and log in (hf auth login)"),
        ("acme/empty", {}, "acme/empty: cannot be read: The directory at hf://datasets/acme/empty"),
        ("acme/script", {}, "acme/script: cannot be read: Dataset scripts are no longer supported"),
        ("acme/pages", {}, "acme/pages: data of the kind xml, expected arrow, csv, json, parquet, text"),
    ],
)
@pytest.mark.usefixtures("waits")
def test_dataset_that_cannot_be_had_says_why(
    hub: Hub, tmp_path: Path, dataset: str, said: dict[str, Any], expected: str
) -> None:
    """What is wrong on the Hub, and what to do about it, is one sentence in a case that crashed."""
    hub.push("datasets/acme/gated", repository(tmp_path))
    hub.gated.add("datasets/acme/gated")
    hub.push("datasets/acme/empty", {"README.md": b"Nothing yet."})
    hub.push("datasets/acme/script", {"script.py": b"raise SystemExit", **repository(tmp_path)})
    hub.push("datasets/acme/pages", {"README.md": b"", "train.xml": b"<rows><row/></rows>"})
    record = run(dataset, **said)
    assert record.outcome == "crashed"
    assert record.reason.startswith(f"DataError: {expected}"), record.reason
    assert record.steps.loss == ()


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("where", ["/api/", "/resolve/", "/blobs/"])
def test_busy_or_broken_hub_is_a_skip(hub: Hub, status: int, where: str) -> None:
    """Wherever the Hub gives up, the case is skipped with its answer, and trains once the Hub is back."""
    hub.fault = lambda request: Answer(status) if where in request else None
    record = run()
    assert record.outcome == "skipped", record.reason
    assert record.reason.startswith(f"{NAME}: the Hub cannot be reached, and ")
    assert str(status) in record.reason
    hub.fault = lambda request: None
    HfFileSystem.clear_instance_cache()
    assert run().finished


def test_server_that_is_down_is_a_skip(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing cached the case is skipped; with a copy it trains from it, and the record says which commit."""
    online = run()
    reach(f"http://127.0.0.1:{unused_port()}", monkeypatch)
    again = run()
    assert again.finished, again.reason
    assert again.data == online.data
    record = run("acme/other")
    assert record.outcome == "skipped"
    assert "refused" in record.reason


def test_rows_that_never_come_whole_are_a_skip(hub: Hub) -> None:
    """Half of a file is not a copy to train on."""
    hub.fault = lambda request: Answer(200, {"Content-Length": "5000"}) if "GET /blobs/" in request else None
    record = run()
    assert record.outcome == "skipped", record.reason
    hub.fault = lambda request: None
    HfFileSystem.clear_instance_cache()
    assert run().finished


def test_stream_that_breaks_off_is_a_skip(hub: Hub) -> None:
    """The Hub gone in the middle of a stream is the network's fault, and says so."""
    hub.fault = lambda request: Answer(503) if "/blobs/" in request else None
    record = run(streaming=True)
    assert record.outcome == "skipped", record.reason
    assert record.reason.startswith(f"{NAME}: the Hub cannot be reached, and the rows are not cached: ")


def test_offline_uses_the_copy_and_nothing_else(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a cached revision trains without a request, and any other is a skip, never another commit's rows."""
    online = run(revision="v1")
    hub.push(REPOSITORY, repository(tmp_path, ["new soup", "new bread"]), "v2")
    assert texts(revision="v2") == ["new soup", "new bread"]
    hub.requests.clear()
    offline(monkeypatch, True)
    assert texts(revision="v2") == ["new soup", "new bread"]
    assert hub.requests == []
    record = run(revision="v1")  # the library would take v2, which it has cached last
    assert record.outcome == "skipped"
    assert online.data is not None
    assert str(online.data.revision)[:12] in record.reason
    for said in ({"revision": "v3"}, {"name": "other"}):
        record = run(**said)
        assert record.outcome == "skipped", record.reason
    assert run("acme/other").outcome == "skipped"
    assert hub.requests == []
