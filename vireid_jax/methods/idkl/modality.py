"""Classifiers of the modality of a feature: IDKL's discriminator and confuser (sec. 3.1)."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from vireid_jax.nets import init
from vireid_jax.nets.norm import BatchNorm

CLASSES = 2  # visible 0, infrared 1


class ModalityClassifier(nn.Module):
    """Two hidden layers with batch normalization, ReLU and dropout, then two logits.

    As in the released code of IDKL; the paper does not describe it.

    Attributes:
      widths: of the hidden layers.
      dropout: probability of leaving out a hidden unit.
      groups: see `BatchNorm`.
    """

    widths: Sequence[int] = (100, 100)
    dropout: float = 0.5
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, D] -> [N, 2]; in training with dropout it draws from the stream "dropout"."""
        for i, width in enumerate(self.widths, 1):
            x = _dense(width, x.shape[-1], f"fc{i}")(x)
            x = nn.relu(BatchNorm(groups=self.groups, name=f"bn{i}")(x, train=train))
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return _dense(CLASSES, x.shape[-1], f"fc{len(self.widths) + 1}")(x)


def _dense(width: int, inputs: int, name: str) -> nn.Dense:
    return nn.Dense(
        width,
        kernel_init=init.torch_uniform(),
        bias_init=init.torch_uniform_bias(inputs),
        name=name,
    )
