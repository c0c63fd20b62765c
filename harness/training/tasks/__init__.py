"""What can be trained: a module for each task."""

from __future__ import annotations

from harness import experiment
from harness.training.tasks import (
    causal_lm,
    masked_lm,
    multiple_choice,
    question_answering,
    seq2seq_lm,
    sequence_classification,
    token_classification,
)
from harness.training.tasks.task import IGNORED as IGNORED
from harness.training.tasks.task import Answer as Answer
from harness.training.tasks.task import Collator as Collator
from harness.training.tasks.task import Features as Features
from harness.training.tasks.task import Task as Task

TASKS: dict[str, type[Task]] = {
    "sequence-classification": sequence_classification.SequenceClassification,
    "token-classification": token_classification.TokenClassification,
    "question-answering": question_answering.QuestionAnswering,
    "multiple-choice": multiple_choice.MultipleChoice,
    "masked-lm": masked_lm.MaskedLM,
    "causal-lm": causal_lm.CausalLM,
    "seq2seq-lm": seq2seq_lm.Seq2SeqLM,
}


def task_of(settings: experiment.Settings) -> Task:
    """The task of a case."""
    return TASKS[settings.task](settings)
