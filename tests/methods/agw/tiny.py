"""AGW in the one small world of whole-model tests, see tests/support/tiny.py."""

# Of a step in float32 on one device and on four. Both released forms blow rounding up: one inner
# channel, normalized, 2e-7 to 1e-5; weights of negatives at distances of 12 and more, to 3e-4.
STEPS = {"agw": dict(second_view=True, tri_form="squared", non_local="half", normalize=True)}
PIECES = dict(second_view=True)
