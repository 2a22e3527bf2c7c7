"""Where fine-tuning a BERT starts, its pretraining included; what is trained of it, and what is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from karpa_tf.data.batches import Batches
from karpa_tf.data.sources import Corpus, split_documents
from karpa_tf.data.text import load_text
from karpa_tf.errors import UserError
from karpa_tf.lines import InALine
from karpa_tf.models.bert import build_bert
from karpa_tf.models.bert_masked_lm import build_bert_masked_lm
from karpa_tf.models.gru_encoder import build_gru_encoder
from karpa_tf.models.lora import enable_lora, freeze_encoder, merge_lora
from karpa_tf.models.mlm_gru import build_mlm_gru
from karpa_tf.models.presets import Preset, blocks, encoder_variables, load_preset
from karpa_tf.models.pruning import stay
from karpa_tf.recipe import recipe_of
from karpa_tf.recipes.families import common, ensembles
from karpa_tf.recipes.families.settings import TEACHER, BertSettings
from karpa_tf.recipes.families.teaching import open_teacher
from karpa_tf.training import runtime
from karpa_tf.training.ancestry import weights_digest
from karpa_tf.training.callbacks import load_trained
from karpa_tf.training.evaluation import Evaluator
from karpa_tf.training.loop import Stage
from karpa_tf.training.losses import SparseCrossEntropy
from karpa_tf.training.optimizers import AdamW
from karpa_tf.training.run import Run
from karpa_tf.training.run_folder import RunFolder, open_run, resolve_init, write_json
from karpa_tf.training.schedule import WarmupThenDecay
from karpa_tf.training.supervised import SupervisedStep
from karpa_tf.wordpiece import WordPiece, learn_wordpiece

# The name of the stage, and the peaks of its learning rate, which did well on held-out rows.
PRETRAINING = "pretraining"
_PRETRAINING_RATES = {"scratch": 1e-3, "preset": 1e-4}
# The layer that finds masked words.
_HEAD = "masked_head"
# Methods whose weights are kept without the preset's, to which they were added.
ADDED = ("lora", "head")
# What of an architecture becomes smaller by pruning; `head_width` is given for no other one.
_SIZES = ("heads", "head_width", "intermediate")


# --- The encoder and its vocabulary ---------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class MaskedRun(InALine):
    """The masked language model of a run of mlm-gru, to start from in the place of a preset.

    Attributes:
        folder: of the run.
    """

    folder: RunFolder

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments of `build_mlm_gru`."""
        config = self.folder.read_config()
        sizes = {name: config[name] for name in ("embedding_size", "units", "objective")}
        return {"vocabulary_size": len(self.wordpiece), **sizes}

    @cached_property
    def wordpiece(self) -> WordPiece:
        """What cuts texts into its pieces."""
        return WordPiece.load(self.folder.assets / "vocab.txt", self.folder.read_config()["lowercase"])

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        with common.reading_weights(self.folder):
            return hashlib.blake2b(self.folder.best_weights.read_bytes(), digest_size=16).hexdigest()

    def assign(self, model: keras.Model) -> None:
        """Puts the weights into a model that has the layers of the run's."""
        own = build_mlm_gru(**self.architecture)
        common.load_weights(own, self.folder)
        for layer in own.layers:
            model.get_layer(layer.name).set_weights(layer.get_weights())


