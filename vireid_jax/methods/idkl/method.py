"""IDKL: Implicit Discriminative Knowledge Learning (Ren and Zhang, CVPR 2024).

Two branches over common first stages. The features of the shared branch must not betray the
modality, the features of the specific branch must. A purifier takes the style out of the specific
features, and what they know is distilled into the shared ones, which alone are used at test time.

    term                       equation  function                weight in the total (eq. 21)
    id_sh, tri_sh              5         identity, triplet       1
    id_sp, tri_sp              5         of raw f_sp             specific_weight
    confuser, discriminator    2, 3      2-class cross-entropy   1
    enhance, reduce            10, 11    L_e, L_r                ip_weight (lambda_1)
    id_purified, tri_purified  13        of purified f~_sp       purified_weight
    tgsa                       17        graph_alignment         tgsa_weight (lambda_2)
    csa                        19        divergence              csa_weight (lambda_3)
    mdr_tgsa, mdr_csa          20        the same, of f_sh       mdr_tgsa_weight, mdr_csa_weight
    csa_block, mdr_csa_block   -         by_instance             block_weight times csa's, mdr_csa's

Paper and released code (1KK077/IDKL at 8676b62) are materially different methods. The defaults of
`build` are the preset "paper": the paper where it is definite, the code where the paper is silent.
`configs/idkl.py:DATASET,official` sets every option to what the code does. docs/idkl.md compares.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import safe_norm
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.losses.triplet import batch_hard_triplet
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.idkl import losses
from vireid_jax.methods.idkl.losses import by_instance, divergence
from vireid_jax.methods.idkl.net import MASKS, IDKLNet
from vireid_jax.types import INFRARED, VISIBLE, Aux, Batch, Method, Variables

CONFUSERS = ("reversal", "half_flip")


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_ids: int,
    num_instances: int,
    backbone: Backbone = Backbone(),
    tri_margin: float = 1.3,
    specific_weight: float = 1.0,
    confuser: str = "reversal",
    reversal_strength: float = 1.0,
    discriminator_input: str = "sp",
    modality_dropout: float = 0.5,
    purifier: bool = True,
    mask: str = "channel",
    ip_weight: float = 0.1,
    purified_weight: float = 1.0,
    enhance_form: str = "softplus",
    enhance_head: str = "raw",
    reduce_form: str = "softplus",
    tgsa_weight: float = 0.6,
    tgsa_pairs: str = "all",
    tgsa_cross: str = "true",
    tgsa_scale: str = "none",
    csa_weight: float = 0.8,
    mdr_tgsa_weight: float = 1.0,
    mdr_csa_weight: float = 1.0,
    block_weight: float = 0.0,
) -> Method:
    """IDKL as a `Method`. Raises ValueError for a bad option, naming it.

    Args:
      num_classes, image_size, num_ids, num_instances: C, (height, width), P, K.
      backbone: the ResNet and how it is computed.
      tri_margin: of the batch-hard triplet losses, on features before the neck.
      specific_weight: of id_sp and tri_sp; 0 in the code, which has neither.
      confuser: "reversal" (eq. 2), or "half_flip": no reversal, labels of `losses.half_flipped`.
      reversal_strength: factor of the reversed gradient.
      discriminator_input: "sp", raw specific features (eq. 3), or "purified" ones.
      modality_dropout: probability, in confuser and discriminator.
      purifier: False: f~_sp is f_sp, without eq. 13 (rows 1 and 2 of the paper's table 4).
      mask: "channel", or "map" for a value at every place, see `net.Mask`.
      ip_weight: lambda_1, of enhance and reduce.
      purified_weight: of id_purified and tri_purified; 1 in the code, lambda_1 in eq. 21.
      enhance_form: "softplus" (eq. 10) or "exponential", see `losses.enhancing_loss`.
      enhance_head: classifier in L_e: "raw", that of f_sp, or its "own", which L_e alone trains.
      reduce_form: "softplus" (eq. 11) or "relu", see `losses.reducing_loss`.
      tgsa_weight: lambda_2.
      tgsa_pairs: pairs of matrices in tgsa, "all" (eq. 16) or "self"; mdr_tgsa has all.
      tgsa_cross: "true" (eq. 15) or "mix", see `losses.graph_alignment`.
      tgsa_scale: "mean" divides distances by their mean, "none" does not.
      csa_weight: lambda_3.
      mdr_tgsa_weight, mdr_csa_weight: of this part of eq. 20.
      block_weight: of csa_block and mdr_csa_block; 1 in the code, which alone has them.
    """
    # A feature has a BN neck and an identity classifier if a loss or the discriminator needs them.
    heads = ["sh"]
    if specific_weight or discriminator_input == "sp":
        heads.append("sp")
    if purifier:
        heads.append("purified")
    teacher = "purified" if purifier else "sp"  # of eqs. 17 and 19
    align = partial(losses.graph_alignment, cross=tgsa_cross, scale=tgsa_scale)
    net = IDKLNet(
        num_classes=num_classes,
        backbone_options=backbone.resnet_options(),
        mask=mask if purifier else None,
        heads=tuple(heads),
        enhance_head=enhance_head,
        discriminated=discriminator_input,
        reversal=reversal_strength if confuser == "reversal" else None,
        dropout=modality_dropout,
    )

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        images, labels = (batch["visible"], batch["infrared"]), batch["label"]
        out, updates = common.train_pass(net, backbone, variables, images, key, stream="dropout")
        f, z = out.f, out.z
        person = jnp.repeat(labels, 2)  # y of row 2b + m of arrays [2B, ...]
        modality = jnp.tile(jnp.arange(2), len(labels))  # of that row
        terms = {}

        # L_reid, eqs. 5 and 13
        for name in heads:
            terms[f"id_{name}"] = cross_entropy(_rows(z[name]), person)
            terms[f"tri_{name}"] = batch_hard_triplet(f[name], labels, margin=tri_margin)
        # L_C and L_D, eqs. 2 and 3
        t = losses.half_flipped(len(labels)) if confuser == "half_flip" else modality
        terms["confuser"] = cross_entropy(out.confuser, t)
        terms["discriminator"] = cross_entropy(out.discriminator, modality)
        # L_e and L_r, eqs. 10 and 11
        if purifier:
            terms["enhance"] = losses.enhancing_loss(
                _rows(z["enhanced"]), _rows(z["plain"]), form=enhance_form
            )
            terms["reduce"] = losses.reducing_loss(
                f["reduced"], f["normalized"], labels, form=reduce_form
            )

        f_sh, f_sp = f["sh"], f[teacher]
        z_sh_v, z_sh_i = _by_modality(z["sh"])
        z_sp_v, z_sp_i = _by_modality(z[teacher])
        # L_tgsa, eq. 17
        terms["tgsa"] = align(f_sp[:, VISIBLE], f_sh[:, VISIBLE], pairs=tgsa_pairs)
        terms["tgsa"] += align(f_sp[:, INFRARED], f_sh[:, INFRARED], pairs=tgsa_pairs)
        # L_csa, eq. 19
        terms["csa"] = divergence(z_sh_v, z_sp_v) + divergence(z_sh_i, z_sp_i)
        # L_mdr, eq. 20
        terms["mdr_tgsa"] = align(f_sh[:, VISIBLE], f_sh[:, INFRARED])
        terms["mdr_csa"] = divergence(z_sh_v, z_sh_i)
        # The released code's second copy of eqs. 19 and 20, by rows of blocks [K, P * C]
        z_sh_v, z_sh_i = (by_instance(x, num_instances) for x in _by_modality(z["sh"]))
        z_sp_v, z_sp_i = (by_instance(x, num_instances) for x in _by_modality(z[teacher]))
        terms["csa_block"] = divergence(z_sh_v, z_sp_v) + divergence(z_sh_i, z_sp_i)
        terms["mdr_csa_block"] = divergence(z_sh_v, z_sh_i)

        # Eq. 21. A term without weight is left out; what it alone needs is then not computed.
        weights = {
            **dict.fromkeys(("id_sh", "tri_sh"), 1.0),
            **dict.fromkeys(("id_sp", "tri_sp"), specific_weight),
            **dict.fromkeys(("id_purified", "tri_purified"), purified_weight * purifier),
            **dict.fromkeys(("confuser", "discriminator"), 1.0),
            **dict.fromkeys(("enhance", "reduce"), ip_weight * purifier),
            "tgsa": tgsa_weight,
            "mdr_tgsa": mdr_tgsa_weight,
            "csa": csa_weight,
            "mdr_csa": mdr_csa_weight,
            "csa_block": csa_weight * block_weight,
            "mdr_csa_block": mdr_csa_weight * block_weight,
        }
        weights = {name: weight for name, weight in weights.items() if weight}
        terms = {name: terms[name] for name in weights}
        scalars = {
            "accuracy": accuracy(_rows(z["sh"]), person),
            "feature_norm": safe_norm(f["sh"]).mean(),  # tgsa falls with it
            "accuracy_confuser": accuracy(out.confuser, modality),
            "accuracy_discriminator": accuracy(out.discriminator, modality),
        }
        return common.total(weights, terms), Aux(terms, dict(updates), scalars)

    # Checks stand last for the sake of the reader; they come before anything is traced.
    choices = {
        "confuser": CONFUSERS,
        "discriminator_input": ("sp", "purified"),
        "mask": MASKS,
        "enhance_form": losses.ENHANCING_FORMS,
        "enhance_head": ("raw", "own"),
        "reduce_form": losses.REDUCING_FORMS,
        "tgsa_pairs": losses.PAIRS,
        "tgsa_cross": losses.CROSSES,
        "tgsa_scale": losses.SCALES,
    }
    numbers = ["tri_margin", "specific_weight", "reversal_strength", "ip_weight", "block_weight"]
    numbers += ["purified_weight", "tgsa_weight", "csa_weight", "mdr_tgsa_weight", "mdr_csa_weight"]
    common.check(locals(), choices=choices, not_negative=numbers)
    if not 0 <= modality_dropout < 1:
        raise ValueError(f"method.modality_dropout is {modality_dropout}, expected 0 to below 1")
    if tgsa_cross == "mix" and num_ids * num_instances % 2:
        raise ValueError(
            f"method.tgsa_cross='mix' with {num_ids} x {num_instances} = "
            f"{num_ids * num_instances} images of a modality: the two halves need an even number; "
            "change sampler.num_ids"
        )
    if discriminator_input == "purified" and not purifier:
        raise ValueError("method.discriminator_input='purified' needs method.purifier=True")
    if purifier and enhance_head == "raw" and not specific_weight:
        raise ValueError(
            "method.enhance_head='raw' with method.specific_weight=0: nothing would teach that "
            "classifier; choose enhance_head=own, or a weight"
        )
    return Method(common.initialize(net, image_size), loss, common.embed(net))


def _rows(x: jax.Array) -> jax.Array:
    """[B, 2, D] -> [2B, D]."""
    return x.reshape(-1, x.shape[-1])


def _by_modality(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, 2, D] -> visible and infrared rows, [B, D] each."""
    return x[:, VISIBLE], x[:, INFRARED]
