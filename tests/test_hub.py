"""Checkpoints from the Hub: what is fetched, what is kept, and what is said where it can't be had."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hub import Answer, Hub, serving
from huggingface_hub import constants, file_download
from huggingface_hub.utils import _http
from transformers import AutoModelForSequenceClassification
from trial import attempt, case, save, settings, train

from harness.experiment import parse_checkpoint
from harness.record import Record
from harness.store import read
from harness.training.checkpoint import load

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "acme/tiny-bert"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as it is pushed to the Hub: beside what is needed there is what must stay there."""
    folder = save(tmp_path_factory.mktemp("saved"))
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "modeling_tiny.py").write_text("raise SystemExit\n")
    (folder / "README.md").write_text("# Tiny\n")
    (folder / "onnx").mkdir()
    shutil.copy(folder / "config.json", folder / "onnx" / "config.json")
    shutil.copy(folder / "model.safetensors", folder / "onnx" / "model.safetensors")
    return folder


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the client meant to wait between its attempts."""
    waited: list[float] = []
    for module in (_http, file_download):
        monkeypatch.setattr(module, "time", SimpleNamespace(**{**vars(time), "sleep": waited.append}))
    return waited


@pytest.fixture
def hub(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Iterator[Hub]:
    """A Hub with one model, which this process takes for the real one, and an empty cache."""
    with serving(Hub()) as hub:
        hub.push(NAME, saved, "v1")
        connect(hub.address, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("NO_PROXY", "*")
        _http.close_session()  # the next one sees that there is no proxy
        yield hub
        _http.close_session()


def connect(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does to a process that starts."""
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


def run(name: str = NAME) -> Record:
    """One step from that checkpoint, however it ends."""
    return attempt(case(parse_checkpoint(name), train={"steps": 1}))


def unused_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


# What is had


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_model_of_the_hub_trains(hub: Hub, revision: str | None, saved: Path) -> None:
    """A name, with or without a revision, trains as the folder itself does, and the record has the commit."""
    commit = hub.push(NAME, saved, "v1")
    name = NAME if revision is None else f"{NAME}@{revision}"
    record, local = run(name), train(case(saved, train={"steps": 1}))
    assert record.finished, record.traceback
    assert record.checkpoint is not None
    assert local.checkpoint is not None
    assert (record.checkpoint.source, record.checkpoint.revision) == (name, commit)
    assert record.checkpoint.digest == local.checkpoint.digest
    assert record.checkpoint.missing == ("classifier.bias", "classifier.weight")
    assert record.steps.loss == local.steps.loss


def test_revision_is_the_one_asked_for(hub: Hub, tmp_path: Path) -> None:
    """A tag and a commit keep meaning what they meant after `main` has moved on."""
    first = hub.push(NAME, save(tmp_path / "first", num_labels=3), "v1")
    second = hub.push(NAME, save(tmp_path / "second", hidden_act="relu"))
    names = {f"{NAME}@v1": first, f"{NAME}@{first}": first, NAME: second, f"{NAME}@{second}": second}
    found = {name: run(name).checkpoint for name in names}
    assert {name: each.revision for name, each in found.items() if each} == names


def test_only_what_is_needed_is_fetched(hub: Hub) -> None:
    """Configuration, safetensors and tokenizer of the top folder: no pickle, no code, nothing of a subfolder."""
    assert run().finished
    files = {request.rpartition("/")[2] for request in hub.requests if "/resolve/" in request}
    assert files == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not any("onnx" in request for request in hub.requests)
    assert [request for request in hub.requests if not request.startswith(("GET ", "HEAD "))] == []


def test_the_chat_template_is_fetched_too(hub: Hub, saved: Path, tmp_path: Path) -> None:
    """Transformers keeps it in a file of its own; so does ProphetNet its vocabulary."""
    folder = tmp_path / "chatty"
    shutil.copytree(saved, folder)
    (folder / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }} {% endfor %}")
    (folder / "prophetnet.tokenizer").write_text("soup")
    hub.push("acme/chatty", folder)
    found = load(settings(parse_checkpoint("acme/chatty")))
    assert found.tokenizer.chat_template.startswith("{% for message in messages %}")
    assert any(request.endswith("prophetnet.tokenizer") for request in map(str, hub.requests))


def test_second_run_fetches_no_file_again(hub: Hub) -> None:
    """Only the revision is asked for once more, and a commit not even that."""
    first = run()
    assert first.checkpoint is not None
    hub.requests.clear()
    assert run().checkpoint == first.checkpoint
    assert hub.requests == [f"GET /api/models/{NAME}/revision/main"]
    hub.requests.clear()
    assert run(f"{NAME}@{first.checkpoint.revision}").finished
    assert hub.requests == []


