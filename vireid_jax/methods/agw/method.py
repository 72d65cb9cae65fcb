"""AGW for two modalities (Ye et al., arXiv 2001.04193, sec. 4.3), and CAJ's joint learning.

The baseline of the field: a ResNet-50 with a stem for each modality, non-local attention,
generalized-mean pooling, a BN neck, one classifier, a weighted regularized triplet loss.

    term   function                         weight in the total
    id     losses.identity, of all rows     1
    tri    methods.agw.losses, by tri_form  tri_weight

CAJ (Ye et al., ICCV 2021) trains the same network on every visible image twice, as it is and with
its channels exchanged (`augment.second_view`), with the squared difference as its triplet loss.
Both as in the authors' code, mangye16/Cross-Modal-Re-ID-baseline and its ICCV21_CAJ.
"""

from typing import Any

import jax.numpy as jnp

from vireid_jax.losses.distance import safe_norm, unit
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.methods import common
from vireid_jax.methods.agw.losses import (
    WEIGHTS,
    squared_difference,
    weighted_regularized_triplet,
)
from vireid_jax.methods.agw.net import AGWNet
from vireid_jax.methods.common import Backbone
from vireid_jax.types import Aux, Batch, Method, Variables

NON_LOCAL = ("one", "half")
TRIPLETS = {"weighted": weighted_regularized_triplet, "squared": squared_difference}


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_ids: int,
    second_view: bool = False,
    backbone: Backbone = Backbone(),
    non_local: str = "one",
    tri_form: str = "weighted",
    tri_weights: str = "released",
    tri_weight: float = 1.0,
    normalize: bool = False,
) -> Method:
    """AGW as a `Method`; the defaults are those of the authors' code.

    Args:
      num_classes: C, identities in training.
      image_size: (height, width).
      num_ids: P of a batch.
      second_view: batches have a second view of the visible images (`augment.second_view`, CAJ);
        both terms are then of three rows an identity and instance.
      backbone: see `common.Backbone`.
      non_local: inner channels of the non-local blocks: "one", as released, or "half" of the map's,
        as the paper of these blocks has it.
      tri_form: "weighted" (AGW) or "squared" (CAJ).
      tri_weights: weights of the distances in it: "released", whose sums have 1e-6 added as in the
        code, so that negatives beyond a distance of about 14 have none; or "softmax", which sum
        to 1 as in the paper.
      tri_weight: 0 leaves the term out.
      normalize: features of unit length in the triplet loss. Ours, for networks that start from
        random weights: the authors' features are as they come.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    choices = {"non_local": NON_LOCAL, "tri_form": TRIPLETS, "tri_weights": WEIGHTS}
    common.check(locals(), choices=choices, not_negative=("tri_weight",))
    weights = {"id": 1.0, "tri": tri_weight} if tri_weight else {"id": 1.0}
    net = AGWNet(num_classes, {**backbone.resnet_options(), "specific": 1}, non_local)

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        del step
        images = [batch["visible"], batch["infrared"]]
        if second_view:
            images.append(batch["visible_second"])
        (pool, logits), updates = common.train_pass(net, backbone, variables, images, key)
        person = jnp.repeat(batch["label"], len(images))
        logits = logits.reshape(-1, num_classes)
        terms = {"id": cross_entropy(logits, person)}
        if "tri" in weights:
            rows = unit(pool) if normalize else pool
            terms["tri"] = TRIPLETS[tri_form](rows, batch["label"], weights=tri_weights)
        metrics = {"accuracy": accuracy(logits, person), "feature_norm": safe_norm(pool).mean()}
        return common.total(weights, terms), Aux(terms, dict(updates), metrics)

    return Method(common.initialize(net, image_size), loss, common.embed(net))
