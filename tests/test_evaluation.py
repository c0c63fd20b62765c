"""Evaluation: what may be declared, what each loop measures, what is left behind, and the faults of it."""

import math
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from trial import SEQUENCES, attempt, case, settings, train

from harness import experiment
from harness.errors import InvalidExperiment
from harness.laws import LAWS, judge, judge_together
from harness.laws.causes import findings
from harness.laws.metric import expected
from harness.record import Evaluation, Record
from harness.training import witness
from harness.training.checkpoint import Shelf
from harness.training.faults.evaluation import FAULTS
from harness.training.metrics import METRICS, interval, measure
from harness.training.run import run
from harness.training.tasks import Answer
from harness.training.witness import Witness

KNOWN = {law.name: law.options for law in LAWS}
LOOPS = ("custom", "trainer", "accelerate")
TEXTS = [
    "the soup was cold",
    "bread again",
    "we waited for bread",
    "it was an hour",
    "warm bread and soup",
    "never warm",
    "the hour was cold and we waited for the soup",
]
SPLIT = {"sequences": TEXTS, "labels": [1, 0, 1, 0, 0, 1, 1], "batch_size": 3}
NAMES = ["O", "B-A", "I-A"]


def _words(texts: list[str], factor: int) -> list[dict[str, Any]]:
    return [
        {"words": text.split(), "labels": [(factor * place + len(word)) % 3 for place, word in enumerate(text.split())]}
        for text in texts
    ]


def _evaluate(rows: list[dict[str, Any]], **said: Any) -> dict[str, Any]:
    return {"rows": rows, "batch_size": 3, **said}


def _question(text: str) -> dict[str, str]:
    return {"question": "what?", "context": text, "answer": text.split()[-1]}


TRIALS: dict[str, dict[str, Any]] = {
    "texts": {"evaluation": {**SPLIT, "metrics": ["accuracy", "f1_macro", "f1_binary", "matthews"]}},
    "several": {
        "data": {"rows": [{"text": text, "label": [place % 3]} for place, text in enumerate(SEQUENCES)]},
        "evaluation": _evaluate([{"text": text, "label": [len(text) % 3]} for text in TEXTS]),
    },
    "numbers": {
        "data": {"rows": [{"text": text, "label": len(text) / 10} for text in SEQUENCES]},
        "evaluation": _evaluate(
            [{"text": text, "label": len(text) / 10} for text in TEXTS], metrics=["pearson", "spearman"]
        ),
    },
    "words": {
        "task": "token-classification",
        "data": {"rows": _words(SEQUENCES, 7), "label_names": NAMES},
        "evaluation": _evaluate(_words(TEXTS, 5), metrics=["accuracy", "entity_f1", "f1_micro"]),
    },
    "spans": {
        "task": "question-answering",
        "data": {"rows": [_question(text) for text in SEQUENCES if text != "bread"]},
        "evaluation": _evaluate([_question(text) for text in TEXTS[:4]], metrics=["token_f1", "exact_match"]),
    },
    "choices": {
        "task": "multiple-choice",
        "data": {"rows": [{"text": t, "choices": ["soup", "bread"], "label": i % 2} for i, t in enumerate(SEQUENCES)]},
        "evaluation": _evaluate([{"text": t, "choices": ["bread", "cold"], "label": len(t) % 2} for t in TEXTS]),
    },
    "hidden": {
        "task": "masked-lm",
        "data": {"rows": [{"text": text} for text in SEQUENCES], "mask_probability": 0.5},
        "evaluation": _evaluate([{"text": text} for text in TEXTS], metrics=["perplexity", "accuracy"]),
    },
    "next": {
        "task": "causal-lm",
        "checkpoint": {"architecture": "gpt2", "size": "tiny"},
        "data": {"rows": [{"text": text} for text in SEQUENCES]},
        "evaluation": _evaluate([{"text": text} for text in TEXTS], metrics=["perplexity", "exact_match"]),
    },
    "translated": {
        "task": "seq2seq-lm",
        "checkpoint": {"architecture": "t5", "size": "tiny"},
        "data": {"rows": [{"text": text, "target": text} for text in SEQUENCES]},
        "evaluation": _evaluate([{"text": text, "target": text} for text in TEXTS]),
    },
}
PER_TOKEN = ("words", "hidden", "next", "translated")
"""Whose loss the Trainer takes wrongly (transformers#39241)."""
OF_EVALUATION = (
    "no_leakage",
    "evaluation_reads_the_split",
    "model_in_eval_mode",
    "evaluation_changes_nothing",
    "evaluation_is_right",
    "evaluation_loss_is_right",
)
SHELF = Shelf()


