"""Sources and pipelines: texts, tables, tagged words and images in, `Batches` out."""

from typing import TYPE_CHECKING

from karpa_tf.lazy import public

if TYPE_CHECKING:
    from karpa_tf.data.augmentation import Augmentation as Augmentation
    from karpa_tf.data.augmentation import image_batches as image_batches
    from karpa_tf.data.batches import Batches as Batches
    from karpa_tf.data.batches import array_batches as array_batches
    from karpa_tf.data.batches import from_dataset as from_dataset
    from karpa_tf.data.batches import mixed_batches as mixed_batches
    from karpa_tf.data.batches import paired_batches as paired_batches
    from karpa_tf.data.images import ImageData as ImageData
    from karpa_tf.data.images import Images as Images
    from karpa_tf.data.images import decode_image as decode_image
    from karpa_tf.data.images import open_images as open_images
    from karpa_tf.data.images import open_test_images as open_test_images
    from karpa_tf.data.images import read_image as read_image
    from karpa_tf.data.intents import embedded_intents as embedded_intents
    from karpa_tf.data.labelled import TableData as TableData
    from karpa_tf.data.labelled import load_table as load_table
    from karpa_tf.data.ratings import Items as Items
    from karpa_tf.data.ratings import Ratings as Ratings
    from karpa_tf.data.ratings import open_ratings as open_ratings
    from karpa_tf.data.ratings import read_items as read_items
    from karpa_tf.data.reservoir import BalancedReservoir as BalancedReservoir
    from karpa_tf.data.reservoir import Reservoir as Reservoir
    from karpa_tf.data.sequences import Sequences as Sequences
    from karpa_tf.data.sequences import dense_features as dense_features
    from karpa_tf.data.sequences import encode_texts as encode_texts
    from karpa_tf.data.sequences import encode_words as encode_words
    from karpa_tf.data.sequences import pack_texts as pack_texts
    from karpa_tf.data.sequences import pack_words as pack_words
    from karpa_tf.data.sequences import sequence_batches as sequence_batches
    from karpa_tf.data.sources import Corpus as Corpus
    from karpa_tf.data.sources import DataRecord as DataRecord
    from karpa_tf.data.sources import open_corpus as open_corpus
    from karpa_tf.data.tables import Columns as Columns
    from karpa_tf.data.tables import Rows as Rows
    from karpa_tf.data.tables import Table as Table
    from karpa_tf.data.tables import label_ids as label_ids
    from karpa_tf.data.tables import open_table as open_table
    from karpa_tf.data.tables import open_test_rows as open_test_rows
    from karpa_tf.data.tags import Sentence as Sentence
    from karpa_tf.data.tags import Tagged as Tagged
    from karpa_tf.data.tags import open_tagged as open_tagged
    from karpa_tf.data.tags import open_test_sentences as open_test_sentences
    from karpa_tf.data.tags import tag_names as tag_names
    from karpa_tf.data.tags import to_iob2 as to_iob2
    from karpa_tf.data.text import Masking as Masking
    from karpa_tf.data.text import TextData as TextData
    from karpa_tf.data.text import Windows as Windows
    from karpa_tf.data.text import fixed_batches as fixed_batches
    from karpa_tf.data.text import load_text as load_text
    from karpa_tf.wordpiece import WordPiece as WordPiece
    from karpa_tf.wordpiece import learn_wordpiece as learn_wordpiece
else:  # a type checker would take any name for one of these
    __all__, __getattr__ = public(
        __name__,
        {
            ".augmentation": "Augmentation image_batches",
            ".batches": "Batches array_batches from_dataset mixed_batches paired_batches",
            ".images": "ImageData Images decode_image open_images open_test_images read_image",
            ".intents": "embedded_intents",
            ".labelled": "TableData load_table",
            ".ratings": "Items Ratings open_ratings read_items",
            ".reservoir": "BalancedReservoir Reservoir",
            ".sequences": "Sequences dense_features encode_texts encode_words pack_texts pack_words "
            "sequence_batches",
            ".sources": "Corpus DataRecord open_corpus",
            ".tables": "Columns Rows Table label_ids open_table open_test_rows",
            ".tags": "Sentence Tagged open_tagged open_test_sentences tag_names to_iob2",
            ".text": "Masking TextData Windows fixed_batches load_text",
            "..wordpiece": "WordPiece learn_wordpiece",
        },
    )
