"""DEEN: Diverse Embedding Expansion Network (Zhang and Wang, CVPR 2023), from its code.

Each image becomes 1 + G feature maps before the last stage: its own, and one of each branch of an
expansion. All of them have the image's label, and are compared branch by branch at test time.

    term   function                              weight in the total
    id     losses.identity, of all rows          1
    tri    losses.triplet, batch-hard, all rows  1
    cpm    losses.pairmining, over the branches  cpm_weight
    ort    losses.pairmining                     ort_weight

Released code: ZYK100/LLCM, folder DEEN, at 886e27c; the paper itself was not at hand.
"""

from typing import Any

import jax.numpy as jnp

from vireid_jax.losses import pairmining
from vireid_jax.losses.distance import safe_norm, unit
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.losses.triplet import batch_hard_triplet
from vireid_jax.methods import common
from vireid_jax.methods.common import Backbone
from vireid_jax.nets import multifeature
from vireid_jax.types import Aux, Batch, Method, Variables

# Both rows that the code's test prints; see `types.Method.fusions`.
FUSIONS = {"sum": {"pools": 1.0, "necks": 1.0}, "weighted": {"pools": 0.1, "necks": 0.9}}


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_ids: int,
    backbone: Backbone = Backbone(),
    stages: int = 4,
    branches: int = 2,
    dropout: float = 0.01,
    tri_margin: float = 0.3,
    cpm_weight: float = 0.8,
    cpm_margin: float = 0.2,
    ort_weight: float = 0.01,
    normalize: bool = False,
) -> Method:
    """DEEN as a `Method`; the defaults are those of the authors' code.

    Args:
      num_classes: C, identities in training.
      image_size: (height, width); the maps must have an even number of places.
      num_ids: P of a batch.
      backbone: see `common.Backbone`.
      stages: 4; or 3, the code's network for RegDB: it ends with layer3 and expands after layer2.
      branches: G of the expansion, 2 in the code; 0 leaves it out, with cpm and ort.
      dropout: of all entries of the expanded maps, the image's own too.
      tri_margin: of the batch-hard triplet loss.
      cpm_weight, cpm_margin: of center-guided pair mining, summed over the branches.
      ort_weight: of the branches' inner products.
      normalize: features of unit length in tri, cpm and ort. Ours, for networks that start from
        random weights: the authors' features are as they come.

    Raises:
      ValueError: for a value out of range, naming the option.
    """
    numbers = ("tri_margin", "cpm_weight", "cpm_margin", "ort_weight")
    common.check(locals(), not_negative=numbers)
    net = multifeature.make(
        num_classes=num_classes,
        image_size=image_size,
        backbone_options=backbone.resnet_options(),
        stages=stages,
        dropout=dropout,
        branches=branches,
    )
    weights = {"id": 1.0, "tri": 1.0}
    weights |= {"cpm": cpm_weight, "ort": ort_weight} if branches else {}
    weights = {name: weight for name, weight in weights.items() if weight}

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        del step
        images, labels = (batch["visible"], batch["infrared"]), batch["label"]
        out, updates = common.train_pass(net, backbone, variables, images, key, stream="dropout")
        feature, logits = out["feature"]["global"], out["logits"]["global"]  # [B, 2, 1 + G, D]
        person = jnp.repeat(labels, 2 * (1 + branches))
        f = unit(feature) if normalize else feature
        terms: dict[str, Any] = {
            "id": cross_entropy(logits, person),
            "tri": batch_hard_triplet(
                f.reshape(len(f), -1, f.shape[-1]), labels, margin=tri_margin
            ),
        }
        if "cpm" in weights:
            terms["cpm"] = sum(pairmining.by_branch(f, num_ids, margin=cpm_margin))
        if "ort" in weights:
            terms["ort"] = pairmining.orthogonality(f[:, :, 1:].reshape(-1, branches, f.shape[-1]))
        metrics = {"accuracy": accuracy(logits, person), "feature_norm": safe_norm(feature).mean()}
        return common.total(weights, terms), Aux(terms, dict(updates), metrics)

    def embed(variables: Variables, images: Any, modality: int) -> dict[str, Any]:
        found: Any = net.apply(variables, images, modality, method="embed")
        pool, neck = found["feature"]["global"], found["neck"]["global"]  # [N, 1 + G, D]
        return {
            "bn": neck[:, 0],
            "pool": pool[:, 0],
            # A row each of unit vectors: inner products add up over the branches.
            "pools": unit(pool).reshape(len(pool), -1),
            "necks": unit(neck).reshape(len(neck), -1),
        }

    return Method(common.initialize(net, image_size), loss, embed, fusions=FUSIONS)
