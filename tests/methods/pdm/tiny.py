"""PDM in the one small world of whole-model tests, see tests/support/tiny.py."""

# DEEN's network, an axis of branches, and F of all prototypes; three stages compile sooner.
STEPS = {"pdm": dict(num_prototypes=3, stages=3)}
PIECES = dict(stages=3, mfa=False, num_prototypes=3, dropout=0.0)
