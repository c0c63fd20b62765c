"""Real trainings of each task: both loops alike, every law kept, and each real mistake caught by the law it breaks."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)
from trial import SEQUENCES, case, train
from vocabulary import byte_pairs

from harness import mutation
from harness.laws import LAWS, Verdict, judge, judge_together
from harness.mutation import Subject
from harness.plan import Case
from harness.record import Record
from harness.training import tokenizer
from harness.training.checkpoint import Shelf
from harness.training.fault import Fault
from harness.training.faults.loss import classes_exclude_each_other, squares_of_all_pairs
from harness.training.faults.saving import chat_template_not_saved
from harness.training.faults.token import FAULTS
from harness.training.faults.tokenizer import token_types_unknown_to_the_tokenizer
from harness.training.mutate import runner
from harness.training.run import run

pytestmark = pytest.mark.usefixtures("one_thread", "in_this_process")

LOOPS = ("custom", "trainer")
WORDS = [
    {"words": ["Ada", "lives", "in", "London"], "labels": [1, 0, 0, 2]},
    {"words": ["un-breakable", "Rome"], "labels": [0, 2]},
    {
        "words": ["yesterday", "Ada", "met", "Alan", "in", "Rome", "and", "they", "left"],
        "labels": [0, 1, 0, 1, 0, 2, 0, 0, 0],
    },
    {"words": ["Alan", "waits"], "labels": [1, 0]},
]
ANSWERS = [
    {"question": "Where does Ada live?", "context": "Ada lives in London.", "answer": "London"},
    {"question": "Who met Alan?", "context": "Yesterday Grace met Alan in Paris, and they left.", "answer": "Grace"},
    {"question": "What is hot?", "context": "The oven is hot.", "answer": "The oven"},
    {"question": "When?", "context": "They came in the early morning of the last day.", "answer": "the early morning"},
]
CHOICES = [
    {"text": "She put the bread", "choices": ["into the oven.", "to sleep in a cold soup."], "label": 0},
    {"text": "It began", "choices": ["the four.", "to rain."], "label": 1},
    {"text": "He turned on the light and", "choices": ["boiled.", "read his book until the morning."], "label": 1},
    {"text": "The dog", "choices": ["barked at the man with the hat.", "and of."], "label": 0},
]
PROMPTS = [
    {"prompt": "Capital of France?", "answer": "Paris."},
    {"prompt": "What comes after the number three when you count?", "answer": "Four."},
    {"prompt": "Why?", "answer": "Because the air scatters blue light more than red light."},
    {"prompt": "Two and two?", "answer": "Four."},
]
TARGETS = [
    {"text": "The house is small.", "target": "Das Haus ist klein."},
    {"text": "Good morning!", "target": "Guten Morgen!"},
    {"text": "The soup is warm and there is enough of it.", "target": "Die Suppe ist warm und sie reicht."},
    {"text": "Thank you.", "target": "Danke."},
]
CHAT = [
    {"messages": [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello! How are you?"}]},
    {"messages": [{"role": "user", "content": "What is hot in here?"}, {"role": "assistant", "content": "Soup."}]},
]
SAID: dict[str, dict[str, Any]] = {
    "token-classification": {"task": "token-classification", "data": {"rows": WORDS}},
    "question-answering": {"task": "question-answering", "data": {"rows": ANSWERS}},
    "multiple-choice": {"task": "multiple-choice", "data": {"rows": CHOICES}},
    "masked-lm": {
        "task": "masked-lm",
        "data": {"rows": [{"text": f"{one} and {other}"} for one in SEQUENCES for other in SEQUENCES if one != other]},
        "train": {"steps": 12, "batch_size": 8, "learning_rate": 1e-2},
    },
    "causal-lm": {
        "task": "causal-lm",
        "checkpoint": {"architecture": "gpt2", "size": "tiny"},
        "data": {"rows": PROMPTS},
    },
    "chat": {"task": "causal-lm", "checkpoint": {"architecture": "llama", "size": "tiny"}, "data": {"rows": CHAT}},
    "seq2seq-lm": {
        "task": "seq2seq-lm",
        "checkpoint": {"architecture": "t5", "size": "tiny"},
        "data": {"rows": TARGETS},
    },
    "seq2seq-lm, shifted by the model": {
        "task": "seq2seq-lm",
        "checkpoint": {"architecture": "m2m_100", "size": "tiny"},
        "data": {"rows": TARGETS},
    },
    "multi-label": {
        "data": {
            "rows": [
                {"text": text, "label": label}
                for text, label in zip(SEQUENCES, ([0], [1, 2], [], [2], [0, 1]), strict=True)
            ]
        },
        "train": {"steps": 30, "batch_size": 5, "learning_rate": 2e-3},
    },
    "regression": {"data": {"rows": [{"text": text, "label": float(n)} for n, text in enumerate(SEQUENCES)]}},
}
"""What each task's small case says."""


