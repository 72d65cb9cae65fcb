"""MUN: Modality Unifying Network (Yu et al., ICCV 2023).

Each modality has the first stage of a ResNet of its own. From the two maps of a pair a
generator makes a third, the auxiliary modality: intra-modality learners (IML, eqs. 1-5)
refine each map, a cross-modality learner (CML, eqs. 6-9) merges them over several scales.
All three pass the shared stages. At test time an image passes its own first stage and the
shared ones; generator and prototypes are there in training alone.

    term          equation  function                  weight in the total (eq. 17)
    id_visible    10        cross_entropy             1
    id_infrared   10        cross_entropy             1
    tri           -         batch_hard_triplet        1
    idc           11        cross_entropy             gamma, idc_weight
    ida           table 1   cross_entropy             ida_weight; the row "+Aux" alone
    ia            12        alignment_loss            theta, ia_weight
    ma            13-16     prototype_loss            sigma, ma_weight

No code was released. docs/fidelity.md says how the paper is read where it leaves something open.

Symbols: Z pooled features, C centers of an identity, T prototypes; v / r / a the
modalities visible, infrared and auxiliary, in this order wherever features are [B, 3, D].
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vireid_jax.losses.distance import safe_norm, unit
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.losses.triplet import batch_hard_triplet
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.mun import generator
from vireid_jax.methods.mun.losses import accumulated, alignment_loss, beta_of, prototype_loss
from vireid_jax.methods.mun.net import MUNNet
from vireid_jax.nets import auxiliary as images_of
from vireid_jax.types import STEMS, Aux, Batch, Method, Variables

KINDS = ("none", *images_of.IMAGE_KINDS, "mun")


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_steps: int,
    num_ids: int,
    num_instances: int,
    backbone: Backbone = Backbone(),
    specific: int = 2,
    auxiliary: str = "mun",
    smgm_width: int = 16,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    generator_ratios: Sequence[int] = generator.RATIOS,
    generator_form: str = "direct",
    generator_remat: bool = False,
    normalize: bool = False,
    tri_margin: float = 0.3,
    idc_weight: float = 0.25,
    ida_weight: float = 0.0,
    ia_weight: float = 0.5,
    ia_margin: float = 0.55,
    ma_weight: float = 0.008,
    prototypes: bool = True,
    bridge: bool = True,
) -> Method:
    """MUN as a `Method`; the defaults are the paper's recipe.

    Args:
      num_classes, image_size: C, identities in training; (height, width).
      num_steps: of the whole training; beta reaches 1 at the last one.
      num_ids, num_instances: P and K of a batch; the prototypes are tied to them.
      backbone: see `common.Backbone`.
      specific: leading stages of each modality: 2 is the stem and layer1, 1 the stem alone.
        The paper says that the first stage is made of residual blocks.
      auxiliary: source of the auxiliary modality (table 2): "mun", the generator; the images "x",
        "gray", "mixed", "syncretic" of `nets.auxiliary`, with a first stage of their own; or
        "none": the baseline of table 1, without the terms idc, ida, ia and ma.
      smgm_width, smgm_init, smgm_input: of "syncretic", see `nets.auxiliary.SMGM`.
      generator_ratios, generator_form, generator_remat: of "mun", see `generator`.
      normalize: unit-length features in tri and ia; the paper states none.
      tri_margin: of the triplet loss.
      idc_weight, ia_weight, ma_weight: gamma, theta and sigma of eq. 17; a term of weight 0 is
        left out, and so are its parameters.
      ida_weight: of a classifier of auxiliary features alone, table 1's row "+Aux".
      ia_margin: alpha of eq. 12.
      prototypes: False compares the features themselves in ma (table 3).
      bridge: compare v and r with the auxiliary modality, not with each other (table 3).

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    numbers = ("tri_margin", "idc_weight", "ida_weight", "ia_weight", "ia_margin", "ma_weight")
    common.check(locals(), not_negative=numbers)
    if specific not in (1, 2):
        raise ValueError(f"method.specific is {specific}, expected 1 (the stem) or 2 (and layer1)")
    if not isinstance(generator_remat, bool):
        raise ValueError(f"method.generator_remat is {generator_remat!r}, expected True or False")
    smgm: dict[str, Any] = dict(smgm_width=smgm_width, smgm_init=smgm_init, smgm_input=smgm_input)
    images_of.check(auxiliary, KINDS, **smgm)
    if auxiliary == "mun":
        channels = backbone.width if specific == 1 else backbone.features // 8
        maps = generator_ratios, generator_form, backbone.bn_groups
        generator.check(image_size, channels, *maps)
    l_ma = partial(prototype_loss, num_instances=num_instances, bridge=bridge)  # eqs. 15-16
    learners: dict[str, Any] = dict(
        ratios=generator_ratios, form=generator_form, remat=generator_remat
    )
    weights = dict.fromkeys(("id_visible", "id_infrared", "tri"), 1.0)  # eq. 17
    optional = dict(idc=idc_weight, ida=ida_weight, ia=ia_weight, ma=ma_weight)
    weights |= {name: w for name, w in optional.items() if w and auxiliary != "none"}
    remembers = "ma" in weights and prototypes
    net = MUNNet(
        num_classes,
        backbone.features,
        {**backbone.resnet_options(), "specific": specific},
        auxiliary,
        learners if auxiliary == "mun" else smgm,
        auxiliary_classifier="ida" in weights,
        prototypes=remembers,
    )

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        state = {name: x for name, x in variables.items() if name != "memory"}
        images = [batch["visible"], batch["infrared"]]
        out, updates = common.train_pass(net, backbone, state, images, key)
        z, logits, labels = out["pool"], out["logits"], batch["label"]
        z_vr = jnp.stack([z["visible"], z["infrared"]], 1)

        def classified(classifier: str, modality: str) -> jax.Array:
            return cross_entropy(logits[classifier, modality], labels)

        terms = {
            "id_visible": classified("visible", "visible"),  # eq. 10
            "id_infrared": classified("infrared", "infrared"),  # eq. 10
            "tri": batch_hard_triplet(unit(z_vr) if normalize else z_vr, labels, margin=tri_margin),
        }
        if "idc" in weights:  # eq. 11
            terms["idc"] = classified("visible", "auxiliary") + classified("infrared", "auxiliary")
        if "ida" in weights:  # table 1
            terms["ida"] = classified("auxiliary", "auxiliary")
        if "ia" in weights:  # eq. 12
            aligned = jnp.stack([unit(z[m]) if normalize else z[m] for m in STEMS], 1)
            terms["ia"] = alignment_loss(aligned, labels, margin=ia_margin)
        scalars = {
            "accuracy_visible": accuracy(logits["visible", "visible"], labels),
            "accuracy_infrared": accuracy(logits["infrared", "infrared"], labels),
            "feature_norm": safe_norm(z_vr).mean(),
        }
        if "ma" in weights:
            t = jnp.stack([z[m] for m in STEMS], 1)
            if remembers:
                # The maps W can bring prototypes together while the features stay apart.
                scalars["ma_features"] = l_ma(t)
                mapped: Any = net.apply(state, z, method="mapped")  # W Z
                beta = scalars["beta"] = beta_of(step, num_steps)
                t, kept = accumulated(variables["memory"]["prototype"], mapped, beta)  # eqs. 13-14
                updates = {**updates, "memory": {"prototype": kept}}
            terms["ma"] = l_ma(t)
        if auxiliary == "mun":
            for name, part in state["params"]["auxiliary"].items():
                scalars[f"scale_{name}"] = part["layer_scale"].mean()
        return common.total(weights, terms), Aux(terms, dict(updates), scalars)  # eq. 17

    def initialize(key: Any) -> Variables:
        variables = common.initialize(net, image_size)(key)
        if not remembers:
            return variables
        shape = (num_ids * num_instances, 3, backbone.features)
        return {**variables, "memory": {"prototype": jnp.zeros(shape)}}

    def embed(variables: Variables, images: Any, modality: int) -> dict[str, Any]:
        state = {name: x for name, x in variables.items() if name != "memory"}
        return common.embed(net)(state, images, modality)

    project = generator.project_scales if auxiliary == "mun" else None
    return Method(initialize, loss, embed, project=project)