def trial(name: str, loop: str, **train_: Any) -> Any:
    """A case of one of them, with what the laws over evaluations need."""
    said = {"steps": 4, "batch_size": 3, "learning_rate": 1e-2, **train_}
    return case(probes=["evaluation"], train={"loop": loop, **said}, **TRIALS[name])


def evaluated(record: Record) -> Evaluation:
    """What is seen of the evaluation."""
    assert record.evaluation is not None
    return record.evaluation


def test_without_its_libraries_the_case_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """An extra that is not installed is named, before anything is trained."""
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    record = attempt(trial("texts", "custom"))
    assert record.outcome == "skipped"
    assert record.reason.endswith(": pip install 'pytest-finetune[evaluation]'")


# What may be declared

HEAD = "checkpoint: gpt2\ndata:\n  sequences: [a, b]\n  labels: [0, 1]\n"


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            "{split: test}",
            ":5: evaluation: found no rows, expected rows of its own (sequences, rows, files or dataset)",
        ),
        ("{sequences: [c]}", ":5: evaluation.labels: found nothing, expected this key, which has no default"),
        (
            "{sequences: [c], labels: [2]}",
            "evaluation.labels[0]: found 2, expected a class of the training data, 0 to 1",
        ),
        ("{labels: [0, 1]}", "evaluation.labels: found labels without sequences, expected both, or neither"),
        ("{sequences: [c], labels: [0, 1]}", "evaluation.labels: found 2 labels, expected 1, one for each sequence"),
        ("{rows: [{text: c, label: 0.5}]}", "evaluation.rows[0].label: found 0.5, expected a class"),
        ("{rows: [{text: c, labels: 1}]}", "evaluation.rows[0].labels: found an unknown role"),
        ("{sequences: [c], labels: [0], metric: x}", "evaluation.metric: found an unknown key"),
        ("{sequences: [c], labels: [0], metrics: [acuracy]}", "did you mean 'accuracy'?"),
        ("{sequences: [c], labels: [0], metrics: [pearson]}", "found 'pearson', expected one of accuracy, f1_macro"),
        (
            "{sequences: [c], labels: [0], metrics: [accuracy, accuracy]}",
            "found 'accuracy' twice, expected each metric",
        ),
        ("{sequences: [c], labels: [0], metrics: []}", "expected at least 1 item"),
        ("{sequences: [c], labels: [0], resamples: 3}", "found 3, expected a number of at least 100"),
        ("{sequences: [], labels: []}", "evaluation.sequences: found an empty list, expected at least 1 item"),
        ("{files: none.csv}", "evaluation.files: found 'none.csv', which matches no file"),
        ("{dataset: a/b, streaming: true}", "evaluation.limit: found nothing, expected a number of rows: a stream"),
        ("{dataset: a/b, files: c.csv}", "expected"),
        ("{dataset: a/b@main}", "the revision has a key of its own, evaluation.revision"),
        ("{sequences: [c], labels: [0], split: test}", "evaluation.split: found 'test', expected nothing here"),
    ],
)
def test_what_may_not_be_declared(tmp_path: Path, said: str, found: str) -> None:
    """Each mistake has its line, what was found and what is expected."""
    path = tmp_path / "a.yaml"
    path.write_text(f"{HEAD}evaluation: {said}\n")
    with pytest.raises(InvalidExperiment) as caught:
        experiment.read(path, KNOWN)
    assert found in str(caught.value)


def test_a_stream_is_not_evaluated_to_its_end(tmp_path: Path) -> None:
    """Nor where it is that of the training, of which another split is read."""
    path = tmp_path / "a.yaml"
    path.write_text(
        "checkpoint: gpt2\ndata: {dataset: a/b, streaming: true, num_labels: 2}\nevaluation: {split: validation}\n"
    )
    with pytest.raises(InvalidExperiment, match=r":3: evaluation.limit: found nothing, expected a number of rows"):
        experiment.read(path, KNOWN)


