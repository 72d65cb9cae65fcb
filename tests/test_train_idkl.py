"""IDKL in the training loop: both presets overfit a handful of people, with every parameter."""

import numpy as np
import pytest

from configs import idkl as recipe
from tests.test_train_smcl import PIXELS, STEPS, K, P, train_on_people
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.idkl import method as idkl

# Of the recipes, and with a head that sees nothing dropped: 16 images are few.
SMALL = dict(depth=10, width=4, modality_dropout=0.0)


def _method(preset):
    options = recipe.get_config(preset).method.to_dict() | SMALL
    del options["name"]
    facts = dict(num_classes=P, image_size=PIXELS, num_ids=P, num_instances=K)
    return idkl.build(**facts, **with_backbone(options))


@pytest.mark.slow
@pytest.mark.parametrize("preset", recipe.PRESETS)
def test_idkl_overfits_eight_people_and_every_parameter_takes_part(preset):
    rows, without = train_on_people(_method(preset))
    last = [rows[n] for n in range(STEPS - 4, STEPS + 1)]
    assert rows[1]["accuracy"] < 0.5 and np.mean([row["accuracy"] for row in last]) > 0.9
    assert last[-1]["loss"] < 0.5 * rows[1]["loss"]
    for name in ("tgsa", "csa", "tri_purified", "id_purified"):
        assert last[-1][name] < rows[1][name], name
    # The discriminator sees the modality, and so do features that were not purified of it.
    assert np.mean([row["accuracy_discriminator"] for row in last]) > 0.9
    assert not without
