"""DEEN in the one small world of whole-model tests, see tests/support/tiny.py."""

STEPS = {"deen": dict(stages=3)}  # three stages compile sooner
PIECES = dict(stages=3, branches=1, dropout=0.0)