def said(name: str, **train: Any) -> Case:
    """The small case of a task."""
    settings = {"steps": 12, "batch_size": 3, "learning_rate": 5e-3, **SAID[name].get("train", {}), **train}
    return case(**{**SAID[name], "train": settings}, file=f"{name}.yaml")


def probed(one: Case, slow: bool = False) -> Case:
    """The case with the evidence of every law that judges a record."""
    laws = [law for law in LAWS if law.axis is None and (slow or not law.slow)]
    return replace(one, probes=frozenset(probe for law in laws for probe in law.probes))


def broken(record: Record) -> dict[str, Verdict]:
    """Laws that a record breaks."""
    return {verdict.law: verdict for verdict in judge(record) if verdict.outcome == "broken"}


@pytest.mark.parametrize("name", SAID)
def test_right_trainings_keep_every_law_in_both_loops(name: str) -> None:
    """With all evidence, the slow laws' too; and the loops see the same batches and have the same losses."""
    shelf = Shelf()
    records = [run(probed(said(name, loop=loop), slow=True), shelf=shelf, root=Path.cwd()) for loop in LOOPS]
    for record in records:
        assert record.finished, record.traceback
        assert broken(record) == {}
        assert not [verdict for verdict in judge(record) if verdict.outcome == "invalid"]
    assert records[0].steps.loss == records[1].steps.loss
    assert records[0].batches == records[1].batches
    verdicts = {verdict.law: verdict for verdict in judge_together(records)}
    assert verdicts["loops_agree"].outcome == "held", verdicts["loops_agree"]


# Faults


CAUGHT_BY = {
    "every_piece_has_the_label": "labels_masked_right",
    "special_tokens_forgotten": "labels_masked_right",
    "labels_shifted_twice": "labels_masked_right",
    "loss_shifted_twice": "loss_is_the_declared_one",
    "loss_not_shifted": "loss_is_the_declared_one",
    "prompt_is_learnt": "labels_masked_right",
    "end_ignored_as_padding": "labels_masked_right",
    "answer_begins_unlearnt": "labels_masked_right",
    "answers_not_found": "labels_masked_right",
    "answers_cut_off": "labels_survive_truncation",
    "turns_have_no_end": "labels_masked_right",
    "padding_is_learnt": "labels_masked_right",
    "decoder_inputs_not_shifted": "decoder_inputs_shifted",
    "decoder_starts_with_another_token": "decoder_inputs_shifted",
    "end_of_target_lost": "labels_travel",
    "span_off_by_one": "labels_travel",
    "end_is_exclusive": "labels_travel",
    "end_is_not_learnt": "loss_is_the_declared_one",
    "choices_in_the_wrong_order": "tokens_match_tokenizer",
    "tokens_not_hidden_are_learnt": "masking_is_random",
    "special_tokens_are_drawn": "labels_masked_right",
    "hidden_once_for_all": "masking_is_random",
    "every_drawn_token_is_hidden": "masking_is_random",
    "classes_exclude_each_other": "loss_is_the_declared_one",
    "squares_of_all_pairs": "loss_is_the_declared_one",
    "token_types_unknown_to_the_tokenizer": "tokens_match_tokenizer",
    "chat_template_not_saved": "save_reload_equal",
}
"""The law that has to notice."""

OTHERS = {
    "classes_exclude_each_other": "multi-label",
    "squares_of_all_pairs": "regression",
    "token_types_unknown_to_the_tokenizer": "question-answering",
    "turns_have_no_end": "chat",
    "chat_template_not_saved": "chat",
}
"""Where a fault is made that is not made in the small case of its task."""
MADE = (
    *FAULTS,
    classes_exclude_each_other,
    squares_of_all_pairs,
    token_types_unknown_to_the_tokenizer,
    chat_template_not_saved,
)


