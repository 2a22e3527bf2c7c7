"""`bert-tagger`: a BERT that tags words (named entities, slots), from CoNLL columns to a served model.

    karpa-tf train bert-tagger                                       slots, a small BERT from scratch
    karpa-tf train bert-tagger --data train.conll --preset FOLDER    your sentences, a pretrained BERT

What it reaches stands in the header of each YAML file beside this one. How it is trained and exported:
`families/encoders.py`.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import keras
import numpy as np

from karpa_tf.data.tags import (
    OUTSIDE,
    Sentence,
    Tagged,
    open_tagged,
    open_test_sentences,
    shared_sentences,
)
from karpa_tf.errors import UserError
from karpa_tf.export.signature import Signature, text_input
from karpa_tf.judging.by_row import of_tags
from karpa_tf.judging.tagging import gazetteer_baseline, tag_metrics, type_table
from karpa_tf.models.bert_tagger import build_bert_tagger
from karpa_tf.models.ensemble import SCALES
from karpa_tf.recipe import EvaluateOptions, Evaluation, ExplainOptions, Explanation
from karpa_tf.recipes.families import ensembles, folds
from karpa_tf.recipes.families.encoders import EncoderRecipe
from karpa_tf.recipes.families.examples import Words
from karpa_tf.recipes.families.rehearsal import rehearse
from karpa_tf.recipes.families.tag_words import TagWords
from karpa_tf.recipes.families.words import claims_of_tags, explain_words, words_of_tags
from karpa_tf.reports.model_card import metrics_table, settings_list
from karpa_tf.reports.tagging import format_type_table, write_tagging
from karpa_tf.reports.tensorboard import Labels
from karpa_tf.training import runtime
from karpa_tf.training.evaluation import Outputs
from karpa_tf.training.run_folder import RunFolder

from . import ABOUT, BertTaggerSettings
from .batches import TaggerTask, batch_words

# Words shown in the projector.
_PROJECTED = 2000


class BertTagger(EncoderRecipe[BertTaggerSettings, list[Sentence], Words]):
    """A BERT that tags words."""

    about = ABOUT
    labels_file = "tags.json"
    counted = ("sentences", "types")
    figure = "f1_strict"

    # --- Data

    def open_data(self, config: BertTaggerSettings) -> Tagged:
        shares = folds.held_out_shares(config)
        tagged = open_tagged(config.data, **shares, broken=config.broken, redact=config.redact)
        splits = folds.hold_out_fold(
            config,
            tagged.splits,
            tagged.brings_test,
            keys_and_types,
            _take,
        )
        tagged = dataclasses.replace(tagged, splits=splits)
        return rehearse(self.open_data, config, tagged, keys_and_types, _take, operator.add)

    def open_other(self, task: TaggerTask, source: str) -> tuple[list[Sentence], Sequence[str]]:
        notes: list[str] = []
        sentences = open_test_sentences(source, task.config.broken, notes, task.config.redact)
        known = types_of(task.names)
        if unseen := sorted(set().union(*(types_of(s.tags) for s in sentences)) - known):
            raise UserError(
                f"{source} has entities of the type {', '.join(unseen)}, which training never saw. Its "
                f"types: {', '.join(sorted(known))}."
            )
        return sentences, notes

    def texts(self, part: list[Sentence]) -> list[str]:
        return [" ".join(sentence.words) for sentence in part]

    def kinds(self, names: Sequence[str], part: list[Sentence]) -> tuple[list[str], list[str]]:
        begun = [tag[2:] for sentence in part for tag in sentence.tags if tag.startswith("B-")]
        return sorted(types_of(names)), begun

    def batch(self, task: TaggerTask, part: list[Sentence], training: bool = False) -> Words:
        return batch_words(task, part, training)

    # --- Model

    def build(self, task: TaggerTask, encoder: keras.Model) -> keras.Model:
        return build_bert_tagger(
            encoder, len(task.names), cases=task.wordpiece.lowercase, dropout=task.config.dropout
        )

    # --- Train

    def metrics(self, task: TaggerTask, outputs: Outputs, examples: Words) -> dict[str, float]:
        predicted, probabilities = examples.predict(outputs, task.names)
        return tag_metrics(examples.tags, predicted) | {"loss": examples.loss(probabilities, task.names)}

    def vectors(
        self, task: TaggerTask, model: keras.Model, part: list[Sentence]
    ) -> tuple[np.ndarray, Labels]:
        """Returns the vectors of the first words, with their tags and types."""
        words = self.batch(task, part)
        encoded = keras.Model(model.input, model.get_layer("drop_output").output)
        vectors = words.at_words(Outputs(encoded, words.batches))[:_PROJECTED].astype(np.float32)
        tags = list(chain.from_iterable(words.tags))[:_PROJECTED]
        return vectors, {
            "tag": tags,
            "type": [tag[2:] or OUTSIDE for tag in tags],
            "word": [word for sentence in part for word in sentence.words][:_PROJECTED],
        }

    # --- Evaluate

    def evaluate(self, folder: RunFolder, options: EvaluateOptions, step: int | None = None) -> Evaluation:
        """Evaluates a run's best weights beside a gazetteer."""
        runtime.use_threads()
        task, model = self.open_model(folder)
        sentences, known, where = self.held_out(folder, task, options)
        coded, names = self.batch(task, sentences), task.names
        predicted, probabilities = coded.predict(Outputs(model, coded.batches), names)
        words, true = [sentence.words for sentence in sentences], coded.tags
        if step is not None:
            scores = coded.by_sentence(probabilities)
            write_tagging(folder.path / "validation", step, words, true, predicted, scores, names)
        beside = ensembles.beside_members(
            model, lambda m: self.metrics(task, Outputs(m, coded.batches), coded)
        )
        baseline = gazetteer_baseline([s.words for s in known], [s.tags for s in known], words, true)
        return Evaluation(
            data=where,
            metrics=tag_metrics(true, predicted) | {"loss": coded.loss(probabilities, names)},
            baselines={**beside, "gazetteer": baseline},
            facts={
                "sentences": len(sentences),
                "sentences that are in training": shared_sentences(known, sentences),
            },
            tables=[format_type_table(type_table(true, predicted))],
            by_row=lambda: {"f1_strict": of_tags(words, true, predicted)},
        )

    # --- Predict and explain

    def served(self, task: TaggerTask, model: keras.Model) -> Signature:
        def check(number: int, row: Mapping[str, Any]) -> None:
            if not str(row["text"]).strip():
                raise UserError(f"Text {number} is empty: there is nothing to tag.")

        function = TagWords(model, task.wordpiece, task.names, task.config.sequence_length)
        shown = ["tokens tags scores"]
        return Signature(
            function, text_input(), variables=model.weights, check=check, shown=shown, scales=SCALES
        )

    def explain(self, folder: RunFolder, inputs: Sequence[str], options: ExplainOptions) -> Explanation:
        """Says what each word of texts adds to the probability of every tag that is not `O`."""

        signature = self.served(*self.open_model(folder))
        return explain_words(folder, signature, inputs, claims_of_tags, words_of=words_of_tags)

    # --- Export

    def rows(self, part: list[Sentence]) -> list[dict[str, str]]:
        return [{"text": text} for text in self.texts(part)]

    def model_card(self, folder: RunFolder, task: TaggerTask, metrics: Mapping[str, Any], note: str) -> str:
        config = task.config
        return f"""# {folder.recipe}

Tags words: {", ".join(sorted(types_of(task.names)))}. Trained on {config.data}, from {config.preset}, method
{config.method}.

- in: `text` string [n]
- out: `tokens`, `tags` string, `scores` float32, all [n, words]: words, tags in IOB2, their probabilities;
  `words` int32 [n], how many of them are a text's own: what lies beyond is padding, which a server adds for
  the texts beside it

On {metrics["facts"]["sentences"]} held-out sentences, by entities (strict: seqeval's strict mode, IOB2):

{metrics_table(metrics, ["f1_strict", "f1", "precision", "recall"])}
{note}
{settings_list(folder.read_config())}
"""


def types_of(tags: Sequence[str]) -> set[str]:
    """Returns the types of entities that occur in tags."""
    return {tag[2:] for tag in tags if tag != OUTSIDE}


def _take(sentences: list[Sentence], index: Sequence[int]) -> list[Sentence]:
    return [sentences[i] for i in index]


def keys_and_types(sentences: Sequence[Sentence]) -> tuple[list[Any], list[str]]:
    """Returns what makes sentences the same, and of each the type that is the rarest in all of them."""
    types = [types_of(sentence.tags) for sentence in sentences]
    counts = Counter(chain.from_iterable(types))
    rarest = [min(kinds, key=lambda kind: (counts[kind], kind), default="") for kinds in types]
    return [sentence.words for sentence in sentences], rarest
