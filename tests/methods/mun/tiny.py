"""MUN in the one small world of whole-model tests, see tests/support/tiny.py."""

STEPS = {"mun": dict(generator_ratios=(2, 4))}  # of maps of 8 x 4
PIECES = dict(generator_ratios=(2,))