def test_f1_of_class_1_is_one_of_two_classes(tmp_path: Path) -> None:
    """With three classes it says nothing, and the file is told so."""
    path = tmp_path / "a.yaml"
    path.write_text(
        HEAD.replace("[0, 1]", "[0, 2]") + "evaluation: {sequences: [c], labels: [0], metrics: [f1_binary]}"
    )
    with pytest.raises(InvalidExperiment, match="found f1_binary of 3 classes, expected f1_macro or f1_micro"):
        experiment.read(path, KNOWN)


def test_entities_need_names(tmp_path: Path) -> None:
    """Where an entity begins stands in the names of the classes."""
    path = tmp_path / "a.yaml"
    rows = "rows: [{words: [a], labels: [1]}]"
    path.write_text(
        f"checkpoint: gpt2\ntask: token-classification\ndata: {{{rows}}}\n"
        f"evaluation: {{{rows}, metrics: [entity_f1]}}\n"
    )
    with pytest.raises(InvalidExperiment, match=r"data\.label_names such as"):
        experiment.read(path, KNOWN)


def test_classes_are_those_of_training() -> None:
    """A split with fewer classes than the training data is read with all of them, and numbers stay numbers."""
    said = settings(data={"sequences": ["a", "b"], "labels": [0, 4]}, evaluation={"sequences": ["c"], "labels": [1]})
    assert said.evaluation is not None
    assert said.evaluation.rows_beside(said.data).resolved_num_labels == 5
    said = settings(**TRIALS["numbers"])
    assert said.evaluation is not None
    assert said.evaluation.rows_beside(said.data).resolved_num_labels == 1


@pytest.mark.parametrize(
    ("data", "evaluation", "split"),
    [
        ({"dataset": "a/b", "name": "c"}, {}, "validation"),
        ({"dataset": "a/b", "name": "c", "split": "train[:10]"}, {"split": "train[10:]"}, "train[10:]"),
        ({"files": "x.csv", "split": "train[:80%]"}, {"split": "train[80%:]"}, "train[80%:]"),
        ({"files": "x.csv"}, {"files": "x.csv"}, "train"),
        ({"files": "x.csv"}, {"dataset": "a/b"}, "validation"),
    ],
)
def test_rows_of_the_same_source(tmp_path: Path, data: dict[str, Any], evaluation: dict[str, Any], split: str) -> None:
    """Without a source of its own the split is another one of the data's, with its name, columns and revision."""
    (tmp_path / "x.csv").write_text("text,label\na,0\nb,1\n")
    path = tmp_path / "a.yaml"
    said = {**data, "num_labels": 2, "columns": {"text": "t"}, "limit": 5}
    path.write_text(f"checkpoint: gpt2\ndata: {said}\nevaluation: {evaluation}\n".replace("'", '"'))
    (point,) = experiment.read(path, KNOWN).points
    assert point.settings.evaluation is not None
    rows = point.settings.evaluation.rows_beside(point.settings.data)
    assert rows.split == split
    own = bool(evaluation.keys() & {"files", "dataset"})
    assert rows.columns == ({} if own else {"text": "t"})
    assert rows.limit == (None if own else 5)
    assert bool(rows.paths) == ("files" in evaluation or ("files" in data and not own))


def test_the_record_does_not_grow_with_the_rows() -> None:
    """It keeps their number and digest, and what is measured."""
    declared = case(evaluation=SPLIT).declared()["settings"]
    assert declared["evaluation.examples"] == 7
    assert declared["evaluation.metrics"] == ["accuracy"]
    assert "soup" not in str(declared)


# What is measured


RUNS = [(name, loop) for name in TRIALS for loop in LOOPS if loop != "accelerate" or name in ("texts", "next")]


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def ran(request: pytest.FixtureRequest) -> tuple[str, str, Record]:
    """Each kind of task, evaluated in each loop."""
    name, loop = request.param
    return name, loop, train(trial(name, loop), SHELF)


def test_a_healthy_evaluation_keeps_the_laws(ran: tuple[str, str, Record]) -> None:
    """Nothing is wrong but for what the Trainer makes of losses of tokens, which is named."""
    name, loop, record = ran
    verdicts = {verdict.law: verdict for verdict in judge(record)}
    expected_broken = {"evaluation_loss_is_right"} if loop == "trainer" and name in PER_TOKEN else set()
    broken = {law for law in OF_EVALUATION if verdicts[law].outcome not in ("held", "vacuous", "not applicable")}
    assert broken == expected_broken, [verdicts[law] for law in broken]
    if expected_broken:
        assert "transformers/issues/39241" in verdicts["evaluation_loss_is_right"].cause
    assert verdicts["evaluation_is_right"].outcome == "held" or name in ("spans", "choices", "numbers")


