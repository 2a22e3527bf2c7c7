"""Keras builders and layers: hyper-parameters in, a `keras.Model` out."""

from typing import TYPE_CHECKING

from karpa_tf.lazy import public

if TYPE_CHECKING:
    from karpa_tf.models.airbench import build_airbench as build_airbench
    from karpa_tf.models.bert import build_bert as build_bert
    from karpa_tf.models.bert_classifier import build_bert_classifier as build_bert_classifier
    from karpa_tf.models.bert_masked_lm import build_bert_masked_lm as build_bert_masked_lm
    from karpa_tf.models.bert_multi_task import build_bert_multi_task as build_bert_multi_task
    from karpa_tf.models.bert_tagger import build_bert_tagger as build_bert_tagger
    from karpa_tf.models.bidirectional_gru import BidirectionalGRU as BidirectionalGRU
    from karpa_tf.models.dcgan_discriminator import build_dcgan_discriminator as build_dcgan_discriminator
    from karpa_tf.models.dcgan_generator import build_dcgan_generator as build_dcgan_generator
    from karpa_tf.models.few_shot_cnn import build_few_shot_cnn as build_few_shot_cnn
    from karpa_tf.models.gru_encoder import build_gru_encoder as build_gru_encoder
    from karpa_tf.models.image_cnn import build_image_cnn as build_image_cnn
    from karpa_tf.models.image_mlp import build_image_mlp as build_image_mlp
    from karpa_tf.models.lora import enable_lora as enable_lora
    from karpa_tf.models.lora import freeze_encoder as freeze_encoder
    from karpa_tf.models.lora import merge_lora as merge_lora
    from karpa_tf.models.mlm_gru import build_mlm_gru as build_mlm_gru
    from karpa_tf.models.presets import Preset as Preset
    from karpa_tf.models.presets import load_preset as load_preset
    from karpa_tf.models.q_network import build_q_network as build_q_network
    from karpa_tf.models.sinusoid_mlp import build_sinusoid_mlp as build_sinusoid_mlp
    from karpa_tf.models.two_towers import build_item_tower as build_item_tower
    from karpa_tf.models.two_towers import build_reranker as build_reranker
    from karpa_tf.models.two_towers import build_user_tower as build_user_tower
else:  # a type checker would take any name for one of these
    __all__, __getattr__ = public(
        __name__,
        {
            ".airbench": "build_airbench",
            ".bert": "build_bert",
            ".bert_classifier": "build_bert_classifier",
            ".bert_masked_lm": "build_bert_masked_lm",
            ".bert_multi_task": "build_bert_multi_task",
            ".bert_tagger": "build_bert_tagger",
            ".bidirectional_gru": "BidirectionalGRU",
            ".dcgan_discriminator": "build_dcgan_discriminator",
            ".dcgan_generator": "build_dcgan_generator",
            ".few_shot_cnn": "build_few_shot_cnn",
            ".gru_encoder": "build_gru_encoder",
            ".image_cnn": "build_image_cnn",
            ".image_mlp": "build_image_mlp",
            ".lora": "enable_lora freeze_encoder merge_lora",
            ".mlm_gru": "build_mlm_gru",
            ".presets": "Preset load_preset",
            ".q_network": "build_q_network",
            ".sinusoid_mlp": "build_sinusoid_mlp",
            ".two_towers": "build_item_tower build_reranker build_user_tower",
        },
    )
