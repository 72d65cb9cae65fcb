"""SMCL in the one small world of whole-model tests, see tests/support/tiny.py."""

STEPS = {"smcl": dict(metric_from_epoch=0.0)}  # all terms
PIECES = dict(metric_from_epoch=0.0)