def test_figures_are_those_of_the_answers(ran: tuple[str, str, Record]) -> None:
    """Record and formulas: what the loop says can be judged again from the answers that are kept."""
    _, _, record = ran
    found = evaluated(record)
    for score in found.scores:
        assert score.answers is not None
        assert len(score.answers.said) == found.rows == score.answered
        for metric in found.metrics:
            terms = [meant if isinstance(meant, int) else 1 for meant in score.answers.meant]
            kept = {
                "said": score.answers.said,
                "meant": score.answers.meant,
                "nll": score.answers.loss,
                "terms": terms,
            }
            again = expected(metric, kept, record.settings["task"], found.label_names)
            figure = score.figures[metric]
            assert figure == pytest.approx(again, rel=1e-9, nan_ok=True)
            assert score.intervals[metric].value == pytest.approx(figure, rel=1e-9, nan_ok=True)
            ends = score.intervals[metric]
            assert ends.low <= ends.value <= ends.high or math.isnan(ends.low)
    assert [score.step for score in found.scores] == [0, 4]
    line = record.to_json()
    assert Record.from_json(line).to_json() == line


def test_loops_measure_alike() -> None:
    """Both loops start from the same weights, so before training they say the same."""
    one, *others = (evaluated(train(trial("texts", loop), SHELF)) for loop in LOOPS)
    for other in others:
        assert one.scores[0].answers == other.scores[0].answers
        assert one.scores[0].figures == pytest.approx(other.scores[0].figures)


