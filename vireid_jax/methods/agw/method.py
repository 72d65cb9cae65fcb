"""AGW for two modalities (Ye et al., arXiv 2001.04193, sec. 4.3), and CAJ's joint learning.

The baseline of the field: a ResNet-50 with a stem for each modality, non-local attention,
generalized-mean pooling, a BN neck, one classifier, a weighted regularized triplet loss.

  term   function             weight
  id     cross-entropy        1, of all rows
  tri    losses.triplet       tri_weight

CAJ (Ye et al., ICCV 2021) trains the same network on every visible image twice, as it is and with
its channels exchanged (`augment.second_view`), with the squared difference as its triplet loss.
Both as in the authors' code, mangye16/Cross-Modal-Re-ID-baseline and its ICCV21_CAJ.
"""

from typing import Any

import jax.numpy as jnp

from vireid_jax.losses import triplet
from vireid_jax.losses.distance import safe_norm, unit
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.methods import common
from vireid_jax.methods.agw.net import AGWNet
from vireid_jax.methods.common import Backbone
from vireid_jax.types import Aux, Batch, Method, Variables

TRIPLETS = ("weighted", "squared", "hard")


def build(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    num_ids: int,
    second_view: bool = False,
    backbone: Backbone = Backbone(),
    non_local: bool = True,
    pool_p: float = 3.0,
    tri_form: str = "weighted",
    tri_margin: float = 0.3,
    tri_normalize: bool = False,
    tri_weight: float = 1.0,
) -> Method:
    """AGW as a `Method`; the defaults are those of the authors' code.

    Args:
      num_classes: C, identities in training.
      image_size: (height, width).
      num_ids: P of a batch.
      second_view: batches have a second view of the visible images (`augment.second_view`, CAJ);
        both terms are then of three rows an identity and instance.
      backbone: see `common.Backbone`.
      non_local: non-local blocks in layer2 and layer3. False with pool_p=1 and tri_form=hard is
        the code's own baseline, `--method base`.
      pool_p: exponent of the generalized mean, fixed; 1 is the average.
      tri_form: "weighted" (AGW), "squared" (CAJ), or "hard": batch-hard with tri_margin.
      tri_margin: of "hard".
      tri_normalize: of features of unit length. Ours, for networks that start from random weights:
        the authors' features are as they come.
      tri_weight: 0 leaves the term out.

    Raises:
      ValueError: for an unknown choice or a value out of range, naming the option.
    """
    common.check(
        choices={
            "tri_form": (tri_form, TRIPLETS),
        },
        not_negative=dict(tri_margin=tri_margin, tri_weight=tri_weight),
        num_classes=num_classes,
        num_ids=num_ids,
        backbone=backbone,
    )
    if not pool_p >= 1:
        raise ValueError(f"method.pool_p is {pool_p}, expected 1 (the average) or more")
    net = AGWNet(
        num_classes=num_classes,
        backbone_options={**backbone.resnet_options(), "specific": 1},
        non_local=non_local,
        pool_p=pool_p,
    )

    def loss(variables: Variables, batch: Batch, key: Any, step: Any) -> tuple[Any, Aux]:
        del step
        images = [batch["visible"], batch["infrared"]]
        if second_view:
            images.append(batch["visible_second"])
        found, updates = common.train_pass(net, backbone, variables, images, key)
        pool, logits = found
        labels = batch["label"]
        person = jnp.repeat(labels, len(images))
        flat = logits.reshape(-1, num_classes)
        terms = {"id": cross_entropy(flat, person)}
        total = terms["id"]
        if tri_weight:
            rows = unit(pool) if tri_normalize else pool
            if tri_form == "hard":
                terms["tri"] = triplet.batch_hard_triplet(rows, labels, margin=tri_margin)
            elif tri_form == "weighted":
                terms["tri"] = triplet.weighted_regularized_triplet(rows, labels)
            else:
                terms["tri"] = triplet.squared_difference(rows, labels)
            total = total + tri_weight * terms["tri"]
        metrics = {"accuracy": accuracy(flat, person), "feature_norm": safe_norm(pool).mean()}
        return total, Aux(terms, dict(updates), metrics)

    return Method(common.initialize(net, image_size), loss, common.embed(net))