def test_broken_connection_is_resumed(
    hub: Hub, saved: Path, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights whose first half came and then nothing more are asked for from there."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1)  # what is held of a chunk that is not full is lost
    weights = (saved / "model.safetensors").read_bytes()
    half = Answer(200, {"Content-Length": str(len(weights))}, weights[: len(weights) // 2])
    halves = iter([half])
    hub.fault = lambda request: next(halves, None) if request.startswith("GET /blobs/") else None
    record = run()
    assert record.finished, record.traceback
    assert any(header.get("range") == f"bytes={len(weights) // 2}-" for header in hub.headers)
    assert waits


def test_busy_hub_is_asked_again(hub: Hub, waits: list[float]) -> None:
    """Too many requests at once are no reason to give up: the client waits as long as it is told."""
    answers = iter([Answer(429, {"Retry-After": "2"})])
    hub.fault = lambda request: next(answers, None) if request.startswith("GET /blobs/") else None
    assert run().finished
    assert waits == [3.0]


def test_tokenizer_may_come_from_the_hub_alone(hub: Hub) -> None:
    """Random weights with the tokenizer of a model: its weights are not looked at."""
    said = {"architecture": "bert", "size": "tiny"}
    record = train(case(said, tokenizer=NAME, train={"steps": 1}))
    plain = train(case(said, train={"steps": 1}))
    assert record.tokenizer == plain.tokenizer
    assert [one.input_ids for one in record.examples] == [one.input_ids for one in plain.examples]


# What is not


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("acme/no-such-model", "acme/no-such-model: no such repository on the Hub, or it is private"),
        (f"{NAME}@v9", f"{NAME}@v9: the repository has no revision 'v9'"),
        (f"{NAME}@{'0' * 40}", f"{NAME}@{'0' * 40}: the repository has no revision '{'0' * 40}'"),
        ("acme/gated", "acme/gated: gated on the Hub: accept its terms and log in (hf auth login)"),
        ("acme/pickles", "acme/pickles: no weights as safetensors: other formats can run code and are not loaded"),
        ("acme/wordless", "acme/wordless: no tokenizer: none of vocab.txt, tokenizer.json"),
        ("acme/empty", "acme/empty: no weights as safetensors"),
    ],
)
def test_model_that_cannot_be_had_says_why(hub: Hub, saved: Path, name: str, said: str) -> None:
    """What is wrong on the Hub, and what to do about it, is one sentence in a case that crashed."""
    files = {path.name: path.read_bytes() for path in saved.iterdir() if path.is_file()}
    hub.push("acme/gated", files)
    hub.gated.add("acme/gated")
    hub.push("acme/pickles", {file: data for file, data in files.items() if file != "model.safetensors"})
    hub.push("acme/wordless", {file: data for file, data in files.items() if not file.startswith("tokenizer")})
    hub.push("acme/empty", {"README.md": b"Nothing yet."})
    record = run(name)
    assert record.outcome == "crashed"
    assert record.reason.startswith(f"CheckpointError: {said}")
    assert record.checkpoint is None
    assert record.steps.loss == ()


@pytest.mark.parametrize("status", [403, 410])
def test_refusal_is_no_skip(hub: Hub, status: int) -> None:
    """An answer that waiting will not change is a failure: a token without rights must not look like a dead network."""
    hub.fault = lambda request: Answer(status) if "/api/" in request else None
    record = run()
    assert record.outcome == "crashed"
    assert record.reason.startswith(f"CheckpointError: {NAME}: the Hub answers: ")
    assert str(status) in record.reason


def test_answer_that_is_no_hub_s_is_named(hub: Hub) -> None:
    """A page to log in to the hotel's network is not a model, and not a traceback of a JSON parser either."""
    hub.fault = lambda request: Answer(200, {"Content-Type": "text/html"}, b"<html>Welcome!</html>")
    record = run()
    assert record.outcome == "crashed"
    assert record.reason.startswith(f"CheckpointError: {NAME}: cannot be had from the Hub: ")


@pytest.mark.parametrize("status", [429, 500, 502, 503])
@pytest.mark.parametrize("where", ["/api/", "/resolve/", "/blobs/"])
def test_busy_or_broken_hub_is_a_skip(hub: Hub, status: int, where: str, waits: list[float]) -> None:
    """Wherever the Hub gives up, the case is skipped with its answer, and trains once the Hub is back."""
    hub.fault = lambda request: Answer(status) if where in request else None
    record = run()
    assert record.outcome == "skipped"
    assert record.reason.startswith(f"{NAME}: the Hub cannot be reached, and no whole copy is cached: ")
    assert str(status) in record.reason
    assert record.traceback == ""
    hub.fault = lambda request: None
    assert run().finished


def test_server_that_is_down_is_a_skip(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing cached the case is skipped; with a copy it trains from it, and the record says which commit."""
    online = run()
    connect(f"http://127.0.0.1:{unused_port()}", monkeypatch)
    assert run().checkpoint == online.checkpoint
    record = run("acme/other")
    assert record.outcome == "skipped"
    assert record.reason.startswith("acme/other: the Hub cannot be reached, and no whole copy is cached: ")
    assert "refused" in record.reason


def test_connection_that_always_breaks_is_a_skip(hub: Hub, saved: Path, waits: list[float]) -> None:
    """Weights that never come whole are not trained on, and half of them is not a copy to fall back to."""
    size = (saved / "model.safetensors").stat().st_size
    hub.fault = lambda request: Answer(200, {"Content-Length": str(size)}) if "GET /blobs/" in request else None
    assert run().outcome == "skipped"
    hub.fault = lambda request: Answer(503)
    record = run()
    assert record.outcome == "skipped"
    assert "no whole copy is cached" in record.reason


def test_offline_uses_the_copy_and_nothing_else(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, a cached revision trains without a request, and any other is a skip that says so."""
    online = run(f"{NAME}@v1")
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run(f"{NAME}@v1").checkpoint == online.checkpoint
    for name in (NAME, f"{NAME}@v2", "acme/other"):
        record = run(name)
        assert record.outcome == "skipped"
        assert "offline mode is enabled" in record.reason
    assert hub.requests == []


def test_nothing_is_read_once_the_hub_has_failed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no fallback: where the named checkpoint can't be had, no other weights are looked for."""

    def refuse(*arguments: object, **said: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", refuse)
    monkeypatch.setattr(AutoModelForSequenceClassification, "from_config", refuse)
    connect(f"http://127.0.0.1:{unused_port()}", monkeypatch)
    assert run().outcome == "skipped"


def test_credentials_stay_out_of_records(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the person's token nor the signature of a file's address is in the record of a failure."""
    monkeypatch.setenv("HF_TOKEN", "hf_personal")
    signed = {"X-Repo-Commit": "0" * 40, "ETag": '"1"', "X-Linked-Etag": '"1"', "X-Linked-Size": "1"}

    def fault(request: str) -> Answer | None:
        if request.startswith("HEAD ") and "/resolve/" in request:
            return Answer(302, {**signed, "Location": f"{hub.store}/blobs/{'0' * 64}?Signature=s3cr3t"})
        return Answer(403) if "/blobs/" in request else None

    hub.fault = fault
    record = run()
    assert record.outcome == "crashed"
    assert any(header.get("authorization") == "Bearer hf_personal" for header in hub.headers)
    assert not any("authorization" in header for header in hub.headers if header["host"] == hub.store[7:])
    assert "s3cr3t" not in record.to_json()
    assert "hf_personal" not in record.to_json()


# As a person does it


def pytest_with(environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run pytest over the experiments of a folder, in an environment of their own."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-k", "trains", "--rootdir", str(folder), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", "NO_PROXY": "*", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def records(folder: Path) -> dict[str, Record]:
    """The newest record of each experiment."""
    found = read(sorted((folder / "reports" / "records").glob("*.jsonl"))).records
    return {record.experiment: record for record in found}


def test_environment_variables_decide_as_everywhere(saved: Path, tmp_path: Path) -> None:
    """HF_ENDPOINT and HF_HOME of a process lead to the Hub and its cache; with HF_HUB_OFFLINE the cache is enough."""
    (tmp_path / "experiments").mkdir()
    for name in ("tiny-bert", "other"):
        (tmp_path / "experiments" / f"{name}.yaml").write_text(
            f"checkpoint: acme/{name}\ndata:\n  sequences: [warm soup, cold bread]\n  labels: [1, 0]\n"
            "train:\n  steps: 1\ninvariants:\n  loss_decreases: false\n"
        )
    with serving(Hub()) as hub:
        commit = hub.push(NAME, saved)
        environment = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
        online = pytest_with(environment, tmp_path)
        asked = len(hub.requests)
        first = records(tmp_path)
        offline = pytest_with({**environment, "HF_HUB_OFFLINE": "1"}, tmp_path)
        assert len(hub.requests) == asked
    assert online.returncode == 1
    assert first["experiments/tiny-bert.yaml"].finished
    assert first["experiments/other.yaml"].reason.startswith("CheckpointError: acme/other: no such repository")
    assert offline.returncode == 0, offline.stdout
    second = records(tmp_path)
    assert second["experiments/other.yaml"].outcome == "skipped"
    assert "offline mode is enabled" in offline.stdout
    for run in (first, second):
        found = run["experiments/tiny-bert.yaml"].checkpoint
        assert found is not None
        assert found.revision == commit