@pytest.fixture(scope="module")
def runs() -> Any:
    """Trains a case with a fault."""
    return runner(Path.cwd())


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        pytest.param(fault, name, id=f"{fault.name} in {name}")
        for fault in MADE
        for name in ([OTHERS[fault.name]] if fault.name in OTHERS else sorted(fault.tasks))
    ],
)
def test_faults_are_caught(runs: Any, fault: Fault, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the law that is there for them, and not by a crash."""
    monkeypatch.setattr(mutation, "SHORT", 1000)  # in the first few steps another law may be quicker
    laws = [law for law in LAWS if law.name in (CAUGHT_BY[fault.name], "trains")]
    found = Subject(said(name, loop="custom"), laws, runs).with_fault(fault)
    assert CAUGHT_BY[fault.name] in {verdict.law for verdict in found.broken}, found
    assert "trains" not in {verdict.law for verdict in found.broken}


def test_every_fault_has_its_law() -> None:
    """The table above is complete."""
    assert CAUGHT_BY.keys() == {fault.name for fault in MADE}


# Checkpoints


def saved(folder: Path, model: PreTrainedModel, words: Any = None) -> Path:
    """A checkpoint's folder, and its tokenizer."""
    model.save_pretrained(folder)
    (words or tokenizer.train(SEQUENCES)).save_pretrained(folder)
    return folder


def gpt2(folder: Path) -> tuple[Path, Any]:
    """A decoder whose tokenizer has no pad token: `<|endoftext|>` is all it has."""
    words = byte_pairs()
    config = GPT2Config(
        vocab_size=len(words), n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    torch.manual_seed(0)
    return saved(folder, GPT2LMHeadModel(config), words), words


TEXTS = [{"text": "the soup was warm"}, {"text": "bread"}, {"text": "we waited an hour for the soup and it was cold"}]
QUICK = {"steps": 8, "batch_size": 3, "learning_rate": 5e-3}


def test_the_end_token_is_learnt_where_it_pads(tmp_path: Path) -> None:
    """The pad token is chosen and the reason is kept; texts end with it, and their end has its label."""
    folder, words = gpt2(tmp_path)
    record = train(probed(case(folder, task="causal-lm", data={"rows": TEXTS}, train=QUICK)))
    assert broken(record) == {}
    assert record.tokenizer is not None
    assert record.tokenizer.pad_token_id == words.eos_token_id
    assert record.tokenizer.reasons["pad_token"] == (
        "no pad token in the tokenizer: its end token '<|endoftext|>' serves, masked"
    )
    batch = record.batches[0]
    for labels, mask in zip(batch.tensors["labels"], batch.tensors["attention_mask"], strict=True):
        assert labels[sum(mask) - 1] == words.eos_token_id
        assert set(labels[sum(mask) :]) <= {-100}


@pytest.mark.parametrize("loop", LOOPS)
def test_the_library_collator_that_ignores_the_end_is_found(tmp_path: Path, loop: str) -> None:
    """Where the pad token is the end token, `DataCollatorForLanguageModeling` takes the end out of the loss."""
    folder, _ = gpt2(tmp_path)
    one = case(folder, task="causal-lm", data={"rows": TEXTS}, train={**QUICK, "loop": loop})
    fault = next(fault for fault in FAULTS if fault.name == "end_ignored_as_padding")
    record = runner(Path.cwd())(probed(one), fault)
    assert record.finished, record.traceback
    found = broken(record)
    # For GPT-2 the Trainer counts a label for the first token, which nothing predicts, and divides the loss by it.
    scaled = {"loss_is_the_declared_one", "gradient_is_the_declared_one"} if loop == "trainer" else set()
    assert found.keys() == {"labels_masked_right", *scaled}, found
    assert "label -100 at position" in found["labels_masked_right"].message
    assert "the end-of-sequence token is also the pad token" in found["labels_masked_right"].cause


def test_an_encoder_is_no_decoder(tmp_path: Path) -> None:
    """BERT without `is_decoder` is taken for a language model, and sees the tokens that it has to predict."""
    for decoder in (True, False):
        config = {"is_decoder": decoder}
        checkpoint = {"architecture": "bert", "size": "tiny", "config": config}
        record = train(probed(case(checkpoint, task="causal-lm", data={"rows": TEXTS}, train=QUICK)))
        assert ("future_unseen" in broken(record)) is not decoder, broken(record)


def test_padding_side_is_that_of_the_task(tmp_path: Path) -> None:
    """A tokenizer that pads on the left, as for generation, is turned round for training, with the reason."""
    folder, words = gpt2(tmp_path)
    words.padding_side = words.init_kwargs["padding_side"] = "left"
    words.save_pretrained(folder)
    record = train(probed(case(folder, task="causal-lm", data={"rows": TEXTS}, train=QUICK)))
    assert record.tokenizer is not None
    assert record.tokenizer.padding_side == "right"
    assert record.tokenizer.reasons["padding_side"].startswith("padding on the right, not on the left: positions")
    assert broken(record) == {}


def test_the_last_real_token_is_pooled(tmp_path: Path) -> None:
    """A decoder that classifies reads its last token, not a pad token, whichever token pads."""
    folder, _ = gpt2(tmp_path)
    rows = [{**row, "label": number % 2} for number, row in enumerate(TEXTS)]
    record = train(probed(case(folder, data={"rows": rows}, train=QUICK)))
    assert broken(record) == {}
    verdicts = {verdict.law: verdict for verdict in judge(record)}
    assert verdicts["every_token_counts"].outcome == "held"
    assert verdicts["head_is_new"].message.startswith("new: score.weight")


BERT = BertConfig(
    vocab_size=len(tokenizer.train(SEQUENCES)),
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
)


@pytest.mark.parametrize(
    ("model", "task", "rows", "says"),
    [
        (BertForMaskedLM(BERT), "masked-lm", TEXTS, "new: nothing"),
        (BertModel(BERT, add_pooling_layer=False), "masked-lm", TEXTS, "new: cls.predictions."),
        (BertForMaskedLM(BERT), "token-classification", WORDS, "new: classifier.bias, classifier.weight"),
        (BertForMaskedLM(BERT), "question-answering", ANSWERS, "new: qa_outputs.bias, qa_outputs.weight"),
        (BertModel(BERT), "multiple-choice", CHOICES, "new: classifier.bias, classifier.weight"),
        (
            T5ForConditionalGeneration(
                T5Config(
                    vocab_size=BERT.vocab_size,
                    d_model=16,
                    d_kv=8,
                    d_ff=32,
                    num_layers=1,
                    num_heads=2,
                    decoder_start_token_id=0,
                )
            ),
            "seq2seq-lm",
            TARGETS,
            "new: nothing",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PreTrainedModel) else None,
)
def test_the_head_ledger_is_that_of_the_task(
    tmp_path: Path, model: PreTrainedModel, task: str, rows: Any, says: str
) -> None:
    """Language models bring their head, tied or not; other tasks get a new one; nobody cries wolf."""
    record = train(case(saved(tmp_path, model), task=task, data={"rows": rows}, train={**QUICK, "max_length": 60}))
    verdicts = {verdict.law: verdict for verdict in judge(record)}
    assert verdicts["head_is_new"].outcome == "held", verdicts["head_is_new"]
    assert verdicts["head_is_new"].message.startswith(says)
    assert verdicts["head_changes"].outcome in ("held", "not applicable"), verdicts["head_changes"]


@pytest.mark.parametrize(
    ("name", "length", "lost"),
    [("question-answering", 9, "lost a label"), ("token-classification", 5, "lost a label")],
)
def test_what_is_cut_off_is_told(name: str, length: int, lost: str) -> None:
    """Examples that lose what is to be learnt are counted, and the law names them."""
    record = train(said(name, max_length=length, steps=4))
    assert record.lost
    assert lost in broken(record)["labels_survive_truncation"].message


def test_what_is_cut_off_of_rows_in_a_file_is_told(tmp_path: Path) -> None:
    """How many there are is not written in the experiment."""
    (tmp_path / "words.jsonl").write_text("\n".join(map(json.dumps, WORDS)))
    data = {"files": str(tmp_path / "words.jsonl"), "num_labels": 3}
    record = train(case(task="token-classification", data=data, train={"steps": 2, "batch_size": 2, "max_length": 5}))
    assert "of 4 lost a label" in broken(record)["labels_survive_truncation"].message


@pytest.mark.parametrize(
    "said",
    [
        {"task": "masked-lm", "data": {"rows": [{"text": "the soup"}, {"text": "bread"}]}},
        {"train": {"learning_rate": 1.0, "attention": "eager"}},
        {"train": {"learning_rate": 1e-8}},
    ],
    ids=["no token is drawn", "a loss of 0", "updates that are lost by rounding"],
)
def test_what_cannot_be_told_is_not_broken(said: dict[str, Any]) -> None:
    """Nothing to learn, nothing left to learn, or too little of it: no law cries wolf."""
    quick = {"steps": 8, "batch_size": 3, **said.get("train", {})}
    record = train(probed(case(**{**said, "train": quick})))
    assert broken(record) == {}
