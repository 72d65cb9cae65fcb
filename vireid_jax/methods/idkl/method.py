"""IDKL: Implicit Discriminative Knowledge Learning (Ren and Zhang, CVPR 2024).

Two branches over common first stages: one to share what modalities have in common (its features
must not betray the modality), one to keep what is specific to them (its features must). The
specific features are purified of style by masks guided by instance normalization, and what
they know is distilled into the shared ones, which alone are used at test time.

  term            equation  function                        weight in the total (eq. 21)
  id_sh, tri_sh   5         losses.identity, .triplet       1
  id_sp, tri_sp   5         of raw specific features        specific_weight
  confuser        2, 4      2-class cross-entropy           confuser_weight
  discriminator   3, 4      2-class cross-entropy           discriminator_weight
  id_purified,    13        of purified specific features   purified_weight
  tri_purified
  e, r            10, 11    losses.purify                   lambda_1, ip_weight
  tgsa            16, 17    losses.distill                  lambda_2, tgsa_weight
  csa             19        losses.distill                  lambda_3, csa_weight
  mdr_tgsa        20        losses.distill, first part      mdr_tgsa_weight
  mdr_csa         20        losses.distill, second part     mdr_csa_weight
  csa_block,      -         the released code's alone       block_weight times that of csa, mdr_csa
  mdr_csa_block

Paper and released code (1KK077/IDKL at 8676b62) are materially different methods. The defaults of
`build` follow the paper where it is definite and the code where the paper is silent, as
docs/idkl.md argues; `configs/idkl.py:DATASET,official` sets every option to what the code does.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vireid_jax.losses import triplet
from vireid_jax.losses.distance import safe_norm
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.idkl import distill, purifier, purify
from vireid_jax.methods.idkl.net import IDKLNet
from vireid_jax.methods.idkl.reversal import ramp
from vireid_jax.types import INFRARED, VISIBLE, Aux, Batch, Method, Variables

CONFUSERS = ("reversal", "half_flip")
STAGES = ("neck", "layer3", "layer4")


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_steps: int,
    num_ids: int,
    num_instances: int,
    backbone: Backbone = Backbone(),
    tri_margin: float = 1.3,
    specific_weight: float = 1.0,
    confuser: str = "reversal",
    confuser_weight: float = 1.0,
    reversal_strength: float = 1.0,
    reversal_ramp: bool = False,
    discriminator_weight: float = 1.0,
    discriminator_input: str = "sp",
    modality_stages: Sequence[str] = ("neck",),
    modality_dropout: float = 0.5,
    purify_form: str = "masks",
    mask: str = "channel",
    in_affine: bool = True,
    purified_weight: float = 1.0,
    ip_weight: float = 0.1,
    e_form: str = "softplus",
    e_head: str = "raw",
    e_stop_reference: bool = False,
    r_form: str = "softplus",
    r_relative: bool = False,
    distilled: str = "purified",
    tgsa_weight: float = 0.6,
    tgsa_pairs: str = "all",
    tgsa_cross: str = "true",
    tgsa_drop_self: bool = True,
    tgsa_temperature: float = 1.0,
    tgsa_scale: str = "none",
    csa_weight: float = 0.8,
    mdr_tgsa_weight: float = 1.0,
    mdr_csa_weight: float = 1.0,
    block_weight: float = 0.0,
    kl: str = "symmetric",
    kl_reduction: str = "mean",
    stop_teacher: bool = False,
) -> Method:
    """IDKL as a `Method`; the defaults are the preset "paper".

    Args:
      num_classes: C, identities in training.
      image_size: (height, width).
      num_steps: of the whole training, for reversal_ramp.
      num_ids, num_instances: P and K of a batch, K images of each modality.
      backbone: see `common.Backbone`.
      tri_margin: of the batch-hard triplet loss, on features before the neck; the code's.
      specific_weight: of id_sp and tri_sp, the ID and triplet losses of raw specific features
        (eq. 5); 0 as in the code, which has none.
      confuser: "reversal" (eq. 2): true modality labels behind a gradient reversal; "half_flip",
        the code's: no reversal, and half of each modality's labels turned over.
      confuser_weight, discriminator_weight: 1 in eqs. 5 and 6.
      reversal_strength, reversal_ramp: what the gradient is multiplied by behind its sign, from
        the start or after `nets.reversal.ramp`.
      discriminator_input: "sp" raw specific features, or "purified" ones as in the code.
      modality_stages: where the modality heads are: ("neck",) one after the BN neck; or of
        ("layer3", "layer4") one at each on pooled maps: the paper's sum over j.
      modality_dropout: probability, in those heads.
      purify_form: "masks" (eqs. 7 to 12) or "none": the purified features are the raw ones, and
        the terms of eq. 13 are left out (row 2 of the paper's table 4).
      mask, in_affine: see `nets.purifier`.
      purified_weight: of id_purified and tri_purified; 1 in the code, lambda_1 in eq. 21.
      ip_weight: lambda_1, of e and r.
      e_form: "softplus" (eq. 10) or "exponential" (the code's), see `losses.purify`.
      e_head: the classifier in e: "raw" that of f_sp, which learns to classify it; "own" one that
        only this loss trains, without a neck, as in the code.
      e_stop_reference: no gradient through the entropy of f_sp, for whose doubt e_head is
        rewarded otherwise.
      r_form, r_relative: see `losses.purify.reducing_loss`.
      distilled: "purified" features teach the shared ones (sec. 3.3), or "raw" specific ones, as
        eqs. 17 to 19 are typeset.
      tgsa_weight, csa_weight: lambda_2 and lambda_3, between the branches.
      tgsa_pairs: of tgsa; mdr_tgsa always has all three.
      tgsa_cross, tgsa_drop_self, tgsa_temperature, tgsa_scale: see `losses.distill`.
      mdr_tgsa_weight, mdr_csa_weight: of the two parts of eq. 20; 1 in the paper.
      block_weight: of the code's block-wise copies of csa and mdr_csa, times their weights; 0
        leaves them out, 1 is the code.
      kl, kl_reduction: see `losses.distill.divergence`, of all distillation terms.
      stop_teacher: no gradient from tgsa and csa to the specific branch.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    common.check(
        choices={
            "confuser": (confuser, CONFUSERS),
            "discriminator_input": (discriminator_input, ("sp", "purified")),
            "purify_form": (purify_form, ("masks", "none")),
            "mask": (mask, purifier.MASKS),
            "e_form": (e_form, purify.ENHANCING_FORMS),
            "e_head": (e_head, ("raw", "own")),
            "r_form": (r_form, purify.REDUCING_FORMS),
            "distilled": (distilled, ("purified", "raw")),
            "tgsa_pairs": (tgsa_pairs, distill.PAIRS),
            "tgsa_cross": (tgsa_cross, distill.CROSSES),
            "tgsa_scale": (tgsa_scale, distill.SCALES),
            "kl": (kl, distill.DIRECTIONS),
            "kl_reduction": (kl_reduction, distill.REDUCTIONS),
        },
        not_negative=dict(
            tri_margin=tri_margin,
            specific_weight=specific_weight,
            confuser_weight=confuser_weight,
            reversal_strength=reversal_strength,
            discriminator_weight=discriminator_weight,
            purified_weight=purified_weight,
            ip_weight=ip_weight,
            tgsa_weight=tgsa_weight,
            csa_weight=csa_weight,
            mdr_tgsa_weight=mdr_tgsa_weight,
            mdr_csa_weight=mdr_csa_weight,
            block_weight=block_weight,
        ),
        num_classes=num_classes,
        num_ids=num_ids,
        backbone=backbone,
    )
    stages = _check_stages(modality_stages)
    if not 0 <= modality_dropout < 1:
        raise ValueError(f"method.modality_dropout is {modality_dropout}, expected 0 to below 1")
    if not tgsa_temperature > 0:
        raise ValueError(f"method.tgsa_temperature is {tgsa_temperature}, expected above 0")
    rows = num_ids * num_instances
    if tgsa_cross == "mix" and rows % 2:
        raise ValueError(
            f"method.tgsa_cross='mix' with {num_ids} x {num_instances} = {rows} images of a "
            "modality: the two halves need an even number; change sampler.num_ids"
        )
    if purify_form == "none" and discriminator_input == "purified":
        raise ValueError("method.discriminator_input='purified' needs method.purify_form='masks'")
    if discriminator_input == "purified" and "neck" not in stages:
        raise ValueError(
            "method.discriminator_input='purified' needs 'neck' in method.modality_stages: stages "
            "come before the purifier"
        )
    purifies = purify_form == "masks"
    teacher = "purified" if purifies and distilled == "purified" else "sp"
    # eq. 21; what has weight 0 is left out, and so are its parameters.
    weights = {
        **dict.fromkeys(("id_sh", "tri_sh"), 1.0),
        **dict.fromkeys(("id_sp", "tri_sp"), specific_weight),
        "confuser": confuser_weight,
        "discriminator": discriminator_weight,
        **dict.fromkeys(("id_purified", "tri_purified"), purified_weight * purifies),
        **dict.fromkeys(("e", "r"), ip_weight * purifies),
        "tgsa": tgsa_weight,
        "csa": csa_weight,
        "mdr_tgsa": mdr_tgsa_weight,
        "mdr_csa": mdr_csa_weight,
        "csa_block": csa_weight * block_weight,
        "mdr_csa_block": mdr_csa_weight * block_weight,
    }
    weights = {name: w for name, w in weights.items() if w}
    judged = "e" in weights and e_head == "raw"
    discriminated = discriminator_input if "discriminator" in weights else None
    classified = {"sh"}
    classified |= {name for name in ("sp", "purified") if f"id_{name}" in weights}
    classified |= {"sp"} if judged else set()
    classified |= {teacher} if {"csa", "csa_block"} & set(weights) else set()
    classified |= {discriminated} if discriminated and "neck" in stages else set()
    if judged and not specific_weight:
        raise ValueError(
            "method.e_head='raw' with method.specific_weight=0: nothing would teach that "
            "classifier; choose e_head=own, or a weight"
        )
    taught = {teacher} if "tgsa" in weights else set()
    needs_purifier = "e" in weights or "purified" in {*classified, discriminated, *taught}
    net = IDKLNet(
        num_classes=num_classes,
        backbone_options=backbone.resnet_options(),
        purifier_options=dict(mask=mask, affine=in_affine, dtype=backbone.compute)
        if needs_purifier
        else None,
        classified=tuple(sorted(classified, key=("sh", "sp", "purified").index)),
        entropy_head=e_head if "e" in weights else None,
        discriminated=discriminated,
        confused="confuser" in weights,
        modality_stages=stages,
        reverses=confuser == "reversal",
        dropout=modality_dropout,
    )
    compare = partial(distill.divergence, direction=kl, reduction=kl_reduction)
    align = partial(
        distill.graph_alignment,
        cross=tgsa_cross,
        drop_self=tgsa_drop_self,
        temperature=tgsa_temperature,
        scale=tgsa_scale,
        direction=kl,
        reduction=kl_reduction,
    )

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        strength = reversal_strength * (ramp(step, num_steps) if reversal_ramp else 1.0)

        images = (batch["visible"], batch["infrared"])
        out, updates = common.train_pass(
            net, backbone, variables, images, key, strength, stream="dropout"
        )
        labels, pool, logits = batch["label"], out["pool"], out["logits"]
        person = jnp.repeat(labels, 2)  # of row 2b + m, as in all arrays [2B, ...]
        modality = jnp.tile(jnp.arange(2), len(labels))
        terms: dict[str, Any] = {}
        for name in ("sh", "sp", "purified"):
            if f"id_{name}" in weights:
                terms[f"id_{name}"] = cross_entropy(_flat(logits[name]), person)
                terms[f"tri_{name}"] = triplet.batch_hard_triplet(
                    pool[name], labels, margin=tri_margin
                )
        scalars = {
            "accuracy": accuracy(_flat(logits["sh"]), person),
            "feature_norm": safe_norm(pool["sh"]).mean(),  # tgsa falls with it
        }
        for name in ("confuser", "discriminator"):
            if name in weights:
                told = modality
                if name == "confuser" and confuser == "half_flip":
                    told = half_flipped(len(labels))
                terms[name] = sum(cross_entropy(x, told) for x in out[name])
                scalars[f"accuracy_{name}"] = accuracy(out[name][-1], modality)
        if "e" in weights:
            plain = out["plain"]
            terms["e"] = purify.enhancing_loss(
                out["enhanced"],
                jax.lax.stop_gradient(plain) if e_stop_reference else plain,
                form=e_form,
            )
            terms["r"] = purify.reducing_loss(
                out["reduced"], out["normalized"], labels, form=r_form, relative=r_relative
            )
        hold = jax.lax.stop_gradient if stop_teacher else (lambda x: x)
        both = (VISIBLE, INFRARED)
        if "tgsa" in weights:  # eq. 17
            f_sh, f_sp = pool["sh"], hold(pool[teacher])
            terms["tgsa"] = sum(align(f_sp[:, m], f_sh[:, m], pairs=tgsa_pairs) for m in both)
        if "mdr_tgsa" in weights:  # eq. 20
            terms["mdr_tgsa"] = align(pool["sh"][:, VISIBLE], pool["sh"][:, INFRARED])
        for suffix, view in (
            ("", lambda z: z),
            ("_block", partial(distill.by_instance, num_instances=num_instances)),
        ):
            z_sh = [view(logits["sh"][:, m]) for m in both]
            if f"csa{suffix}" in weights:  # eq. 19
                z_sp = [view(hold(logits[teacher][:, m])) for m in both]
                terms[f"csa{suffix}"] = sum(map(compare, z_sh, z_sp))
            if f"mdr_csa{suffix}" in weights:  # eq. 20
                terms[f"mdr_csa{suffix}"] = compare(*z_sh)
        return common.total(weights, terms), Aux(terms, dict(updates), scalars)

    return Method(common.initialize(net, image_size, rows=rows), loss, common.embed(net))


def half_flipped(rows: int) -> jax.Array:
    """The code's labels for its confuser: half of each modality turned over, int32 [2 * rows].

    In the order of the released sampler (infrared first, alternating) they are the first half of
    the true labels 1, 0, 1, 0, ..., each twice, rolled left by one: 1, 0, 0, 1, repeated. So
    infrared is told 1 in even rows, visible in odd ones; of an odd number of rows the last
    visible one is told 1 too. Returned for row 2b + m of image b of modality m.
    """
    infrared = (jnp.arange(rows) + 1) % 2
    return jnp.stack([jnp.roll(infrared, -1), infrared], 1).reshape(-1).astype(jnp.int32)


def _flat(x: jax.Array) -> jax.Array:
    return x.reshape(-1, x.shape[-1])


def _check_stages(stages: Sequence[str]) -> tuple[str, ...]:
    found = (stages,) if isinstance(stages, str) else tuple(stages)
    if not found or len(set(found)) < len(found) or set(found) - set(STAGES):
        raise ValueError(
            f"method.modality_stages is {stages!r}, expected ('neck',), or of {list(STAGES)} each "
            "at most once"
        )
    return found
