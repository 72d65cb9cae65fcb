"""The network of IDKL (Ren and Zhang, CVPR 2024), fig. 2.

Stem, layer1 and layer2 (Theta) are common. layer3 and layer4 exist twice: the shared branch (Phi)
and the specific branch (Psi). Common stages and shared branch are a plain ResNet, and all that
inference needs. Both modalities pass every parameter.

    paper                 here
    F_sh, f_sh            "sh"          map and pooled features of the shared branch
    F_sp, f_sp            "sp"          of the specific branch, as they come
    F^_sp, f^_sp          "normalized"  eq. 7, by instance normalization
    F^d+_sp, f^d+_sp      "enhanced"    eq. 9, m_e F
    F^m-_sp, f^m-_sp      "reduced"     eq. 9, m_r F^
    F~_sp, f~_sp          "purified"    eq. 12
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import wide
from vireid_jax.nets import init
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.pooling import gem_above
from vireid_jax.nets.remat import rematerialized
from vireid_jax.nets.resnet import ResNet, deinterleave
from vireid_jax.types import SPECIFIC

MASKS = ("channel", "map")
RATIO = 16  # r of eq. 8
HIDDEN = (100, 100)  # of confuser and discriminator, as in the released code
EPSILON = 1e-5  # added to the variance in eq. 7


class Out(NamedTuple):
    """What a training pass returns; row 2b + m is modality m of slot b.

    Attributes:
      f: {name: pooled features [B, 2, D]}, with the names of the table above.
      z: {name: logits [B, 2, C]} of the features with a classifier, and of "enhanced" and "plain"
        for L_e: f^d+ and f_sp by one and the same classifier.
      confuser, discriminator: logits of the modality, [2B, 2], visible 0 and infrared 1.
    """

    f: dict[str, jax.Array]
    z: dict[str, jax.Array]
    confuser: jax.Array
    discriminator: jax.Array


class IDKLNet(nn.Module):
    """Two branches, purifier, GeM, and heads.

    Attributes:
      num_classes: C.
      backbone_options: of `ResNet`; remat, dtype and groups hold for all other modules too.
      mask: see `Mask.form`; None: no purifier.
      heads: the features with a BN neck and an identity classifier: "sh", and of "sp", "purified".
      enhance_head: what classifies f^d+ and f_sp for L_e: "raw", neck and classifier of "sp"; or
        "own", a classifier of pooled features.
      discriminated: "sp" or "purified", whose neck feeds the discriminator.
      reversal: strength of the gradient reversal before the confuser; None: no reversal.
      dropout: probability, in confuser and discriminator.
    """

    num_classes: int
    backbone_options: Mapping[str, Any]
    mask: str | None
    heads: Sequence[str]
    enhance_head: str
    discriminated: str
    reversal: float | None
    dropout: float

    def setup(self) -> None:
        """Names the parts; the names are those of the parameter tree."""
        options = self.backbone_options
        groups, remat = options.get("groups", 1), options.get("remat", False)
        self.backbone = ResNet(**options)
        if self.mask is not None:
            self.purifier = rematerialized(Purifier, self, remat)(self.mask, options.get("dtype"))
        classifier = partial(
            nn.Dense, self.num_classes, use_bias=False, kernel_init=init.torch_uniform()
        )
        # neck_sh, classifier_sh, ...
        self.neck = {name: BatchNorm(use_bias=False, groups=groups) for name in self.heads}
        self.classifier = {name: classifier() for name in self.heads}
        if self.enhance_head == "own":
            self.classifier_entropy = classifier()
        self.confuser_neck = ModalityClassifier(dropout=self.dropout, groups=groups)
        self.discriminator_neck = ModalityClassifier(dropout=self.dropout, groups=groups)

    def __call__(self, visible: jax.Array, infrared: jax.Array) -> Out:
        """The training pass on standardized images [B, H, W, 3]; slot b shows one identity."""
        shared, specific = self.backbone([visible, infrared], train=True, branches=("", SPECIFIC))
        maps = {"sh": shared[-1], "sp": specific[-1]}
        if self.mask is not None:
            maps |= self.purifier(specific[-1])._asdict()
        f = {name: gem_above(x) for name, x in maps.items()}  # [2B, D]
        neck = {name: self.neck[name](f[name], train=True) for name in self.heads}
        z = {name: self.classifier[name](neck[name]) for name in self.heads}  # [2B, C]
        if self.mask is not None:
            if self.enhance_head == "raw":
                z["enhanced"] = self.classifier["sp"](self.neck["sp"](f["enhanced"], train=True))
                z["plain"] = z["sp"]
            else:
                z["enhanced"] = self.classifier_entropy(f["enhanced"])
                z["plain"] = self.classifier_entropy(f["sp"])
        shown = neck["sh"]
        if self.reversal is not None:
            shown = reverse_gradient(shown, self.reversal)
        return Out(
            f={name: deinterleave(x, 2) for name, x in f.items()},
            z={name: deinterleave(x, 2) for name, x in z.items()},
            confuser=self.confuser_neck(shown, train=True),
            discriminator=self.discriminator_neck(neck[self.discriminated], train=True),
        )

    def embed(self, images: jax.Array, modality: int) -> dict[str, jax.Array]:
        """Features of the shared branch, [N, D], alike for both modalities.

        "bn" is after the neck, "pool" before it.
        """
        pool = gem_above(self.backbone([images], train=False))
        return {"bn": self.neck["sh"](pool, train=False), "pool": pool}


# --- Section 3.1: which modality? ------------------------------------------------------------


@jax.custom_vjp
def reverse_gradient(x: jax.Array, strength: Any) -> jax.Array:
    """Gradient reversal (Ganin and Lempitsky, ICML 2015, arXiv 1409.7495).

    Layers before it maximize the loss that layers after it minimize: x is returned as it is, and
    its gradient is multiplied by -strength.
    """
    return x


def _backward(strength: Any, gradient: jax.Array) -> tuple[jax.Array, Any]:
    reversed_ = -jnp.asarray(strength, gradient.dtype) * gradient
    return reversed_, jnp.zeros_like(jnp.asarray(strength))


reverse_gradient.defvjp(lambda x, strength: (x, strength), _backward)


class ModalityClassifier(nn.Module):
    """Confuser C and discriminator D: two hidden layers with BN, ReLU and dropout, two logits.

    As in the released code; the paper does not describe it. `dropout` is the probability of
    leaving out a hidden unit.
    """

    widths: Sequence[int] = HIDDEN
    dropout: float = 0.5
    groups: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, D] -> [N, 2]; in training with dropout it draws from the stream "dropout"."""
        for i, width in enumerate([*self.widths, 2], 1):
            starts = init.torch_uniform(), init.torch_uniform_bias(x.shape[-1])
            x = nn.Dense(width, kernel_init=starts[0], bias_init=starts[1], name=f"fc{i}")(x)
            if i <= len(self.widths):
                x = nn.relu(BatchNorm(groups=self.groups, name=f"bn{i}")(x, train=train))
                x = nn.Dropout(self.dropout, deterministic=not train)(x)
        return x


