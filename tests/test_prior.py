"""What was pretrained shows in the texts, and does not where tokenizer or weights are another model's."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)
from trial import case

from harness.laws import LAWS, Verdict, judge
from harness.plan import Case
from harness.training import tokenizer
from harness.training.checkpoint import Shelf
from harness.training.fault import Fault
from harness.training.faults.loading import vocabulary_of_another_tokenizer
from harness.training.run import run

pytestmark = pytest.mark.usefixtures("in_this_process")

TEXTS = [
    "the baker puts the warm bread into the oven",
    "a sailor ties his boat to the old pier",
    "my sister reads a long book every night",
    "snow falls on the quiet roofs of the village",
    "two farmers carry heavy sacks across their field",
    "the teacher writes our names upon a board",
    "green frogs sing beside the pond in summer",
    "he plays his violin for children at school",
    "she sells fresh fish from a small cart",
    "this train leaves london before the sun rises",
    "nobody heard what the king said that day",
    "we drink hot tea when it rains outside",
    "old letters lie under dust inside her drawer",
    "their dog sleeps near my warm kitchen stove",
    "every clock stopped after the loud storm passed",
    "five birds flew over those tall grey walls",
]
TASKS = {"masked-lm": BertForMaskedLM, "causal-lm": GPT2LMHeadModel}
QUICK = frozenset(probe for law in LAWS if law.axis is None and not law.slow for probe in law.probes)
LAW = next(law for law in LAWS if law.name == "pretraining_shows")


def tiny(model: type[PreTrainedModel], size: int) -> Any:
    """A model of random weights."""
    torch.manual_seed(0)
    if model is GPT2LMHeadModel:
        return model(GPT2Config(vocab_size=size, n_embd=64, n_layer=2, n_head=4, n_positions=32))
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    return model(BertConfig(vocab_size=size, max_position_embeddings=32, **shape))


def pretrain(model: Any, words: Any) -> None:
    """Until it knows the texts: those that are read to it are all that there is to know."""
    batch = words(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    ids, real = batch["input_ids"], batch["attention_mask"].bool()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        hide = torch.rand(ids.shape, generator=generator) < 0.15
        masked = isinstance(model, BertForMaskedLM)
        asked = ids.masked_fill(hide, words.mask_token_id) if masked else ids
        labels = ids.masked_fill(~(hide & real) if masked else ~real, -100)
        model(input_ids=asked, attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A tiny language model of each kind, pretrained here, with its tokenizer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found, words = {}, tokenizer.train(TEXTS)
    for task, kind in TASKS.items():
        found[task] = tmp_path_factory.mktemp(task)
        model = tiny(kind, len(words)).train()
        pretrain(model, words)
        model.save_pretrained(found[task])
        words.save_pretrained(found[task])
    yield found
    torch.set_num_threads(threads)


def classification(checkpoint: Path, **said: Any) -> Case:
    """A classifier made of a language model."""
    labels = [number % 2 for number in range(len(TEXTS))]
    return case(checkpoint, data={"sequences": TEXTS, "labels": labels}, train={"steps": 1}, probes=["prior"], **said)


def modelling(task: str, checkpoint: Path, texts: list[str] = TEXTS, **said: Any) -> Case:
    """The language model itself."""
    rows = {"rows": [{"text": text} for text in texts]}
    return case(checkpoint, task=task, data=rows, train={"steps": 1}, probes=["prior"], **said)


def verdict(one: Case, fault: Fault | None = None) -> Verdict:
    """What the law says."""
    record = run(one, shelf=Shelf(), root=Path.cwd(), fault=fault)
    assert record.finished, record.traceback
    (said,) = judge(record, [LAW])
    return said


@pytest.mark.parametrize("task", TASKS)
def test_a_pretrained_model_knows_its_texts(checkpoints: dict[str, Path], task: str) -> None:
    """Far below chance, and far above it where every word is another; and no other law cries wolf over it."""
    one = replace(modelling(task, checkpoints[task]), probes=QUICK)
    verdicts = judge(run(one, shelf=Shelf(), root=Path.cwd()))
    assert [said.outcome for said in verdicts if said.law == LAW.name] == ["held"]
    assert [f"{said.law}: {said.message}" for said in verdicts if said.outcome == "broken"] == []


@pytest.mark.parametrize("task", TASKS)
def test_a_classifier_is_made_of_a_model_that_knows_its_texts(checkpoints: dict[str, Path], task: str) -> None:
    """The head of the language model is read from the files, whatever is trained."""
    said = verdict(classification(checkpoints[task]))
    assert said.outcome == "held", said.message


@pytest.mark.parametrize("task", TASKS)
def test_another_vocabulary_is_seen(checkpoints: dict[str, Path], task: str) -> None:
    """Weights whose rows stand for other words load without a word, and the law is broken, whatever is trained."""
    assert verdict(classification(checkpoints[task]), vocabulary_of_another_tokenizer).outcome == "broken"
    one = replace(modelling(task, checkpoints[task]), probes=QUICK)
    record = run(one, shelf=Shelf(), root=Path.cwd(), fault=vocabulary_of_another_tokenizer)
    assert [said.law for said in judge(record) if said.outcome == "broken"] == ["pretraining_shows"]


@pytest.mark.parametrize("task", TASKS)
def test_another_tokenizer_is_seen(checkpoints: dict[str, Path], task: str, tmp_path: Path) -> None:
    """One that the experiment names, of the same size, with other ids."""
    words = tokenizer.train([" ".join(text.split()[::-1])[::-1] for text in TEXTS], vocab_size=100)
    words.save_pretrained(tmp_path)
    said = verdict(modelling(task, checkpoints[task], tokenizer=str(tmp_path)))
    assert said.outcome == "broken", said.message


def test_weights_that_were_never_trained_are_seen(tmp_path: Path) -> None:
    """A file of random weights loads as a pretrained one does."""
    words = tokenizer.train(TEXTS)
    tiny(BertForMaskedLM, len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    said = verdict(modelling("masked-lm", tmp_path))
    assert said.outcome == "broken"
    assert "were never trained" in said.cause


def test_it_says_nothing_of_what_was_not_pretrained(tmp_path: Path) -> None:
    """Random weights, a checkpoint without a language model's head, and a new one."""
    random = replace(modelling("masked-lm", tmp_path), settings=case().settings)
    assert verdict(random).message == "every weight is random: nothing was pretrained"
    words = tokenizer.train(TEXTS)
    tiny(BertForSequenceClassification, len(words)).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    said = verdict(classification(tmp_path))
    assert said.message == "the checkpoint holds no language model (BertForSequenceClassification)"
    said = verdict(modelling("masked-lm", tmp_path))
    assert said.message == "the head of the language model is newly initialised"


def test_few_words_say_too_little(checkpoints: dict[str, Path]) -> None:
    """The mean of a few losses is anything."""
    assert verdict(modelling("causal-lm", checkpoints["causal-lm"], TEXTS[:4])).outcome == "invalid"
