"""A tagger of words: a BERT encoder, what its vocabulary hides of a word's letters, a dense layer."""

from __future__ import annotations

from typing import Any

import keras

from karpa_tf.models.bert import Dropout, TransformerBlock

# Kinds of words by their letters; see `karpa_tf.data.sequences.letter_cases`.
CASES = 6


def build_bert_tagger(
    bert: keras.Model, tags: int, *, cases: bool = False, dropout: float = 0.1
) -> keras.Model:
    """Builds a tagger on an encoder; keras-hub has none.

    Inputs: those of `build_bert`, and with `cases` also `case_ids` int32 (batch, time), below `CASES`.
    Output: float32 logits (batch, time, tags); those at the first piece of a word are the word's.

    Args:
        bert: the encoder.
        tags: number of tags.
        cases: an uncased vocabulary reads "Turkey" and "turkey" alike, and capitals mark names:
            an embedding of them, zero at the start, is added to that of the pieces.
        dropout: share of the encoder's output dropped in training.
    """
    # === Layers ===
    drop = Dropout(dropout, dtype=bert.output.dtype, name="drop_output")
    head = keras.layers.Dense(
        tags,
        kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
        dtype="float32",
        name="logits",
    )

    # === Functional Model ===
    inputs, x = with_cases(bert) if cases else (bert.input, bert.output)
    return keras.Model(inputs, head(drop(x)), name="bert_tagger")


def with_cases(bert: keras.Model) -> tuple[dict[str, Any], Any]:
    """Returns the inputs of an encoder and `case_ids`, and what its layers give for all of them."""
    embeddings = bert.get_layer("embeddings")
    inputs = {**bert.input, "case_ids": keras.Input([None], dtype="int32", name="case_ids")}
    table = keras.layers.Embedding(
        CASES, bert.output.shape[-1], "zeros", dtype=embeddings.dtype_policy, name="case_embedding"
    )
    x = embeddings(inputs["token_ids"], inputs["segment_ids"])
    x = keras.layers.Add(dtype=embeddings.dtype_policy, name="add_case")([x, table(inputs["case_ids"])])
    for layer in bert.layers:
        if isinstance(layer, TransformerBlock):
            x = layer(x, inputs["padding_mask"])
    return inputs, x