# --- Section 3.2: the information purifier ------------------------------------------------------


class Purified(NamedTuple):
    """Maps [N, h, w, F] of eqs. 7, 9 and 12; see the table above."""

    normalized: jax.Array
    enhanced: jax.Array
    reduced: jax.Array
    purified: jax.Array


class Purifier(nn.Module):
    """Eqs. 7 to 12: two masks, one made of the map, one of the map without its style."""

    mask: str = "channel"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> Purified:
        """Purifies maps F_sp [N, h, w, F]."""
        F = x
        F_n = InstanceNorm(name="norm")(F)  # F^, eq. 7
        m_e = Mask(self.mask, self.dtype, name="mask_e")(F).astype(F.dtype)  # eq. 8
        m_r = Mask(self.mask, self.dtype, name="mask_r")(F_n).astype(F.dtype)
        F_e, F_r = m_e * F, m_r * F_n  # F^d+ and F^m-, eq. 9
        return Purified(F_n, F_e, F_r, m_e * F_r + m_r * F_e)  # eq. 12


class InstanceNorm(nn.Module):
    """Eq. 7: every channel of every sample by its mean and biased variance over the map.

    Then a learned scale and shift, as in the released code; the paper has none.
    """

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, F] -> the same shape and dtype."""
        moved = wide(x) - wide(x).mean((1, 2), keepdims=True)
        y = moved * jax.lax.rsqrt((moved * moved).mean((1, 2), keepdims=True) + EPSILON)
        shape = (1, 1, 1, x.shape[-1])
        scale = self.param("scale", init.constant(1.0), shape[-1:])
        bias = self.param("bias", init.constant(0.0), shape[-1:])
        return (y * scale.reshape(shape) + bias.reshape(shape)).astype(x.dtype)


class Mask(nn.Module):
    """Eq. 8: sigmoid(W relu(W' g(F))), W' to an r-th of the channels, without biases.

    Attributes:
      form: "channel": g is GeM pooling and the mask [N, 1, 1, F], as eq. 8 reads. (The average
        would be the same number for every normalized map, and the mask the same for all images.)
        "map": no g and a mask at every place [N, h, w, F], as in the released code. Both have the
        same parameters.
    """

    form: str = "channel"
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, h, w, F] -> values in (0, 1), [N, 1, 1, F] or [N, h, w, F]."""
        width = x.shape[-1]
        if self.form == "channel":
            x = gem_above(x)[:, None, None, :]
        hidden = max(width // RATIO, 1)
        options = dict(use_bias=False, dtype=self.dtype, kernel_init=init.torch_uniform())
        x = nn.relu(nn.Dense(hidden, **options, name="down")(x))
        return nn.sigmoid(nn.Dense(width, **options, name="up")(x))
