"""Pretrained encoders: folders in both forms, and one clear sentence for all that can be wrong with them."""

from __future__ import annotations

import json
import shutil
import socket
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from karpa_tf.errors import UserError
from karpa_tf.models.bert import build_bert
from karpa_tf.models.bert_classifier import build_bert_classifier
from karpa_tf.models.presets import Preset, encoder_variables, load_preset
from karpa_tf.wordpiece import SPECIAL, WordPiece
from tests.presets import CONFIG, INTERMEDIATE, PIECES, POSITIONS, ROWS, WIDTH, tensors, write_folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder in Hugging Face's form; tests only read it."""
    return write_folder(tmp_path_factory.mktemp("preset") / "whole")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder in keras-hub's form; tests only read it."""
    import keras_hub

    folder = str(tmp_path_factory.mktemp("preset") / "hub")
    backbone = keras_hub.models.BertBackbone(ROWS, 1, 2, WIDTH, INTERMEDIATE, max_sequence_length=POSITIONS)
    backbone.save_to_preset(folder)
    keras_hub.models.BertTokenizer(PIECES, lowercase=False).save_to_preset(folder)
    return Path(folder)


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def complaint(name: object) -> str:
    """What `load_preset` says: one line that ends as a sentence does."""
    with pytest.raises(UserError) as error:
        load_preset(str(name))
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", "?")) and len(text) < 500
    return text


def inputs(words: int = ROWS) -> dict[str, np.ndarray]:
    ids = np.random.default_rng(1).integers(1, words, (3, 7)).astype(np.int32)
    mask = np.arange(7) < np.array([7, 4, 1])[:, None]
    segments = (np.arange(7) > 2).astype(np.int32) * mask
    return {"token_ids": ids * mask, "segment_ids": segments.astype(np.int32), "padding_mask": mask}


