"""Which architectures transformers can build for a task, found out without importing it."""

import ast
import functools
import importlib.util
from pathlib import Path

_MAPPINGS = {
    "sequence-classification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "token-classification": "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES",
    "question-answering": "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES",
    "multiple-choice": "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES",
    "masked-lm": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "causal-lm": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "seq2seq-lm": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
}


@functools.cache
def known(task: str) -> frozenset[str] | None:
    """The model types that the installed transformers has a head for; None where its source can't tell.

    Importing transformers takes seconds and collection must not wait for it, so the table is read from its source text.
    """
    try:
        return _model_types(_source(), _MAPPINGS[task])
    # Whatever another version of transformers looks like, a check that can't be made is left to the run.
    except (OSError, ImportError, SyntaxError, ValueError, LookupError):
        return None


def _source() -> str:
    spec = importlib.util.find_spec("transformers")
    if spec is None or spec.origin is None:
        raise LookupError("transformers is not installed")
    return Path(spec.origin).with_name("models").joinpath("auto", "modeling_auto.py").read_text(encoding="utf-8")


def _model_types(source: str, name: str) -> frozenset[str]:
    """The first column of `name = OrderedDict([(model type, class name), ...])`."""
    start = source.index(f"\n{name} = OrderedDict(")
    # Only this statement is parsed: the whole module takes twenty times as long.
    end = source.index("\n)\n", start) + 3
    statement = ast.parse(source[start:end]).body[0]
    if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
        raise LookupError(f"{name} is not made by a call")
    return frozenset(dict(ast.literal_eval(statement.value.args[0])))
