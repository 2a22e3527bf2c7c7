"""One update of a generator and a discriminator that learn from each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf

from karpa_tf.training.step import Step, averaged


class GanStep(Step):
    """An update of both networks of a GAN (Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661).

    Losses are softplus(-D(x)) + softplus(D(G(z))) of the discriminator and softplus(-D(G(z))), the one that
    does not saturate, of the generator. Both are updated at once, from what they were before: so one pass
    forward and one backward through the discriminator serve both. For D reads each image by itself, and the
    losses' derivatives by the pixels of G(z) differ only by the factor -exp(-D(G(z))).

    Args:
        generator: gives images of [z] or [z, label], as `karpa_tf.models.build_dcgan_generator` does.
        discriminator: gives logits of [image] or [image, label]; nothing in it may normalize by the batch.
        optimizers: of the generator and of the discriminator; they are built here. If the first one keeps a
            running average of the weights (`use_ema`), that is what is evaluated and kept.
        seed: of z, together with the number of the update.

    Attributes:
        model: both networks, [z, image(, label)] to an image and a logit, with the generator's optimizer.
    """

    model: keras.Model

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        optimizers: tuple[keras.optimizers.Optimizer, keras.optimizers.Optimizer],
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        self.optimizers = optimizers
        self.seed = seed
        self.model = both_networks(generator, discriminator)
        self.model.optimizer = optimizers[0]
        for optimizer, network in zip(optimizers, (generator, discriminator), strict=True):
            optimizer.build(network.trainable_variables)

    @property
    def variables(self) -> Sequence[Any]:
        """Both networks' variables and both optimizers'."""
        return [*self.model.variables, *(v for optimizer in self.optimizers for v in optimizer.variables)]

    def update(self, batch: Any) -> tuple[Mapping[str, Any], Any]:
        """Makes one update.

        Args:
            batch: images (n, height, width, channels) of 0 to 255, labels int (n,), and sample weights, which
                do not count.

        Returns:
            `loss` of the generator, `discriminator_loss`, and the mean logits `real_logit` and
            `generated_logit`; and 1.
        """
        image, label = batch[0], batch[1]
        z, *classes = self.generator.inputs
        # Read once: the number of the update decides what is random.
        number = tf.cast(self.optimizers[0].iterations, tf.int32)
        noise = tf.random.stateless_normal([image.shape[0], z.shape[1]], tf.stack([self.seed, number]))
        labels = [tf.one_hot(label, of.shape[1]) for of in classes]
        with tf.GradientTape() as generating:
            generated = self.generator([noise, *labels], training=True)
        images = tf.concat([tf.cast(image, tf.float32), generated], 0)
        generator, discriminator = (
            [v.value for v in network.trainable_variables] for network in (self.generator, self.discriminator)
        )
        with tf.GradientTape() as judging:
            judging.watch(images)
            logits = self.discriminator([images, *(tf.concat([x, x], 0) for x in labels)], training=True)
            real, fake = tf.split(logits, 2)
            loss = tf.reduce_mean(tf.nn.softplus(-real)) + tf.reduce_mean(tf.nn.softplus(fake))
        *of_discriminator, of_images = judging.gradient(loss, [*discriminator, images])
        slope = -tf.exp(-fake)[:, None, None, None]
        of_generator = generating.gradient(
            generated, generator, output_gradients=slope * tf.split(of_images, 2)[1]
        )
        figures = {
            "loss": tf.reduce_mean(tf.nn.softplus(-fake)),
            "discriminator_loss": loss,
            "real_logit": tf.reduce_mean(real),
            "generated_logit": tf.reduce_mean(fake),
        }
        self.apply_gradients(
            figures,
            (self.optimizers[0], of_generator, self.generator.trainable_variables),
            (self.optimizers[1], of_discriminator, self.discriminator.trainable_variables),
        )
        return figures, 1.0

    @contextmanager
    def evaluated(self) -> Iterator[None]:
        """Puts the running average of the generator's weights in their place, if there is one."""
        with averaged(self.optimizers[0], self.generator.trainable_variables):
            yield


def both_networks(generator: keras.Model, discriminator: keras.Model) -> keras.Model:
    """Returns one model of a generator and a discriminator, for files of weights.

    Args:
        generator: of [z] or [z, label].
        discriminator: of [image] or [image, label].
    """
    z, *label = (keras.Input(x.shape[1:], name=x.name) for x in generator.inputs)
    image = keras.Input(discriminator.inputs[0].shape[1:], name="image")
    outputs = [generator([z, *label]), discriminator([image, *label])]
    return keras.Model([z, image, *label], outputs, name="gan")