def test_batches_beyond_those_that_are_kept_stand_in_nobodys_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second is too large to be kept, and the third, which is smaller, is not taken for it."""
    kept = evaluated(train(trial("texts", "custom"), SHELF)).batches
    sizes = [sum(map(len, one.tensors["input_ids"])) for one in kept]
    assert sizes[2] < sizes[1]
    monkeypatch.setattr(witness, "BATCH_TOKENS", sizes[0] + sizes[1] - 1)
    record = train(trial("texts", "custom"), SHELF)
    assert [(len(one.examples), len(one.tensors["input_ids"])) for one in evaluated(record).batches] == [(3, 3)]
    outcomes = {one.law: one for one in judge(record)}
    assert outcomes["evaluation_reads_the_split"].outcome == "held", outcomes["evaluation_reads_the_split"]


def test_evaluating_in_the_midst_changes_nothing() -> None:
    """With dropout on, the losses of each loop are those of a training without evaluations."""
    base = {"evaluation": {**SPLIT, "every": 2}, "train": {"steps": 5, "batch_size": 2}}
    plain = train(case(train=base["train"]), SHELF)
    records = [train(case(**{**base, "train": {**base["train"], "loop": loop}}), SHELF) for loop in LOOPS]
    for record in records:
        assert [score.step for score in evaluated(record).scores] == [0, 2, 4, 5]
        assert record.steps.loss == pytest.approx(plain.steps.loss, rel=1e-5)
        assert all(not score.changed and not score.modes for score in evaluated(record).scores)
    named = [one.model_copy(update={"case": f"cpu-{one.settings['train.loop']}"}) for one in records]
    assert {one.law: one.outcome for one in judge_together(named)}["loops_agree"] == "held"


# That it is compiled, too, is in tests/test_equivalence.py.
@pytest.mark.parametrize("loop", LOOPS)
def test_a_training_is_in_its_precision_after_an_evaluation(loop: str) -> None:
    """Accelerate must not take the model that it has evaluated for one that is prepared to be trained."""
    said = {"steps": 3, "batch_size": 2, "loop": loop}
    plain, evaluating = (
        train(case(train=said, precision="bf16", **more), SHELF) for more in ({}, {"evaluation": SPLIT})
    )
    assert evaluating.steps.loss == plain.steps.loss


def test_labels_that_are_all_the_same_correlate_with_nothing() -> None:
    """A correlation is then not defined, and nothing is made of it."""
    rows = [{"text": text, "label": 0.5} for text in TEXTS]
    said = {**TRIALS["numbers"], "evaluation": {"rows": rows, "metrics": ["pearson", "spearman"]}}
    record = train(case(probes=["evaluation"], train={"steps": 2}, **said), SHELF)
    assert math.isnan(evaluated(record).scores[-1].figures["pearson"])
    verdicts = {verdict.law: verdict.outcome for verdict in judge(record)}
    assert verdicts["metric_improves"] == "invalid"
    assert verdicts["evaluation_is_right"] == "vacuous"
    assert verdicts["evaluation_loss_is_right"] == "held"


def test_a_split_of_one_class_is_measured() -> None:
    """Every metric of classes has a value, and no library complains."""
    said = {"sequences": ["bread again"], "labels": [1], "metrics": ["accuracy", "f1_macro", "f1_binary", "matthews"]}
    record = train(case(evaluation=said, train={"steps": 2}), SHELF)
    assert all(math.isfinite(value) for value in evaluated(record).scores[-1].figures.values())
    assert math.isnan(evaluated(record).scores[-1].intervals["accuracy"].low)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("text,label\ngood,c\n", "row 0: the label 'c' is none of 'a', 'b'"),
        ("text,label\nfine,b\n,a\n", "row 1: text is missing (null)"),
        ("text,label\n", "no rows"),
        ("words,label\ngood,a\n", "no column 'text'"),
        ("text,text_pair,label\ngood,so,a\n", "rows with label, text, text_pair, expected label, text, as those of tr"),
    ],
)
def test_rows_that_cannot_be_evaluated_on(tmp_path: Path, text: str, says: str) -> None:
    """A class that training does not know, no text, no rows and no column are errors that name the file and the row."""
    (tmp_path / "train.csv").write_text("text,label\ngood,a\nbad,b\n")
    (tmp_path / "eval.csv").write_text(text)
    path = tmp_path / "a.yaml"
    path.write_text(
        "checkpoint: {architecture: bert, size: tiny}\ndata: {files: train.csv}\nevaluation: {files: eval.csv}\n"
        "train: {steps: 1}\ndevice: cpu\n"
    )
    (point,) = experiment.read(path, KNOWN).points
    trial_ = case()
    record = attempt(type(trial_)("a.yaml", path, "cpu", (), point.settings))
    assert record.outcome == "crashed"
    assert says in record.reason
    assert "eval.csv" in record.reason


def test_one_map_of_classes(tmp_path: Path) -> None:
    """Classes by name have the numbers of training, whichever the split has and in whatever order; rows are dropped."""
    (tmp_path / "train.csv").write_text("text,label\ngood,a\nbad,b\nso,c\n")
    (tmp_path / "eval.csv").write_text("text,label\nfine,c\n,a\nawful,b\nfine too,c\n")
    path = tmp_path / "a.yaml"
    path.write_text(
        "checkpoint: {architecture: bert, size: tiny}\ndata: {files: train.csv}\n"
        "evaluation: {files: eval.csv, invalid_rows: drop}\ntrain: {steps: 1}\ndevice: cpu\n"
    )
    (point,) = experiment.read(path, KNOWN).points
    record = train(type(case())("a.yaml", path, "cpu", (), point.settings))
    found = evaluated(record)
    assert found.scores[0].answers is not None
    assert found.scores[0].answers.meant == (2, 1, 2)
    assert (found.rows, found.dropped, found.dropped_rows[0].row) == (3, 1, 1)
    assert found.label_names == found.config_label_names == ("a", "b", "c")


def test_labels_of_words_beyond_the_head() -> None:
    """They are an error with their row, not an index out of bounds."""
    said = {**TRIALS["words"], "data": {"rows": _words(SEQUENCES, 7)}}
    said["evaluation"] = {"rows": [{"words": ["a"], "labels": [0]}]}
    made = case(train={"steps": 1}, **said)
    rows = [{"words": ["a"], "labels": [3]}]
    assert made.settings.evaluation is not None
    wrong = made.settings.model_copy(update={"evaluation": made.settings.evaluation.model_copy(update={"rows": rows})})
    record = attempt(type(made)(made.experiment, made.path, made.id, (), wrong))
    assert "row 0: labels.0: found 3, expected a label from 0 to 2 (num_labels is 3)" in record.reason


# Metrics

CLASSES = st.integers(0, 3)
WORDS = st.lists(st.tuples(CLASSES, CLASSES), min_size=1, max_size=5)
NUMBERS = st.floats(-5, 5).map(lambda value: round(value, 2))
TEXT = st.sampled_from(["the cat", "a Cat.", "dog", "", "cat sat", "The dog, sat"])
FLAGS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=3, max_size=3)
ENTITIES = ("O", "B-A", "I-A", "B-B")


def _several(pairs: list[tuple[int, int]]) -> Answer:
    said, meant = zip(*pairs, strict=True)
    return Answer(said, meant)


def _counted(right: int, of: int, loss: float) -> Answer:
    return Answer(min(right, of), of, loss)


KINDS: dict[str, tuple[str, st.SearchStrategy[Answer], tuple[str, ...]]] = {
    "classes": (
        "sequence-classification",
        st.builds(Answer, CLASSES, CLASSES),
        ("accuracy", "f1_macro", "f1_micro", "matthews"),
    ),
    "two": (
        "sequence-classification",
        st.builds(Answer, st.integers(0, 1), st.integers(0, 1)),
        ("f1_binary", "matthews"),
    ),
    "several": ("sequence-classification", FLAGS.map(_several), ("f1_macro", "f1_micro", "exact_match")),
    "numbers": ("sequence-classification", st.builds(Answer, NUMBERS, NUMBERS), ("pearson", "spearman")),
    "words": (
        "token-classification",
        WORDS.map(lambda pairs: Answer([a for a, _ in pairs], [b for _, b in pairs])),
        ("accuracy", "f1_macro", "f1_micro", "entity_f1"),
    ),
    "tokens": (
        "causal-lm",
        st.builds(_counted, st.integers(0, 9), st.integers(1, 9), st.floats(0, 20)),
        ("perplexity", "accuracy", "exact_match"),
    ),
    "text": ("question-answering", st.builds(Answer, TEXT, TEXT), ("token_f1", "exact_match")),
}


@pytest.mark.parametrize("kind", KINDS)
@settings_of_hypothesis(max_examples=40)
@given(data=st.data())
def test_library_table_and_formula_say_the_same(kind: str, data: st.DataObject) -> None:
    """Each metric three times: by the library, of the table that is resampled, and by the formula of the law."""
    task, answer, metrics = KINDS[kind]
    answers = data.draw(st.lists(answer, min_size=1, max_size=12))
    terms = [one.meant if task == "causal-lm" else 1 for one in answers]
    alone = {
        "said": [one.said for one in answers],
        "meant": [one.meant for one in answers],
        "nll": [one.loss for one in answers],
        "terms": terms,
    }
    for name, value in measure(metrics, answers, ENTITIES).items():
        metric = METRICS[name]
        with np.errstate(all="ignore"):
            table = float(metric.of(metric.table(answers, ENTITIES)))
        assert value == pytest.approx(table, abs=1e-9, rel=1e-9, nan_ok=True), name
        assert value == pytest.approx(expected(name, alone, task, ENTITIES), abs=1e-9, rel=1e-9, nan_ok=True), name


def test_every_metric_is_measured() -> None:
    """Those that experiments may name are those there are, and each has been compared."""
    named = {name for names in experiment.METRICS.values() for name in names}
    assert named == METRICS.keys() == {name for _, _, names in KINDS.values() for name in names}


def test_an_interval_covers_what_it_should() -> None:
    """Of 95 % intervals over 60 coin throws about 95 % hold the truth; the same seed gives the same interval."""
    chance, held = random.Random(0), 0
    for _ in range(200):
        answers = [Answer(int(chance.random() < 0.7), 1) for _ in range(60)]
        one = interval("accuracy", [answers], (), resamples=300, confidence=0.95, seed=1)
        held += one.low <= 0.7 <= one.high
        assert one == interval("accuracy", [answers], (), resamples=300, confidence=0.95, seed=1)
    assert 180 <= held <= 200


def test_a_difference_is_resampled_in_pairs() -> None:
    """Two runs that differ in the same rows differ by the same in every resample of them."""
    before = [Answer(0, 1)] * 20
    after = [Answer(1, 1)] * 20
    one = interval("accuracy", [before, after], (), resamples=200, confidence=0.9, seed=0)
    assert (one.value, one.low, one.high) == (1.0, 1.0, 1.0)


# Faults

CAUGHT: dict[str, tuple[str, str, str]] = {
    "evaluated_on_rows_of_the_training": ("texts", "no_leakage", "5 of 5 rows are trained on, too"),
    "evaluated_on_rows_in_capitals": ("texts", "no_leakage", "5 but for case, spaces and punctuation"),
    "classes_of_the_split_have_other_numbers": ("texts", "evaluation_reads_the_split", "label 0, declared 1"),
    "last_batch_filled_up": ("texts", "evaluation_reads_the_split", "row 0 came twice"),
    "evaluation_without_a_mask": ("texts", "evaluation_reads_the_split", "no attention_mask"),
    "evaluation_in_train_mode": ("texts", "model_in_eval_mode", "8 of 8 modules with dropout were in train mode"),
    "evaluation_leaves_eval_mode": ("texts", "model_in_eval_mode", "modules in another mode: the model"),
    "loss_averaged_over_batches": ("texts", "evaluation_loss_is_right", "of the examples one at a time"),
    "metric_averaged_over_batches": ("texts", "evaluation_is_right", "accuracy is"),
    "metric_of_one_batch": ("texts", "evaluation_is_right", "accuracy is"),
    "answers_of_one_batch": ("texts", "evaluation_is_right", "answers to 7 "),
    "ignored_words_counted": ("words", "evaluation_is_right", "accuracy is"),
    "padding_counted": ("next", "evaluation_is_right", "perplexity is"),
    "metric_not_shifted": ("next", "evaluation_is_right", "perplexity is"),
    "worst_class_taken": ("texts", "evaluation_is_right", "accuracy is"),
    "another_model_evaluated": ("texts", "evaluation_is_right", "before and after the training, to the last bit"),
    "evaluation_sets_a_seed": ("texts", "evaluation_changes_nothing", "changed the random state of torch"),
    "evaluation_draws_from_the_training": ("texts", "evaluation_changes_nothing", "the random state of torch"),
    "evaluation_changes_weights": ("texts", "evaluation_changes_nothing", "word_embeddings.weight"),
    "evaluation_leaves_gradients": ("texts", "evaluation_changes_nothing", "changed the gradient of bert."),
}
"""By fault: where it is made, the law that is broken, and its words."""


def test_every_fault_of_evaluations_is_caught() -> None:
    """The table is complete."""
    assert CAUGHT.keys() == {fault.name for fault in FAULTS}


IN_THE_TRAINER = (
    "last_batch_filled_up",
    "evaluation_leaves_eval_mode",
    "metric_averaged_over_batches",
    "padding_counted",
    "evaluation_draws_from_the_training",
)
"""Those that are made in code of its own."""
MADE = [(fault, loop) for fault in FAULTS for loop in LOOPS[:2] if loop == "custom" or fault.name in IN_THE_TRAINER]


@pytest.mark.parametrize(("fault", "loop"), MADE, ids=lambda value: getattr(value, "name", value))
def test_the_law_sees_the_fault(fault: Any, loop: str) -> None:
    """Of the laws over evaluations it breaks that one, which explains any other, and no more than the healthy run."""
    name, law, says = CAUGHT[fault.name]
    made = trial(name, loop)
    record = run(made, shelf=SHELF, root=made.path.parent, fault=fault)
    assert record.finished, record.traceback
    known = {"evaluation_loss_is_right"} if loop == "trainer" and name in PER_TOKEN else set()
    broken = [one for one in judge(record) if one.outcome == "broken" and one.law in OF_EVALUATION]
    roots = {finding.verdict.law: finding.verdict for finding in findings(broken)}
    assert roots.keys() - known == {law}
    assert says in roots[law].message


def test_an_evaluation_is_timed_without_the_evidence_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every weight is read before it and after it, which takes longer than it does."""
    now, state = 0.0, Witness._state

    def reading(self: Witness) -> dict[str, Any]:
        nonlocal now
        now += 30
        return state(self)

    monkeypatch.setattr(Witness, "_state", reading)
    monkeypatch.setattr(witness, "perf_counter", lambda: now)
    found = train(case(train={"steps": 1}, evaluation=SPLIT)).evaluation
    assert found is not None
    assert [score.seconds for score in found.scores] == [0.0, 0.0]