@dataclass(frozen=True, repr=False)
class TeacherBlocks(InALine):
    """The BERT of the run that teaches, of whose blocks some are left (Sanh et al. 2019, DistilBERT).

    https://arxiv.org/abs/1910.01108, section 3. The head is taken over too, and so is the vocabulary.

    Attributes:
        folder: of the teacher; of an ensemble its first member.
        layers: how many blocks are left, evenly spaced from the first one on.
    """

    folder: RunFolder
    layers: int

    @cached_property
    def start(self) -> Start:
        """What the teacher started from; a UserError if it has no blocks, or fewer."""
        start = read_start(self.folder)
        if self.layers > (has := start.architecture.get("layers", 0)):
            raise UserError(
                f"preset {TEACHER} leaves {self.layers} transformer blocks of {self.folder.path}, which has "
                f"{has}; --layers takes fewer, and --preset scratch begins anew."
            )
        return start

    @property
    def places(self) -> list[int]:
        """The numbers of the blocks that are left."""
        has = self.start.architecture["layers"]
        return [number * has // self.layers for number in range(self.layers)]

    @property
    def architecture(self) -> dict[str, Any]:
        """Arguments of `build_bert`."""
        return {**self.start.architecture, "layers": self.layers}

    @property
    def wordpiece(self) -> WordPiece:
        """What cuts texts into its pieces."""
        return self.start.wordpiece

    @property
    def fingerprint(self) -> str:
        """Hash of the weights."""
        return weights_digest(self.folder)

    def assign(self, model: keras.Model) -> None:
        """Puts the weights into a model of these blocks."""
        recipe: Any = recipe_of(self.folder).load()
        teacher = recipe.open_model(self.folder)[1]
        known = encoder_variables(teacher)
        for name, variable in encoder_variables(model).items():
            block, slash, part = name.partition("/")
            if block.startswith("block_"):
                block = f"block_{self.places[int(block.removeprefix('block_'))]}"
            variable.assign(known[f"{block}{slash}{part}"])
        model.get_layer("logits").set_weights(teacher.get_layer("logits").get_weights())


def open_preset(config: BertSettings) -> Preset | MaskedRun:
    """Reads a preset, or opens a run of mlm-gru.

    Raises:
        UserError: it is not there, or no masked language model where one is needed, or such a one elsewhere.
    """
    name = config.preset
    if not (Path(name) / "config.yaml").is_file():
        preset = load_preset(name)
        if config.needs_masked_lm and not preset.head:
            raise UserError(
                f"method {config.method} needs a masked language model, and {name} brings no head of one "
                "(cls.predictions): give a BERT that does, or a run of mlm-gru."
            )
        return preset
    run = open_run(name)
    if run.recipe != "mlm-gru" or not config.needs_masked_lm:
        raise UserError(
            f"--preset: a run of mlm-gru goes with method cloze, and a pretrained BERT with any. Received: "
            f"{run.path}, a run of {run.recipe}, and method {config.method}."
        )
    if config.pretrain_data:
        raise UserError(
            f"pretrain_data teaches a BERT masked words, and {run.path}, a run of mlm-gru, has learned them."
        )
    return MaskedRun(run)


def resolve_preset(config: BertSettings, folder: RunFolder) -> None:
    """Puts the paths of runs that are meant by `RECIPE/latest` into `config.preset` and its like."""
    resolve_init(config, folder.path.parent.parent)
    if Path(config.preset).name == "latest":
        config.preset = str(open_run(config.preset, folder.path.parent.parent).path.resolve())


@dataclass(frozen=True)
class Start:
    """An encoder to start from: how it is built, its vocabulary, and its weights if it is pretrained."""

    architecture: dict[str, Any]
    wordpiece: WordPiece
    preset: Preset | MaskedRun | TeacherBlocks | None = None

    @property
    def fingerprint(self) -> str:
        return self.preset.fingerprint if self.preset else ""

    def build_encoder(self, **options: Any) -> keras.Model:
        """Builds the encoder, or a run's masked language model; `options` are `dropout` and `dtype`."""
        sizes: dict[str, Any] = {**self.architecture, **options}
        if sizes.pop("encoder", "") == "gru":
            return build_gru_encoder(**sizes)
        return (build_mlm_gru if "units" in sizes else build_bert)(**sizes)


def make_start(config: BertSettings, folder: RunFolder, texts: Sequence[str]) -> Start:
    """Reads the preset, or learns a vocabulary for a small BERT of its own.

    Args:
        config: of the run.
        folder: a vocabulary that lies there already is used.
        texts: of the training split.
    """
    if config.preset != "scratch":
        preset = teacher_blocks(config) if config.preset == TEACHER else open_preset(config)
        check_preset(preset, config, folder)
        return Start(_sizes_of_init(config, preset.architecture), preset.wordpiece, preset)
    path: Path | str = folder.assets / "vocab.txt"
    if not Path(path).exists():
        path = common.first_vocabulary(config.init, config.lowercase)
    if path:
        wordpiece = WordPiece.load(path, config.lowercase)
    else:
        wordpiece = learn_wordpiece(texts, config.vocabulary_size, lowercase=config.lowercase)
    architecture: dict[str, Any]
    if getattr(config, "encoder", "") == "gru":
        architecture = {"encoder": "gru", "vocabulary_size": len(wordpiece), "width": config.width}
        return Start(architecture, wordpiece)
    architecture = {
        "vocabulary_size": len(wordpiece),
        "layers": config.layers,
        "heads": config.heads,
        "width": config.width,
        "intermediate": 4 * config.width,
        "positions": max(128, config.sequence_length),
        "segments": 2,
        "activation": "gelu",
        "epsilon": 1e-12,
    }
    return Start(_sizes_of_init(config, architecture), wordpiece)


def _sizes_of_init(config: BertSettings, architecture: dict[str, Any]) -> dict[str, Any]:
    """Returns an architecture without the heads and neurons that `init` has lost, and that this run removes.

    Raises:
        UserError: the method keeps no weights but those that it adds to the preset's.
    """
    path = open_run(config.init).assets / "encoder.json" if config.init else Path()
    found = json.loads(path.read_text(encoding="utf-8"))["architecture"] if path.is_file() else {}
    if "head_width" in found:
        if config.method in ADDED:
            raise UserError(
                f"--init: {config.init} has lost heads or neurons of its preset, to which method "
                f"{config.method} would add; use method full."
            )
        architecture = {**architecture, **{name: found[name] for name in _SIZES}}
    if config.prune_heads or config.prune_neurons:
        heads, neurons = architecture["heads"], architecture["intermediate"]
        width = architecture.get("head_width") or architecture["width"] // heads
        sizes = (stay(heads, config.prune_heads), width, stay(neurons, config.prune_neurons))
        architecture = {**architecture, **dict(zip(_SIZES, sizes, strict=True))}
    return architecture


def teacher_blocks(config: Any) -> TeacherBlocks:
    """Returns the start that is made of the teacher's blocks, as many as `layers` says."""
    folder = open_teacher(config.teacher)
    while members := ensembles.members_of(folder):
        folder = members[0]
    return TeacherBlocks(folder, config.layers)


def check_preset(preset: Preset | MaskedRun | TeacherBlocks, config: Any, folder: RunFolder) -> None:
    """Raises a UserError if a preset reads no texts so long, or is not the one that a run began with.

    Args:
        preset: what lies there now.
        config: of the run; it has `preset` and `sequence_length`.
        folder: of the run.
    """
    most = preset.architecture.get("positions", config.sequence_length)
    if config.sequence_length > most:
        raise UserError(
            f"sequence_length may be {most} at most with {config.preset}. Received: {config.sequence_length}."
        )
    path = folder.assets / "encoder.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["preset"] != preset.fingerprint:
        raise UserError(
            f"{config.preset} is not the preset that {folder.path} was trained on: what is in "
            f"{folder.best_weights.name} belongs to other weights; bring those back."
        )


def save_start(start: Start, folder: RunFolder) -> None:
    """Writes what evaluate and export rebuild the model from."""
    if not (folder.assets / "vocab.txt").exists():
        start.wordpiece.save(folder.assets / "vocab.txt")
    write_json(
        folder.assets / "encoder.json",
        {
            "architecture": start.architecture,
            "lowercase": start.wordpiece.lowercase,
            "tokenization": start.wordpiece.options,
            "preset": start.fingerprint,
        },
    )


def read_start(folder: RunFolder) -> Start:
    """Reads what `save_start` wrote."""
    path = folder.assets / "encoder.json"
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        options = saved.get("tokenization", {})
        wordpiece = WordPiece.load(folder.assets / "vocab.txt", saved["lowercase"], **options)
        return Start(saved["architecture"], wordpiece)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({' '.join(str(error).split())[:150]}); train again."
        ) from None


