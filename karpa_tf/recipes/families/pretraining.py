"""The stage before a fine-tuning: a small BERT learns masked words."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from karpa_tf.data.sources import Corpus, split_documents
from karpa_tf.data.text import load_text
from karpa_tf.errors import UserError
from karpa_tf.models.bert import build_bert
from karpa_tf.models.bert_masked_lm import build_bert_masked_lm
from karpa_tf.models.presets import encoder_variables
from karpa_tf.recipes.families.starts import Start, make_optimizer
from karpa_tf.training.evaluation import Evaluator
from karpa_tf.training.loop import Stage
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.run import Run
from karpa_tf.training.step import SupervisedStep

# The name of the stage, and the peak of its learning rate, which did well on held-out rows.
PRETRAINING = "pretraining"
_PRETRAINING_RATE = 1e-3


def pretrain(run: Run[Any], start: Start, texts: Sequence[str]) -> Mapping[str, np.ndarray] | None:
    """Trains a small BERT on masked words, and returns the encoder's weights; None: nothing to put in.

    The text goes through the pipeline of `mlm-gru`. It is the first stage of the run: one that is resumed
    behind it has what it learned in its checkpoint.
    """
    config, folder = run.settings, run.folder
    if not config.pretrain_data or run.is_over(PRETRAINING):
        return None
    source: str | Corpus = config.pretrain_data
    if source == "same":
        source = texts_corpus(texts)
    data = load_text(
        source,
        vocabulary=start.wordpiece,
        sequence_length=min(64, config.sequence_length),
        batch_size=config.batch_size,
        objective="masked",
        seed=config.seed,
    )
    known = (folder.assets / "pretraining.json").exists() and folder.read_json("assets/pretraining.json")
    if run.resume and known and known != data.corpus.fingerprint:
        raise UserError(
            f"{config.pretrain_data} is not the text that {folder.path} has learned from so far; bring that "
            "text back, or train a new run."
        )
    run.write_asset("pretraining.json", data.corpus.fingerprint)
    run.say(f"{config.pretrain_data}: {data.splits['train'].size:,} pieces to learn from by masked words")
    with run.strategy.scope():
        bert = build_bert(**start.architecture, dropout=config.dropout, dtype=config.precision)
        model = build_bert_masked_lm(bert)
        steps = config.pretrain_epochs * data.train.steps_per_epoch
        model.compile(make_optimizer(config, model, steps, _PRETRAINING_RATE), SparseCrossEntropy())
    metrics = {"top1_accuracy": keras.metrics.sparse_categorical_accuracy}
    validation = Evaluator(model, data.validation, metrics, run.strategy)
    run.fit(
        Stage(
            SupervisedStep(model, metrics),
            data.train,
            config.pretrain_epochs,
            validation=validation,
            name=PRETRAINING,
        ),
        shown=("top1_accuracy",),
        unit="windows",
        units_per_step=config.batch_size,
    )
    return {name: np.asarray(v) for name, v in encoder_variables(model).items()}


def texts_corpus(texts: Sequence[str]) -> Corpus:
    """Texts of a table as a corpus of documents, for `load_text`."""
    digest = hashlib.blake2b("\n".join(texts).encode(), digest_size=16).hexdigest()
    # A paragraph each: windows do not end at their borders, documents of several texts fill them.
    documents = ["\n\n".join(texts[i : i + 20]) for i in range(0, len(texts), 20)]
    return Corpus("same", digest, lambda: split_documents(documents))


def refuse_older(run: Run[Any]) -> None:
    """Raises a UserError for a run that was stopped in its pretraining where that had checkpoints apart."""
    checkpoints = run.folder.checkpoints
    if run.resume and (checkpoints / PRETRAINING).is_dir() and not any(checkpoints.glob("step-*.npz")):
        raise UserError(
            f"{run.folder.path} was begun by another version of karpa_tf and stopped in its pretraining, "
            "which this version cannot go on with: train a new run, or go on with that version "
            f"(environment.json names it). Received: {checkpoints / PRETRAINING}."
        )
