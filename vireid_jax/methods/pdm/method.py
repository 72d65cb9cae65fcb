"""PDM: Prototype-Driven Multi-feature generation (Li et al., ICASSP 2025).

DEEN's network with more attention: each image becomes 1 + G feature maps before the last stage
(MFGM), and learned prototypes pool parts of each map (PLM), which with the global feature F_g are
the full feature F.

  term       equation  function                             weight in the total (eqs. 11 and 12)
  id_full    -         cross-entropy of F                   1
  id_global  -         cross-entropy of F_g; code alone     id_global_weight
  tri        -         losses.triplet, of F_g               1
  cpm        3-5       losses.pairmining, over branches     cpm_weight
  ch         9         losses.pairmining                    ch_weight
  dcs        10        losses.pairmining                    dcs_weight
  ort        -         losses.pairmining; code alone        ort_weight

Paper and released code (mmunhappy/ICASSP2025-PDM at b668901, train_pdm_os.py) differ: see
docs/fidelity.md. The defaults of `build` are the code, with which the printed numbers were
presumably made; `configs/pdm.py:DATASET,paper` sets every option to what the paper says.
"""

from typing import Any

import jax.numpy as jnp

from vireid_jax.losses import pairmining, triplet
from vireid_jax.losses.distance import safe_norm, unit
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.nets import expansion, multifeature, prototypes
from vireid_jax.nets.multifeature import MultiFeatureNet
from vireid_jax.types import Aux, Batch, Method, Variables

