"""AGW in the one small world of whole-model tests, see tests/support/tiny.py."""

STEPS = {"agw": dict(second_view=True, tri_form="squared")}
PIECES = dict(second_view=True)