# --- The weights ----------------------------------------------------------------------------------


OpenNetwork = Callable[[RunFolder], keras.Model]


def adds_to_preset(config: BertSettings) -> bool:
    """Whether a run keeps what it adds to the weights of its preset, and not those themselves."""
    return _adds(vars(config))


def _adds(fields: Mapping[str, Any]) -> bool:
    return fields.get("method") in ADDED and not (fields.get("init") or fields.get("pretrain_data"))


def put_weights(
    model: keras.Model,
    start: Start,
    pretrained: Mapping[str, np.ndarray] | None,
    run: Run[Any],
    weights: Sequence[np.ndarray] | None,
    names: Sequence[str],
    open_network: OpenNetwork,
) -> None:
    """Puts the weights that a run starts from into its model: a preset's, pretrained ones, a run's.

    Args:
        model: that is trained.
        start: of the run.
        pretrained: of `pretrain`.
        run: whose `init` may name another one.
        weights: what was made of that one's; None: they as they are.
        names: the labels of the model.
        open_network: returns the network of a run.
    """
    init = run.settings.init
    if start.preset and not init:
        start.preset.assign(model)
    common.same_vocabulary(init, start.wordpiece, "start from the same preset")
    if weights is None and run.settings.method in ("full", *ADDED):
        adapters = bool(init) and _adds(open_run(init).read_config())
        common.begin_with_labels(run, model, names, open_network, adapters=adapters)
    else:
        run.begin_with(model, weights)
    if pretrained:
        _put(model, pretrained)


