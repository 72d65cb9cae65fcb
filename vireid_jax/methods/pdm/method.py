"""PDM: Prototype-Driven Multi-feature generation (Li et al., ICASSP 2025).

DEEN's network with more attention: each image becomes 1 + G feature maps before the last stage
(MFGM), and learned prototypes pool parts of each map (PLM), which with the global feature F_g are
the full feature F.

    term       equation  function                             weight in the total (eqs. 11 and 12)
    id_full    -         losses.identity, of F                1
    id_global  -         losses.identity, of F_g; code alone  id_global_weight
    tri        -         losses.triplet, of F_g               1
    cpm        3-5       losses.pairmining, over branches     cpm_weight
    ch         9         methods.pdm.losses                   ch_weight
    dcs        10        methods.pdm.losses, of F             dcs_weight
    ort        -         losses.pairmining; code alone        ort_weight

Paper and released code (mmunhappy/ICASSP2025-PDM at b668901, train_pdm_os.py) differ: see
docs/fidelity.md. The defaults of `build` are the code, with which the printed numbers were
presumably made; `configs/pdm.py:DATASET,paper` sets every option to what the paper says.
"""

from typing import Any

import jax.numpy as jnp

from vireid_jax.losses import pairmining
from vireid_jax.losses.distance import safe_norm, unit
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.losses.triplet import batch_hard_triplet
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.methods.pdm import losses
from vireid_jax.nets import multifeature
from vireid_jax.types import Aux, Batch, Method, Variables

# The two similarities of the code's test; the paper does not say which it reports.
FUSIONS = {"sum": {"globals": 1.0, "fulls": 1.0}, "weighted": {"globals": 0.1, "fulls": 0.9}}
MFGM: dict[str, dict[str, Any]] = {  # eqs. 1 and 2
    "code": dict(fuse="mean", attention="sequential"),
    "paper": dict(fuse="sum", attention="concat"),
}


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_ids: int,
    backbone: Backbone = Backbone(),
    stages: int = 4,
    mfa: bool = True,
    gate: bool = True,
    branches: int = 2,
    mfgm: str = "code",
    dropout: float = 0.01,
    num_prototypes: int = 10,
    id_global_weight: float = 1.0,
    tri_margin: float = 0.3,
    cpm_form: str = "three",
    cpm_margin: float = 0.2,
    cpm_weight: float = 0.4,
    ch_form: str = "code_rms",
    ch_weight: float = 0.25,
    dcs_pull_margin: float = 0.01,
    dcs_push_margin: float = 0.7,
    dcs_weight: float = 1.0,
    ort_weight: float = 0.01,
    normalize: bool = False,
) -> Method:
    """PDM as a `Method`; the defaults are the preset "code".

    Args:
      num_classes, image_size, num_ids: C; (height, width); P of a batch.
      backbone: see `common.Backbone`.
      stages: 4; or 3, the code's network for RegDB: it ends with layer3 and generates after layer2.
      mfa, gate: DEEN's aggregation blocks; SimAM after the stems. Both in the code alone.
      branches: G of MFGM, which the paper does not give; 0 leaves MFGM out, with cpm and ort.
      mfgm: eqs. 1 and 2 as in the "code" or the "paper", see `nets.multifeature`.
      dropout: of all entries of the maps after MFGM, the image's own too; the code's.
      num_prototypes: m of the PLM; 0 leaves it out, and F is F_g.
      id_global_weight: of a classifier of F_g beside the one of F; of no effect without a PLM.
      tri_margin: of the batch-hard triplet loss.
      cpm_form: "three" hinges, of F_g and of F (code); a "single" one, of F_g (eqs. 3 to 5).
      ch_form: "code_rms" or "cos_min", which differ in sign and scale, see `losses.heterogeneity`.
      cpm_margin, dcs_pull_margin, dcs_push_margin: alpha of eq. 3, rho1 and rho2 of eq. 10.
      cpm_weight, ch_weight, dcs_weight, ort_weight: 0 leaves a term out.
      normalize: features of unit length in tri, cpm, dcs and ort; ours, see docs/fidelity.md.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    has_parts = num_prototypes > 0
    full = "full" if has_parts else "global"
    classified = ("global", "full") if has_parts and id_global_weight else (full,)
    mined = tuple(dict.fromkeys(("global", full))) if cpm_form == "three" else ("global",)
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
        images, labels = (batch["visible"], batch["infrared"]), batch["label"]
        out, updates = common.train_pass(net, backbone, variables, images, key, stream="dropout")
        features, logits = out["feature"], out["logits"]  # F_g and F: [B, 2, 1 + G, D]
        person = jnp.repeat(labels, 2 * (1 + branches))
        terms: dict[str, Any] = {"id_full": cross_entropy(logits[full], person)}
        if "id_global" in weights:
            terms["id_global"] = cross_entropy(logits["global"], person)
        f = {name: unit(x) if normalize else x for name, x in features.items()}
        terms["tri"] = batch_hard_triplet(
            f["global"].reshape(len(labels), 2 * (1 + branches), -1), labels, margin=tri_margin
        )
        if "cpm" in weights:  # eqs. 3 to 5
            terms["cpm"] = sum(
                term
                for name in mined
                for term in pairmining.by_branch(f[name], num_ids, margin=cpm_margin, form=cpm_form)
            )
        if "ch" in weights:  # eq. 9
            s = out["similarity"], out["similarity_logits"]
            terms["ch"] = losses.heterogeneity(*s, form=ch_form)
        if "dcs" in weights:  # eq. 10
            rows = pairmining.by_identity(f[full], num_ids)
            terms["dcs"] = losses.dual_center_separation(
                rows.reshape(num_ids, -1, rows.shape[-1]),
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

    choices = {"mfgm": MFGM, "cpm_form": pairmining.CPM_FORMS, "ch_form": losses.CH_FORMS}
    numbers = ["num_prototypes", "id_global_weight", "tri_margin", "cpm_margin", "cpm_weight"]
    numbers += ["ch_weight", "dcs_pull_margin", "dcs_push_margin", "dcs_weight", "ort_weight"]
    common.check(locals(), choices=choices, not_negative=numbers)
    if num_prototypes == 1 and ch_weight:
        raise ValueError(
            "method.num_prototypes is 1 with a ch_weight of "
            f"{ch_weight}: a single prototype has none to differ from; choose 2 or more, or 0"
        )
    net = multifeature.make(
        num_classes=num_classes,
        image_size=image_size,
        backbone_options=backbone.resnet_options(),
        stages=stages,
        dropout=dropout,
        branches=branches,
        mfa=mfa,
        gate=gate,
        num_prototypes=num_prototypes,
        classified=classified,
        **MFGM[mfgm],
    )
    return Method(common.initialize(net, image_size), loss, embed, fusions=FUSIONS)
