"""IDKL in the one small world of whole-model tests, see tests/support/tiny.py."""

from configs import idkl
from vireid_jax.methods.common import Backbone


def _options(preset):
    own = idkl.get_config(preset).method.items()
    return {k: v for k, v in own if k not in ("name", *Backbone._fields)}


STEPS = {f"idkl,{preset}": _options(preset) for preset in idkl.PRESETS}
PIECES = dict(modality_dropout=0.0)