def outputs_beside_keras_hub(preset: Preset, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs of ours and of keras-hub's, which has but one gelu, and the mask."""
    import keras_hub

    backbone = keras_hub.models.BertBackbone.from_preset(name)
    model = build_bert(**{**preset.architecture, "activation": "gelu_approximate", "epsilon": 1e-12})
    preset.assign(model)
    x = inputs(preset.architecture["vocabulary_size"])
    return model(x).numpy(), backbone(x)["sequence_output"].numpy(), x["padding_mask"]


# --- Hugging Face's form --------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "norm"), [("bert.", ("gamma", "beta")), ("", ("weight", "bias"))])
def test_a_folder_of_hugging_face(prefix, norm, tmp_path) -> None:
    weights = tensors(2, prefix, norm)
    config = {**CONFIG, "num_hidden_layers": 2}
    preset = load_preset(str(write_folder(tmp_path, weights=weights, config_json=config)))
    assert preset.vocabulary == PIECES and preset.lowercase is True
    assert preset.architecture == {
        "vocabulary_size": ROWS,
        "layers": 2,
        "heads": 2,
        "width": WIDTH,
        "intermediate": INTERMEDIATE,
        "positions": POSITIONS,
        "segments": 2,
        "activation": "gelu",
        "epsilon": 1e-6,
    }
    model = build_bert_classifier(build_bert(**preset.architecture), 3, pooling="cls")
    preset.assign(model)
    variables = encoder_variables(model)
    assert len(variables) == 3 + 2 + 2 * (6 * 2 + 2 * 2) + 2 == len(weights)
    assert {id(v) for v in variables.values()} == {
        id(v) for v in model.weights if not v.path.startswith("logits")
    }
    theirs = {
        "token_embedding": "embeddings.word_embeddings.weight",
        "position_embedding": "embeddings.position_embeddings.weight",
        "segment_embedding": "embeddings.token_type_embeddings.weight",
        "norm/gamma": f"embeddings.LayerNorm.{norm[0]}",
        "block_0/attention_norm/beta": f"encoder.layer.0.attention.output.LayerNorm.{norm[1]}",
        "block_1/output_norm/gamma": f"encoder.layer.1.output.LayerNorm.{norm[0]}",
        "block_1/key/bias": "encoder.layer.1.attention.self.key.bias",
        "block_0/query/kernel": "encoder.layer.0.attention.self.query.weight",
        "block_1/value/kernel": "encoder.layer.1.attention.self.value.weight",
        "block_1/attention_output/kernel": "encoder.layer.1.attention.output.dense.weight",
        "block_0/intermediate/kernel": "encoder.layer.0.intermediate.dense.weight",
        "block_0/output/kernel": "encoder.layer.0.output.dense.weight",
        "pooled/kernel": "pooler.dense.weight",
    }
    for name, other in theirs.items():
        expected = weights[prefix + other]
        np.testing.assert_array_equal(variables[name], expected.T if name.endswith("kernel") else expected)


def test_a_checkpoint_of_a_task_has_no_pooler(tmp_path, whole) -> None:
    found = {name: value for name, value in tensors().items() if "pooler" not in name}
    preset = load_preset(str(write_folder(tmp_path / "task", weights=found)))
    assert not any(name.startswith("pooled") for name in preset.weights)
    for name, value in load_preset(str(whole)).weights.items():
        if not name.startswith("pooled"):
            np.testing.assert_array_equal(preset.weights[name], value)
    model = build_bert_classifier(build_bert(**preset.architecture), 2, pooling="cls")
    preset.assign(model)


def test_it_computes_what_keras_hub_does(whole) -> None:
    ours, theirs, _ = outputs_beside_keras_hub(load_preset(str(whole)), str(whole))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def fast_tokenizer(pieces: list[str] = PIECES, **changes: Any) -> dict[str, Any]:
    """A tokenizer.json as the package tokenizers writes it."""
    model = {"type": "WordPiece", "unk_token": "[UNK]", "vocab": {p: i for i, p in enumerate(pieces)}}
    normalizer = {"type": "BertNormalizer", "lowercase": False}
    return {"version": "1.0", "normalizer": normalizer, "model": model, **changes}


@pytest.fixture(scope="module")
def backbone(whole: Path) -> Any:
    """What keras-hub makes of the whole folder."""
    import keras_hub

    return keras_hub.models.BertBackbone.from_preset(str(whole))


@pytest.fixture
def same_weights(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares the tests of other files the reading of the weights."""
    import keras_hub

    monkeypatch.setattr(keras_hub.models.BertBackbone, "from_preset", lambda name: backbone)


def test_tokenizer_json_is_enough(tmp_path) -> None:
    shuffled = fast_tokenizer()
    shuffled["model"]["vocab"] = dict(reversed(shuffled["model"]["vocab"].items()))
    files = {"vocab_txt": None, "tokenizer_config_json": None, "tokenizer_json": shuffled}
    preset = load_preset(str(write_folder(tmp_path, **files)))
    assert preset.vocabulary == PIECES and preset.lowercase is False


# Real sentences, with what makes scripts differ: accents that are letters of their own, marks that follow
# their letter, a capital of two letters in lower case, a form for a word's end, no spaces between words.
SENTENCES = [
    "Ich möchte ein schönes Zimmer, nicht wie früher.",
    "Où est passé l'élève naïf ? Ça l’a gêné…",
    "Tôi muốn đặt một phòng ở Hà Nội.",
    "İstanbul'da Işık ve ILIK çay içtik.",
    "Ο ΣΟΦΟΣ είπε: «η οδός μακρά».",
    "Ёлка стоит в нашем зале, й-й!",
    "أُرِيدُ غُرْفَةً هَادِئَةً مِنْ فَضْلِكَ.",
    "בְּרֵאשִׁית בָּרָא אֱלֹהִים",
    "मुझे एक शांत कमरा चाहिए।",
    "ฉันต้องการห้องพักที่เงียบสงบสำหรับคืนนี้และพรุ่งนี้เช้าด้วยครับ",
    "房间很好，服务员也很热情！",
    "東京のホテルはとても静かでした。がぎぐ",
    "조용한 방을 원합니다.",
    "e\u0301te\u0301 and ﬁne™ ½ a\u00a0b\u200bc\u3000d\x00e\x85f",
    "🙂👍🏽 ok 👨\u200d👩\u200d👧",
    "x" * 100 + " " + "y" * 101 + " " + "ก" * 100 + " " + "ข" * 101,
]


def vocabulary_of(sentences: list[str]) -> list[str]:
    """Every character of the sentences in any form, at the beginning and further in, and a few words."""
    text = " ".join(sentences)
    forms = [text, text.lower(), *(unicodedata.normalize(form, text.lower()) for form in ("NFD", "NFC"))]
    letters = sorted({c for form in forms for c in form if not c.isspace() and c.isprintable()})
    words = ["möchte", "mochte", "房间", "很好", "##schön", "früher", "fruher", "élève", "eleve"]
    return [*SPECIAL, *letters, *(f"##{c}" for c in letters), *words]


def rows(count: int) -> dict[str, Any]:
    """Weights and config.json of a folder with so many pieces."""
    embedding = {"bert.embeddings.word_embeddings.weight": np.zeros((count, WIDTH), np.float32)}
    return {"weights": {**tensors(), **embedding}, "config_json": {**CONFIG, "vocab_size": count}}


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
@pytest.mark.parametrize("chinese", [True, False])
@pytest.mark.parametrize("where", ["tokenizer.json", "tokenizer_config.json"])
def test_text_is_cut_as_the_tokenizers_library_does(
    lowercase, strip_accents, chinese, where, tmp_path
) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    pieces = vocabulary_of(SENTENCES)
    theirs = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese
    )
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    files: dict[str, Any] = {"vocab_txt": None, "tokenizer_json": theirs.to_str()}
    files["tokenizer_config_json"] = None
    if where == "tokenizer_config.json":
        files = {"vocab_txt": "\n".join(pieces)}
        files["tokenizer_config_json"] = {
            "do_lower_case": lowercase,
            "strip_accents": strip_accents,
            "tokenize_chinese_chars": chinese,
        }
    write_folder(tmp_path, **files, **rows(len(pieces)))
    ours = load_preset(str(tmp_path)).wordpiece.tokenize(tf.constant(SENTENCES)).to_list()
    for text, found in zip(SENTENCES, ours, strict=True):
        expected = theirs.encode(text, add_special_tokens=False)
        assert [pieces[i] for i in found] == expected.tokens, text


@pytest.mark.parametrize("where", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_are_found_as_the_tokenizers_library_does(where, special, tmp_path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    tokens = ["@USER", "[E1]", "[E11]", "Über-Raum", "🙂🙂"]
    texts = [
        *SENTENCES,
        "Lieber @USER,[E1]Staff[E11] war [e1] @user @USERname über-raum ÜBER-RAUM Über-Raum! 🙂🙂🙂",
        *tokens,
    ]
    pieces = vocabulary_of(texts)
    theirs = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="[UNK]"))
    theirs.normalizer = normalizers.BertNormalizer(lowercase=True)
    theirs.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if where == "added_tokens.json":
        special = False  # it says no more than their numbers
    theirs.add_tokens([AddedToken(token, special=special, normalized=not special) for token in tokens])
    numbers = {token: theirs.token_to_id(token) for token in tokens}
    decoder = {i: {"content": token, "special": special} for token, i in numbers.items()}
    files = {
        "added_tokens.json": {"added_tokens_json": numbers},
        "tokenizer_config.json": {
            "tokenizer_config_json": {"do_lower_case": True, "added_tokens_decoder": decoder}
        },
        "tokenizer.json": {"tokenizer_json": theirs.to_str(), "vocab_txt": None},
    }[where]
    folder = write_folder(tmp_path, **{"vocab_txt": "\n".join(pieces), **files}, **rows(len(pieces) + 5))
    wordpiece = load_preset(str(folder)).wordpiece
    for text, found in zip(texts, wordpiece.tokenize(tf.constant(texts)).to_list(), strict=True):
        expected = theirs.encode(text, add_special_tokens=False)
        assert found == expected.ids, text


CASED = [*SPECIAL, "Cat", "dog", "##s", "eats"]


@pytest.mark.parametrize(
    ("pieces", "settings", "tokenizer", "lowercase"),
    [
        (PIECES, {"do_lower_case": False}, fast_tokenizer(normalizer={"lowercase": True}), False),
        (CASED, {"do_lower_case": True}, None, True),
        (PIECES, {}, fast_tokenizer(normalizer={"lowercase": False}), False),
        (CASED, None, fast_tokenizer(normalizer={"lowercase": True}), True),
        # Nothing says it: the pieces do.
        (PIECES, {}, None, True),
        (PIECES, None, None, True),
        (CASED, {"model_max_length": 512}, None, False),
        (CASED, None, fast_tokenizer(normalizer=None), False),
        (CASED, None, fast_tokenizer(normalizer={"type": "Sequence", "normalizers": []}), False),
    ],
)
def test_whether_it_reads_lower_case(pieces, settings, tokenizer, lowercase, tmp_path, same_weights) -> None:
    files = {"tokenizer_config_json": settings, "tokenizer_json": tokenizer}
    preset = load_preset(str(write_folder(tmp_path, vocab_txt="\r\n".join(pieces), **files)))
    assert preset.lowercase is lowercase and preset.vocabulary == pieces
    first = WordPiece(preset.vocabulary, preset.lowercase).tokenize(["Cat"]).to_list()[0]
    assert first == ([5] if lowercase == (pieces == PIECES) else [1])


@pytest.mark.parametrize(
    ("name", "activation"),
    [("gelu", "gelu"), ("gelu_new", "gelu_approximate"), ("gelu_pytorch_tanh", "gelu_approximate")],
)
def test_activations(name, activation, copy, same_weights) -> None:
    (copy / "config.json").write_text(json.dumps({**CONFIG, "hidden_act": name}))
    assert load_preset(str(copy)).architecture["activation"] == activation


def test_a_fingerprint_is_that_of_the_weights(whole, copy) -> None:
    preset = load_preset(str(whole))
    again = load_preset(str(copy))
    assert len(preset.fingerprint) == 32 and again.fingerprint == preset.fingerprint
    again.weights["pooled/bias"][3] += 1e-6
    assert again.fingerprint != preset.fingerprint


def test_a_config_that_is_older_than_model_type(copy, whole) -> None:
    (copy / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != "model_type"}))
    assert load_preset(str(copy)).fingerprint == load_preset(str(whole)).fingerprint
    other = {**CONFIG, "architectures": ["RobertaModel"]}
    (copy / "config.json").write_text(json.dumps({k: v for k, v in other.items() if k != "model_type"}))
    assert 'must have "model_type": "bert". Received: None.' in complaint(copy)


def test_weights_in_several_files(copy, whole) -> None:
    from safetensors.numpy import save_file

    (copy / "model.safetensors").unlink()
    parts: dict[str, dict[str, np.ndarray]] = {}
    for number, (name, value) in enumerate(tensors().items()):
        parts.setdefault(f"model-{number % 3 + 1:05d}-of-00003.safetensors", {})[name] = value
    for file, part in parts.items():
        save_file(part, copy / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load_preset(str(copy)).fingerprint == load_preset(str(whole)).fingerprint
    (copy / "model-00002-of-00003.safetensors").unlink()
    assert complaint(copy).endswith("is no whole preset: it lacks model-00002-of-00003.safetensors.")


def test_weights_of_pytorch_alone_say_how_to_convert_them(copy) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    said = complaint(copy)
    assert "has its weights in pytorch_model.bin alone, and model.safetensors is read" in said
    assert f"M.from_pretrained('{copy}').save_pretrained('{copy}')" in said


def test_quantized_weights_are_refused(tmp_path) -> None:
    weights = tensors()
    weights["bert.encoder.layer.0.output.dense.weight"] = np.ones((WIDTH, INTERMEDIATE), np.int8)
    assert "in int8: quantized weights are not read" in complaint(write_folder(tmp_path, weights=weights))


# --- keras-hub's form -----------------------------------------------------------------------------


def test_a_folder_of_keras_hub(hub) -> None:
    preset = load_preset(str(hub))
    assert preset.vocabulary == PIECES and preset.lowercase is False
    assert preset.architecture["activation"] == "gelu_approximate"
    assert preset.architecture["vocabulary_size"] == ROWS and preset.architecture["positions"] == POSITIONS
    ours, theirs, _ = outputs_beside_keras_hub(preset, str(hub))
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


# --- What can be wrong ----------------------------------------------------------------------------


def test_an_unknown_name() -> None:
    said = complaint("bert_base_en_uncase")
    assert said == 'There is no preset or folder "bert_base_en_uncase"; did you mean "bert_base_en_uncased"?'
    assert complaint("qqq") == (
        'There is no preset or folder "qqq"; give a folder, a preset\'s name, hf://USER/MODEL, or scratch.'
    )
    assert complaint("no/such/folder").startswith('There is no folder "no/such/folder"; ')


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Names resolve to nothing, and what was downloaded before is not found."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unreachable)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    "name",
    ["bert_tiny_en_uncased", "kaggle://keras/bert/keras/bert_tiny_en_uncased", "hf://karpa-tf/no-such-bert"],
)
def test_a_name_that_needs_a_network(no_network, name) -> None:
    said = complaint(name)
    assert name in said and "could not be downloaded" in said
    assert said.endswith("without a network give a local folder with --preset, or --preset scratch.")


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def write(name: str, content: object) -> Callable[[Path], object]:
    text = content if isinstance(content, str) else json.dumps(content)
    return lambda folder: (folder / name).write_text(text)


def cut(name: str, share: float) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def fast_only(tokenizer: dict[str, Any]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / "vocab.txt").unlink()
        (folder / "tokenizer.json").write_text(json.dumps(tokenizer))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("config.json"), "is no preset: it lacks config.json."),
        (remove("model.safetensors"), "is no whole preset: it lacks model.safetensors."),
        (
            remove("vocab.txt"),
            "lacks a vocabulary: neither vocab.txt nor a WordPiece tokenizer.json is there.",
        ),
        (fast_only(fast_tokenizer(model={"type": "BPE", "vocab": {"a": 0}})), "lacks a vocabulary: neither"),
        (
            fast_only(fast_tokenizer(model={"vocab": {"a": 0, "b": 2}})),
            "tokenizer.json is damaged: its ids are",
        ),
        (
            fast_only(fast_tokenizer(model={"vocab": {"a": 0, "b": 0}})),
            "tokenizer.json is damaged: its ids are",
        ),
        (write("vocab.txt", "\n".join([*PIECES, "cat"])), 'The vocabulary holds "cat" more than once; '),
        (
            write("vocab.txt", "\n".join([*PIECES, *"abc"])),
            "has 12 pieces, and the weights have 11; they do not",
        ),
        (cut("model.safetensors", 0.5), "cannot be read (SafetensorError: "),
        (cut("model.safetensors", 0.001), "cannot be read (SafetensorError: "),
        (write("model.safetensors", ""), "cannot be read (SafetensorError: "),
        (cut("config.json", 0.7), "config.json is damaged: JSONDecodeError: "),
        (write("config.json", "[]"), "config.json is damaged: it holds no object."),
        (write("tokenizer_config.json", "{"), "tokenizer_config.json is damaged: JSONDecodeError: "),
        (write("tokenizer.json", ""), "tokenizer.json is damaged: JSONDecodeError: "),
        (
            write("config.json", {**CONFIG, "model_type": "roberta"}),
            '"model_type": "bert". Received: roberta.',
        ),
        (write("config.json", {"a": 1}), '"model_type": "bert". Received: None.'),
        (
            write("config.json", {**CONFIG, "position_embedding_type": "relative_key"}),
            'must have position_embedding_type "absolute". Received: "relative_key".',
        ),
        (write("config.json", {**CONFIG, "is_decoder": True}), "must have is_decoder false. Received: true."),
        (
            write("config.json", {**CONFIG, "quantization_config": {"bits": 8}}),
            'must have quantization_config null. Received: {"bits": 8}.',
        ),
        (
            write("tokenizer_config.json", {"tokenizer_class": "BertJapaneseTokenizer"}),
            "the model would see other pieces than it was trained on: tokenizer_class. Received",
        ),
        (write("tokenizer_config.json", {"do_basic_tokenize": False}), "do_basic_tokenize. Received: false."),
        (write("tokenizer_config.json", {"never_split": ["a"]}), 'never_split. Received: ["a"].'),
        (write("tokenizer.json", {"normalizer": {"type": "NFKC"}}), 'normalizer. Received: "NFKC".'),
        (
            write("tokenizer.json", {"normalizer": {"type": "BertNormalizer", "clean_text": False}}),
            "clean_text. Received: false.",
        ),
        (
            write("tokenizer.json", {"pre_tokenizer": {"type": "ByteLevel"}}),
            'pre_tokenizer. Received: "ByteLevel".',
        ),
        (write("tokenizer.json", {"model": {"unk_token": "<unk>"}}), 'unk_token. Received: "<unk>".'),
        (
            write("added_tokens.json", {"[E1]": 20}),
            'added token "[E1]" has the number 20, where the vocabulary ends at 8',
        ),
        (write("added_tokens.json", {"[E1]": 6}), 'has the number 6, where the vocabulary has "dog"'),
        (
            write("tokenizer.json", {"added_tokens": [{"id": 9, "content": "a", "single_word": True}]}),
            'single_word of an added token. Received: "a".',
        ),
        (write("config.json", {**CONFIG, "hidden_act": "relu"}), "are known as hidden_act. Received: relu."),
        (write("config.json", {**CONFIG, "hidden_size": 16}), "do not fit: token_embedding should be"),
        (write("config.json", {**CONFIG, "intermediate_size": 9}), "do not fit: block_0/intermediate/kernel"),
        (write("config.json", {"model_type": "bert"}), "damaged: it lacks 'num_hidden_layers'"),
    ],
)
def test_a_folder_of_hugging_face_with_a_fault(copy, damage, said) -> None:
    damage(copy)
    text = complaint(copy)
    assert said in text
    assert str(copy) in text or "The vocabulary" in text


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("tokenizer.json"), "is no whole preset: it lacks tokenizer.json."),
        (remove("model.weights.h5"), "is no whole preset: it lacks model.weights.h5."),
        (remove("assets/tokenizer/vocabulary.txt"), "cannot be read (FileNotFoundError: "),
        (cut("model.weights.h5", 0.5), "cannot be read (OSError: "),
        (cut("tokenizer.json", 0.5), "cannot be read (JSONDecodeError: "),
        (cut("config.json", 0.5), "config.json is damaged: JSONDecodeError: "),
        (
            write("config.json", {"class_name": "RobertaBackbone", "config": {}}),
            'holds no BERT: config.json must have "class_name": "BertBackbone". Received: RobertaBackbone.',
        ),
    ],
)
def test_a_folder_of_keras_hub_with_a_fault(hub, tmp_path, damage, said) -> None:
    folder = Path(shutil.copytree(hub, tmp_path / "copy"))
    damage(folder)
    text = complaint(folder)
    assert said in text and str(folder) in text


# --- A real one -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(minilm: Path) -> Preset:
    return load_preset(str(minilm))


def test_minilm(real) -> None:
    assert real.architecture == {
        "vocabulary_size": 30_522,
        "layers": 6,
        "heads": 12,
        "width": 384,
        "intermediate": 1536,
        "positions": 512,
        "segments": 2,
        "activation": "gelu",
        "epsilon": 1e-12,
    }
    assert len(real.vocabulary) == 30_522 and real.lowercase is True
    assert real.weights["block_5/output/kernel"].shape == (1536, 384)
    assert sum(w.size for w in real.weights.values()) == 22_713_216
    # LoRA runs of old go on with it: it must never be another one.
    assert real.fingerprint == "5b571a61bd0d3963718e49c6e6dd9120"


def test_minilm_equals_keras_hub(real, minilm) -> None:
    ours, theirs, mask = outputs_beside_keras_hub(real, str(minilm))
    assert ours.shape == (3, 7, 384)
    np.testing.assert_allclose(ours[mask], theirs[mask], atol=1e-4)


def test_minilm_cuts_words_as_its_own_tokenizer_does(real, minilm) -> None:
    from tokenizers import Tokenizer

    texts = [
        "café naïve, and Ångström's 42 résumés",
        "unaffable über-cool",
        "東京 is Tokyo",
        "e-mail: a@b.co",
    ]
    theirs = Tokenizer.from_file(str(minilm / "tokenizer.json"))
    theirs.no_padding()
    expected = [theirs.encode(text, add_special_tokens=False).ids for text in texts]
    assert WordPiece(real.vocabulary, real.lowercase).tokenize(tf.constant(texts)).to_list() == expected