# The two similarities of the code's test; the paper does not say which it reports.
FUSIONS = {"sum": {"globals": 1.0, "fulls": 1.0}, "weighted": {"globals": 0.1, "fulls": 0.9}}


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_ids: int,
    backbone: Backbone = Backbone(),
    stages: int = 4,
    mfa: bool = True,
    gate: bool = True,
    phase_residual: float = 0.0,
    dropout: float = 0.01,
    branches: int = 2,
    expansion_fuse: str = "mean",
    attention: str = "sequential",
    attention_kernel: int = 49,
    attention_form: str = "auto",
    num_prototypes: int = 10,
    prototype_pool: str = "plain",
    id_global_weight: float = 1.0,
    tri_form: str = "hard",
    tri_margin: float = 0.3,
    tri_features: str = "global",
    tri_normalize: bool = False,
    cpm_form: str = "three",
    cpm_others: str = "nearest",
    cpm_features: str = "both",
    cpm_margin: float = 0.2,
    cpm_weight: float = 0.4,
    ch_form: str = "code_rms",
    ch_weight: float = 0.25,
    dcs_features: str = "full",
    dcs_pull_margin: float = 0.01,
    dcs_push_margin: float = 0.7,
    dcs_weight: float = 1.0,
    center_normalize: bool = False,
    ort_weight: float = 0.01,
) -> Method:
    """PDM as a `Method`; the defaults are the released code but for `phase_residual`.

    Args:
      num_classes: C, identities in training.
      image_size: (height, width); with `mfa` the maps must have an even number of places.
      num_ids: P of a batch.
      backbone: see `common.Backbone`.
      stages: 4; or 3, the code's network for RegDB: it ends with layer3 and generates after layer2.
      mfa: DEEN's aggregation blocks; gate: SimAM after the stems. Both in the code alone.
      phase_residual: of `nets.shallow.phase_only`, added to the images of training; 0.8 in the
        code, where its root mean square is 0.3 % of the image's.
      dropout: of all entries of the maps after MFGM, the image's own too; the code's.
      branches: G of MFGM, which the paper does not give; 0 leaves MFGM out, with cpm and ort.
      expansion_fuse, attention, attention_kernel, attention_form: see `nets.expansion`.
      num_prototypes: m; 0 leaves the PLM out, and F is F_g.
      prototype_pool: see `nets.prototypes`.
      id_global_weight: of a classifier of F_g beside that of F; 0 in the paper. Without a PLM
        there is one identity loss, and this is of no effect.
      tri_form: "hard" (batch-hard, tri_margin) or "weighted" (AGW's).
      tri_features: "global", or "both": of F too, as in the code's train_pdm.py.
      tri_normalize: of features of unit length; ours, for networks from random weights.
      cpm_form, cpm_others, cpm_margin: see `losses.pairmining.center_pair_mining`.
      cpm_features: of which it is summed: "both" F_g and F, or "global".
      ch_form: see `losses.pairmining.heterogeneity`; its terms differ in sign and scale, and the
        weight of the code's form is 0.25, of the others 1.
      dcs_features: "full" or "global".
      dcs_pull_margin, dcs_push_margin: rho1 and rho2 of eq. 10, in units of the distance.
      center_normalize: cpm, dcs and ort of features of unit length; ours, as tri_normalize.
      cpm_weight, ch_weight, dcs_weight, ort_weight: 0 leaves a term out.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    common.check(
        choices={
            "prototype_pool": (prototype_pool, prototypes.POOLED),
            "tri_form": (tri_form, ("hard", "weighted")),
            "tri_features": (tri_features, ("global", "both")),
            "cpm_form": (cpm_form, pairmining.CPM_FORMS),
            "cpm_others": (cpm_others, pairmining.OTHERS),
            "cpm_features": (cpm_features, ("both", "global")),
            "ch_form": (ch_form, pairmining.CH_FORMS),
            "dcs_features": (dcs_features, ("full", "global")),
        },
        not_negative=dict(
            phase_residual=phase_residual,
            num_prototypes=num_prototypes,
            id_global_weight=id_global_weight,
            tri_margin=tri_margin,
            cpm_margin=cpm_margin,
            cpm_weight=cpm_weight,
            ch_weight=ch_weight,
            dcs_pull_margin=dcs_pull_margin,
            dcs_push_margin=dcs_push_margin,
            dcs_weight=dcs_weight,
            ort_weight=ort_weight,
        ),
        num_classes=num_classes,
        num_ids=num_ids,
        backbone=backbone,
    )
    expansion.check(
        fuse=expansion_fuse, attention=attention, kernel=attention_kernel, form=attention_form
    )
    multifeature.check(
        last_stride=backbone.last_stride,
        image_size=image_size,
        stages=stages,
        mfa=mfa,
        branches=branches,
        dropout=dropout,
    )
    if num_prototypes == 1 and ch_weight:
        raise ValueError(
            "method.num_prototypes is 1 with a ch_weight of "
            f"{ch_weight}: a single prototype has none to differ from; choose 2 or more, or 0"
        )
    has_parts = num_prototypes > 0
    full = "full" if has_parts else "global"
    net = MultiFeatureNet(
        num_classes=num_classes,
        backbone_options={**backbone.resnet_options(), "stages": stages, "specific": 1},
        expansion_options=dict(
            branches=branches,
            fuse=expansion_fuse,
            attention=attention,
            kernel=attention_kernel,
            form=attention_form,
            dtype=backbone.compute,
        )
        if branches
        else None,
        prototype_options=dict(count=num_prototypes, pooled=prototype_pool) if has_parts else None,
        classified=("global", "full") if has_parts and id_global_weight else (full,),
        aggregates=mfa,
        gates=gate,
        phase_residual=phase_residual,
        dropout=dropout,
    )
    # eqs. 11 and 12; what has weight 0 is left out.
    weights = {
        "id_full": 1.0,
        "id_global": id_global_weight if has_parts else 0.0,
        "tri": 1.0,
        "cpm": cpm_weight if branches else 0.0,
        "ch": ch_weight if has_parts else 0.0,
        "dcs": dcs_weight,
        "ort": ort_weight if branches else 0.0,
    }
    weights = {name: weight for name, weight in weights.items() if weight}

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        del step
        images = (batch["visible"], batch["infrared"])
        out, updates = common.train_pass(net, backbone, variables, images, key, stream="dropout")
        labels, features, logits = batch["label"], out["feature"], out["logits"]
        person = jnp.repeat(labels, 2 * (1 + branches))
        terms: dict[str, Any] = {"id_full": cross_entropy(logits[full], person)}
        if "id_global" in weights:
            terms["id_global"] = cross_entropy(logits["global"], person)

        def triplet_of(name: str) -> Any:
            rows = features[name].reshape(len(labels), 2 * (1 + branches), -1)
            rows = unit(rows) if tri_normalize else rows
            if tri_form == "hard":
                return triplet.batch_hard_triplet(rows, labels, margin=tri_margin)
            return triplet.weighted_regularized_triplet(rows, labels)

        both = list(dict.fromkeys(("global", full)))
        terms["tri"] = sum(map(triplet_of, both if tri_features == "both" else ["global"]))
        f = {name: unit(x) if center_normalize else x for name, x in features.items()}
        if "cpm" in weights:
            terms["cpm"] = sum(
                pairmining.center_pair_mining(
                    center[:, :, 0],
                    center[:, :, 1 + i],
                    margin=cpm_margin,
                    form=cpm_form,
                    others=cpm_others,
                )
                for name in (both if cpm_features == "both" else ["global"])
                for center in [pairmining.by_identity(f[name], num_ids).mean(1)]
                for i in range(branches)
            )
        if "ch" in weights:
            terms["ch"] = pairmining.heterogeneity(
                out["similarity"], out["similarity_logits"], form=ch_form
            )
        if "dcs" in weights:
            x = f[full if dcs_features == "full" else "global"]
            terms["dcs"] = pairmining.dual_center_separation(
                pairmining.by_identity(x, num_ids).reshape(num_ids, -1, x.shape[-1]),
                pull_margin=dcs_pull_margin,
                push_margin=dcs_push_margin,
            )
        if "ort" in weights:
            made = f["global"][:, :, 1:]
            terms["ort"] = pairmining.orthogonality(made.reshape(-1, branches, made.shape[-1]))
        metrics = {
            "accuracy": accuracy(logits[full], person),
            "feature_norm": safe_norm(features["global"]).mean(),
        }
        if has_parts:  # 0.5 until the prototypes have grown
            metrics["similarity"] = out["similarity"].mean()
        return common.total(weights, terms), Aux(terms, dict(updates), metrics)

    def embed(variables: Variables, images: Any, modality: int) -> dict[str, Any]:
        found: Any = net.apply(variables, images, modality, method="embed")
        pool, neck = found["feature"]["global"], found["neck"]["global"]  # [N, 1 + G, D]
        wide = found["neck"][full]
        return {
            "bn": neck[:, 0],
            "pool": pool[:, 0],
            # A row each of unit vectors: inner products add up over the branches.
            "globals": unit(neck).reshape(len(neck), -1),
            "fulls": unit(wide).reshape(len(wide), -1),
        }

    return Method(common.initialize(net, image_size), loss, embed, fusions=FUSIONS)
