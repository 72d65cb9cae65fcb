"""MUN: Modality Unifying Network (Yu et al., ICCV 2023).

Each modality has the first stage of a ResNet of its own. From the two maps of a pair a
generator makes a third, the auxiliary modality: intra-modality learners (IML, eqs. 1-5)
refine each map, a cross-modality learner (CML, eqs. 6-9) merges them over several scales.
All three pass the shared stages. At test time an image passes its own first stage and the
shared ones; generator and prototypes are there in training alone.

  term          equation  function                  weight in the total (eq. 17)
  id_visible    10        losses.cross_entropy      1
  id_infrared   10        losses.cross_entropy      1
  tri           -         losses.triplet            1
  idc           11        losses.cross_entropy      gamma, idc_weight
  ia            12        losses.alignment          theta, ia_weight
  ma            13-16     losses.alignment          sigma, ma_weight
  ida           table 1   losses.cross_entropy      ida_weight; the row "+Aux" alone

No code was released. What the paper leaves open is an option of `build`, named in its
docstring with the default that docs/fidelity.md argues for.

Symbols: Z pooled features, C centers of an identity, T prototypes; v / r / a the
modalities visible, infrared and auxiliary, in this order wherever features are [B, 3, D].
"""

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from vireid_jax.losses import triplet
from vireid_jax.losses.distance import safe_norm, unit
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.mun import alignment, mmd
from vireid_jax.methods.mun.net import MUNNet
from vireid_jax.nets import auxiliary as aux
from vireid_jax.types import AUXILIARY, STEMS, VISIBLE, Aux, Batch, Method, Variables


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_steps: int,
    num_ids: int,
    num_instances: int,
    second_view: bool = False,
    backbone: Backbone = Backbone(),
    specific: int = 2,
    auxiliary: str = "mun",
    aux_stem: str = "own",
    smgm_width: int = 16,
    smgm_shared: bool = True,
    smgm_init: str = "kaiming",
    smgm_input: str = "standardized",
    x_width: int = 1,
    x_input: str = "unit",
    mix: str = "half",
    generator: Mapping[str, Any] = MappingProxyType({}),
    shared_input: str = "raw",
    gem_p: float = 3.0,
    gem_learned: bool = False,
    neck: str = "shared",
    tri: str = "vr",
    tri_form: str = "hard",
    tri_margin: float = 0.3,
    tri_normalize: bool = False,
    idc_weight: float = 0.25,
    ida_weight: float = 0.0,
    ia_weight: float = 0.5,
    ma_weight: float = 0.008,
    ia_margin: float = 0.55,
    ia_form: str = "hinge",
    ia_normalize: bool = False,
    prototypes: str = "slot",
    prototype_map: str = "linear",
    beta_schedule: str = "linear",
    beta_role: str = "new",
    beta_first: str = "full",
    bridge: bool = True,
    mmd_bandwidth: str = "adaptive",
    mmd_sigma: float = 1.0,
    bn_running: str = "all",
) -> Method:
    """MUN as a `Method`; the defaults are the paper's recipe.

    Args:
      num_classes: C, identities in training.
      image_size: (height, width).
      num_steps: of the whole training; beta reaches 1 at the last one.
      num_ids, num_instances: P and K of a batch; the prototypes are tied to them.
      second_view: batches have a second view of the visible images (`augment.second_view`, CAJ's
        joint learning); it joins id_visible, tri and the visible centers of ia.
      backbone: see `common.Backbone`.
      specific: leading stages of each modality: 2 is the stem and layer1, 1 the stem alone.
        The paper says that the first stage is made of residual blocks.
      auxiliary: source of the auxiliary modality (table 2), see `nets.auxiliary`: "mun", the
        generator; the images "x", "gray", "mixed", "syncretic"; or "none": the baseline of
        table 1, without the terms idc, ida, ia and ma.
      aux_stem: the first stage of an auxiliary image: its "own" copy or the "visible" one.
      smgm_width, smgm_shared, smgm_init, smgm_input, x_width, x_input, mix, generator: see
        `nets.auxiliary.make`; `generator` holds the options of the paper's own one.
      shared_input: what enters the shared stages for v and r: "raw" maps of the first stage,
        or those "refined" by the intra-modality learners, at test time too.
      gem_p, gem_learned: the exponent of GeM pooling, fixed or learned.
      neck: one BN neck "shared" by the modalities before the classifiers, or "none".
      tri: rows of the triplet loss: "vr", or "vra" with the auxiliary modality.
      tri_form: "hard" (batch-hard, tri_margin) or "weighted" (AGW's, without margin).
      tri_normalize: of features of unit length; the paper states none.
      idc_weight, ia_weight, ma_weight: gamma, theta and sigma of eq. 17; a term of weight 0 is
        left out, and so are its parameters.
      ida_weight: of a classifier of auxiliary features alone, table 1's row "+Aux".
      ia_margin, ia_form: see `losses.alignment.alignment_loss`.
      ia_normalize: centers of features of unit length; the paper states none.
      prototypes: "slot" (as printed), "identity" (a memory for each identity) or "none":
        ma compares the features themselves (table 3).
      prototype_map: W_p of eq. 13: "linear" maps of features, one a modality; one "shared";
        "frozen", the identity; or "slot": maps of the batch's rows, as eq. 13 reads literally.
      beta_schedule, beta_role: see `losses.alignment.new_weight`.
      beta_first: "full" lets the first step, whose beta is 1, teach; "stop" does not. Under
        prototypes="identity" the first appearance of a person after it teaches either way.
      bridge: compare v and r with the auxiliary modality, not with each other (table 3).
      mmd_bandwidth, mmd_sigma: see `losses.mmd.mmd`.
      bn_running: "all" or "vi": running statistics of the shared stages from v, r and a, or from
        v and r, which alone occur at test time. Batches are normalized over all either way.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    common.check(
        choices={
            "auxiliary": (auxiliary, aux.KINDS),
            "aux_stem": (aux_stem, ("own", "visible")),
            "shared_input": (shared_input, ("raw", "refined")),
            "neck": (neck, ("shared", "none")),
            "tri": (tri, ("vr", "vra")),
            "tri_form": (tri_form, ("hard", "weighted")),
            "ia_form": (ia_form, alignment.FORMS),
            "prototypes": (prototypes, ("slot", "identity", "none")),
            "prototype_map": (prototype_map, ("linear", "shared", "frozen", "slot")),
            "beta_schedule": (beta_schedule, ("linear", "geometric")),
            "beta_role": (beta_role, ("new", "memory")),
            "beta_first": (beta_first, ("full", "stop")),
            "mmd_bandwidth": (mmd_bandwidth, mmd.BANDWIDTHS),
            "bn_running": (bn_running, ("all", "vi")),
        },
        not_negative=dict(
            tri_margin=tri_margin,
            idc_weight=idc_weight,
            ida_weight=ida_weight,
            ia_weight=ia_weight,
            ma_weight=ma_weight,
            ia_margin=ia_margin,
        ),
        num_classes=num_classes,
        num_ids=num_ids,
        backbone=backbone,
    )
    if specific not in (1, 2):
        raise ValueError(f"method.specific is {specific}, expected 1 (the stem) or 2 (and layer1)")
    if not gem_p >= 1:
        raise ValueError(f"method.gem_p is {gem_p}, expected 1 (the mean) or more")
    if not mmd_sigma > 0:
        raise ValueError(f"method.mmd_sigma is {mmd_sigma}, expected a squared distance above 0")
    auxiliary_options: dict[str, Any] = dict(
        smgm_width=smgm_width,
        smgm_shared=smgm_shared,
        smgm_init=smgm_init,
        smgm_input=smgm_input,
        x_width=x_width,
        x_input=x_input,
        mix=mix,
        generator=dict(generator),
    )
    channels = backbone.width if specific == 1 else backbone.features // 8
    aux.check(auxiliary, image_size=image_size, channels=channels, **auxiliary_options)
    with_auxiliary = auxiliary != "none"
    if shared_input == "refined" and auxiliary != "mun":
        raise ValueError("method.shared_input='refined' needs method.auxiliary='mun'")
    if shared_input == "refined" and second_view:
        raise ValueError(
            "method.shared_input='refined' with augment.second_view: the second view has no "
            "refined map; choose shared_input=raw or second_view=none"
        )
    # eq. 17; what has weight 0 is left out.
    optional = dict(idc=idc_weight, ida=ida_weight, ia=ia_weight, ma=ma_weight)
    weights = dict.fromkeys(("id_visible", "id_infrared", "tri"), 1.0)
    weights |= {name: w for name, w in optional.items() if w and with_auxiliary}
    remembers = "ma" in weights and prototypes != "none"
    rows, features = num_ids * num_instances, backbone.features
    real = 3 if second_view else 2  # modalities that are not generated come first
    running = (real + 1, real) if with_auxiliary and bn_running == "vi" else None
    net = MUNNet(
        num_classes=num_classes,
        rows=rows,
        backbone_options={
            **backbone.resnet_options(),
            "specific": specific,
            "running": running,
        },
        auxiliary_kind=auxiliary,
        auxiliary_options={**backbone.module_options(), **auxiliary_options},
        auxiliary_stem=AUXILIARY if aux_stem == "own" else VISIBLE,
        auxiliary_classifier="ida" in weights,
        refined=shared_input == "refined",
        gem_p=gem_p,
        gem_learned=gem_learned,
        with_neck=neck == "shared",
        neck_running=running,
        prototype_map=prototype_map if remembers else None,
    )
    remember = {"slot": alignment.by_slot, "identity": alignment.by_identity}
    scale_form = generator.get("scale_form", "project")
    projects = auxiliary == "mun" and scale_form == "project"

    def initialize(key: Any) -> Variables:
        variables = common.initialize(net, image_size, rows=rows)(key)
        if not remembers:
            return variables
        shape = (num_classes, num_instances, 3, features)
        memory = {
            "slot": {"prototype": jnp.zeros((rows, 3, features))},
            "identity": {"prototype": jnp.zeros(shape), "seen": jnp.zeros(num_classes, bool)},
        }
        return {**variables, "memory": memory[prototypes]}

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        state = dict(variables)
        memory = state.pop("memory", {})
        images = [batch["visible"], batch["infrared"]]
        if second_view:
            images.append(batch["visible_second"])
        out, updates = common.train_pass(net, backbone, state, images, key, stream="auxiliary")
        labels, pool, logits = batch["label"], out["pool"], out["logits"]
        visible = [name for name in ("visible", "second") if name in pool]

        def classified(classifier: str, *names: str) -> jax.Array:
            each = [cross_entropy(logits[classifier, name], labels) for name in names]
            return sum(each[1:], each[0]) / len(each)

        terms = {
            "id_visible": classified("visible", *visible),  # eq. 10
            "id_infrared": classified("infrared", "infrared"),
        }
        third = ["auxiliary"] if with_auxiliary and tri == "vra" else []
        compared = [*visible, "infrared", *third]
        z = jnp.stack([pool[name] for name in compared], 1)
        rows_of = unit(z) if tri_normalize else z
        terms["tri"] = (
            triplet.batch_hard_triplet(rows_of, labels, margin=tri_margin)
            if tri_form == "hard"
            else triplet.weighted_regularized_triplet(rows_of, labels)
        )
        if "idc" in weights:  # eq. 11
            terms["idc"] = classified("visible", "auxiliary") + classified("infrared", "auxiliary")
        if "ida" in weights:
            terms["ida"] = classified("auxiliary", "auxiliary")
        if "ia" in weights:
            aligned = {m: unit(x) if ia_normalize else x for m, x in pool.items()}
            center = sum(aligned[name] for name in visible) / len(visible)
            terms["ia"] = alignment.alignment_loss(
                jnp.stack([center, aligned["infrared"], aligned["auxiliary"]], 1),
                labels,
                margin=ia_margin,
                form=ia_form,
            )
        scalars = {
            "accuracy_visible": accuracy(logits["visible", "visible"], labels),
            "accuracy_infrared": accuracy(logits["infrared", "infrared"], labels),
            "feature_norm": safe_norm(z).mean(),  # a loss without hinge makes it grow
        }
        if "ma" in weights:
            compare = partial(
                alignment.prototype_loss,
                num_instances=num_instances,
                bridge=bridge,
                bandwidth=mmd_bandwidth,
                sigma=mmd_sigma,
            )
            plain = prototype = jnp.stack([pool[name] for name in STEMS], 1)
            if remembers:
                share = alignment.new_weight(
                    step, num_steps, schedule=beta_schedule, role=beta_role
                )
                # Of all rows, which prototype_map="slot" mixes.
                mapped: Any = net.apply(state, pool, method="mapped")
                if beta_first == "stop":
                    mapped = jnp.where(step == 0, jax.lax.stop_gradient(mapped), mapped)
                prototype, memory = remember[prototypes](memory, mapped, labels, share)
                # The maps can bring prototypes together while the features stay apart.
                scalars |= {"new_weight": share, "ma_features": compare(plain)}
            terms["ma"] = compare(prototype)
        if auxiliary == "mun":
            for name, part in state["params"]["auxiliary"].items():
                scalars[f"scale_{name}"] = aux.layer_scale(part["layer_scale"], scale_form).mean()
        kept = {"memory": memory} if remembers else {}
        return common.total(weights, terms), Aux(terms, {**updates, **kept}, scalars)

    def embed(variables: Variables, images: Any, modality: int) -> dict[str, Any]:
        state = {k: v for k, v in variables.items() if k != "memory"}
        return net.apply(state, images, modality, method="embed")  # type: ignore[return-value]

    return Method(initialize, loss, embed, project=aux.project_scales if projects else None)
