"""AGW, DEEN and PDM in the training loop: they overfit a handful of people, with every
parameter."""

import numpy as np
import pytest

from configs import agw as agw_recipe
from configs import deen as deen_recipe
from configs import pdm as pdm_recipe
from tests.test_train_smcl import PIXELS, STEPS, P, train_on_people
from vireid_jax.methods.agw import method as agw
from vireid_jax.methods.common import with_backbone
from vireid_jax.methods.deen import method as deen
from vireid_jax.methods.pdm import method as pdm

# Of the recipes for the embedded data; all that 32 x 16 pixels leave of them is 2 x 1 places.
SMALL = dict(depth=10, width=4)


def _method(build, recipe, **changes):
    options = recipe.method.to_dict() | SMALL | changes
    del options["name"]
    return build(num_classes=P, image_size=PIXELS, num_ids=P, **with_backbone(options))


# The maps that the expansion sees are 2 x 1 pixels: most of its kernels see padding alone.
PADDED = {f"expansion/dilated_{n}/kernel" for n in (1, 2, 3)}
METHODS = {
    "agw": (agw.build, agw_recipe.get_config(), {}, set()),
    "deen": (deen.build, deen_recipe.get_config(), {}, PADDED),
    "pdm": (
        pdm.build,
        pdm_recipe.get_config(),
        dict(num_prototypes=4),
        PADDED | {"expansion/spatial_kernel"},
    ),
}


@pytest.mark.parametrize("name", METHODS)
def test_overfits_eight_people_and_every_parameter_takes_part(name):
    build, recipe, changes, padded = METHODS[name]
    rows, without = train_on_people(_method(build, recipe, **changes))
    last = [rows[n] for n in range(STEPS - 4, STEPS + 1)]
    assert rows[1]["accuracy"] < 0.5 and np.mean([row["accuracy"] for row in last]) > 0.9
    assert last[-1]["loss"] < 0.5 * rows[1]["loss"]
    for term in {"tri", "cpm", "dcs", "ch"} & set(rows[1]):
        assert last[-1][term] < rows[1][term], term
    assert without == padded
