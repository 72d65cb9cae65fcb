"""The whole MUN model against PyTorch with the same weights, in float64."""

from tests.methods import whole
from tests.support.reference import store

# AdamW at two rates, decay of some weights, the memory, the projection, a milestone.
test_model, test_training_trajectory = whole.tests("mun", fast=("mun",))


def test_a_trajectory_projects():
    """Some layer scale is held at its bound, so that the comparison above covers it."""
    golden = store.load("mun_trajectory")
    scales = [v for k, v in golden.items() if k.endswith("layer_scale")]
    assert len(scales) == 3 and any((v == 1).any() for v in scales)
    assert all((v > 0).all() and (v <= 1).all() for v in scales)