def _learned(model: keras.Model) -> dict[str, np.ndarray]:
    """Returns what masked words have taught a model: its encoder, and the head that finds them."""
    found = {name: np.asarray(v) for name, v in encoder_variables(model).items()}
    head = [layer for layer in model.layers if layer.name == _HEAD]
    return found | {v.path.split("/", 1)[1]: np.asarray(v) for layer in head for v in layer.weights}


def _put(model: keras.Model, learned: Mapping[str, np.ndarray]) -> None:
    for name, variable in encoder_variables(model).items():
        if name in learned:  # all but a pooler, which masked words do not train
            variable.assign(learned[name])
    for layer in model.layers:
        if layer.name == _HEAD:
            layer.set_weights([learned[v.path.split("/", 1)[1]] for v in layer.weights])


# --- Pretraining ----------------------------------------------------------------------------------


def pretrain(
    run: Run[Any], start: Start, texts: Sequence[str], open_network: OpenNetwork
) -> Mapping[str, np.ndarray] | None:
    """Trains a BERT on masked words, and returns what it learned; None: nothing to put in.

    A preset's goes on from its weights (Gururangan et al. 2020, https://arxiv.org/abs/2004.10964: pretraining
    on the domain or on the task's own texts); a head for masked words is made where it brings none. The text
    goes through the pipeline of `mlm-gru`. It is the first stage of the run: one that is resumed behind it
    has what it learned in its checkpoint.
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
        if config.init and not run.goes_on:
            _put(model, {**_learned(model), **_learned(open_network(open_run(config.init)))})
        elif start.preset:
            start.preset.assign(model)
        steps = config.pretrain_epochs * data.train.steps_per_epoch
        rate = _PRETRAINING_RATES["preset" if start.preset or config.init else "scratch"]
        model.compile(make_optimizer(config, model, steps, rate), SparseCrossEntropy())
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
    return _learned(model)


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


# --- What is trained, and how fast ----------------------------------------------------------------


def apply_method(model: keras.Model, config: BertSettings) -> None:
    """Freezes what the method does not train, and puts adapters in."""
    if config.method == "head":
        freeze_encoder(model)
    elif config.method == "lora":
        enable_lora(model, config.lora_rank, config.targets())
    elif config.method == "fewshot":
        model.get_layer("logits").trainable = False  # computed from the vectors


def make_optimizer(config: BertSettings, model: keras.Model, steps: int, peak: float) -> AdamW:
    optimizer = AdamW(
        WarmupThenDecay(peak, steps, config.warmup),
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm or None,
        lazy=True,
        rates=learning_rates(model, config),
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "log_variance"])
    return optimizer


def learning_rates(model: keras.Model, config: BertSettings) -> dict[str, float]:
    """Returns factors of the learning rate by variable.

    `head_rate` for what is not pretrained; `layer_decay` for the last block, its square for the one below.
    """
    stack = [*(layer for layer in model.layers if layer.name == "embeddings"), *blocks(model)]
    rates = {
        variable.path: config.layer_decay ** (len(stack) - depth)
        for depth, layer in enumerate(stack)
        for variable in layer.trainable_variables
    }
    if config.preset in ("scratch", TEACHER) or config.method != "full":
        return rates
    return {v.path: rates.get(v.path, config.head_rate) for v in model.trainable_variables}


def describe_training(config: BertSettings, model: keras.Model, batches: Batches) -> str:
    """Returns a line on what is about to be trained."""
    every = sum(int(np.prod(v.shape)) for v in model.weights)
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    return (
        f"{config.preset}, method {config.method}: {trained:,} of {every:,} parameters are trained "
        f"({trained / every:.1%}); {batches.steps_per_epoch} steps an epoch; {config.precision}, "
        f"{runtime.usable_cores()} cores"
    )


# --- What is kept ---------------------------------------------------------------------------------


def open_trained(
    config: BertSettings, folder: RunFolder, start: Start, build: Callable[[keras.Model], keras.Model]
) -> keras.Model:
    """Returns the model of a run with its best weights, adapters merged, in float32.

    Args:
        config: of the run.
        folder: of the run.
        start: what `read_start` gave.
        build: makes the task's model of an encoder.

    Raises:
        UserError: the weights cannot be read, or the preset that adapters belong to is not what it was.
    """
    plain = build(start.build_encoder(dropout=config.dropout))
    if not adds_to_preset(config):
        common.load_weights(plain, folder)
        return plain
    preset = load_preset(config.preset)
    check_preset(preset, config, folder)
    model = build(start.build_encoder(dropout=config.dropout))
    preset.assign(model)
    apply_method(model, config)
    common.load_weights(model, folder, load_trained)
    merge_lora(model, plain)
    return plain
