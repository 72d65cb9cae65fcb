"""The losses of DEEN, PDM and CAJ against the formulas and the released code's, in PyTorch.

The released code's run on rows in that code's order, so that agreement is also that of our axes
with its chunks.
"""

import jax

from tests.support.parity import loss_tests
from vireid_jax.losses import pairmining
from vireid_jax.losses.triplet import squared_difference


def _heterogeneity(logits, **options):
    return pairmining.heterogeneity(jax.nn.sigmoid(logits), logits, **options)


def _released_cpm(features):
    """As the method does: centers of both modalities, own and generated."""
    centers = pairmining.by_identity(features, 4).mean(1)  # [P, 2, R, D]
    return pairmining.center_pair_mining(centers[:, :, 0], centers[:, :, 1])


def _released_dcs(features, labels):
    rows = pairmining.by_identity(features, 4)
    return pairmining.dual_center_separation(rows.reshape(4, -1, rows.shape[-1]))


FUNCTIONS = {
    "cpm": (pairmining.center_pair_mining, "original generated"),
    "ort": (pairmining.orthogonality, "features"),
    "dcs": (pairmining.dual_center_separation, "features"),
    "ch": (_heterogeneity, "logits"),
    "caj": (squared_difference, "features labels"),
    "caj_far": (squared_difference, "features labels"),
    "cpm_released": (_released_cpm, "features"),
    "dcs_released": (_released_dcs, "features labels"),
    "ort_released": (lambda features: pairmining.orthogonality(features[:, 1:]), "features"),
}


test_value_and_gradient, test_the_cases_test_something = loss_tests(FUNCTIONS, rtol64=1e-11)
