"""The recipe of a run, so that single values can be changed when it is scored.

  python -m vireid_jax.main --mode=eval --workdir RUN --config.eval.flip=True

is read as `--config vireid_jax/stored_recipe.py:RUN --config.eval.flip=True`.
"""

import ml_collections
from ml_collections import config_dict

from vireid_jax.runtime import runfolder


def get_config(workdir: str) -> ml_collections.ConfigDict:
    """The config that the run in `workdir` was started with.

    JSON does not say of what type an option is that was left at None; on the command line it is
    text or a whole number.
    """
    config = runfolder.load_config(workdir)
    for section in config.values():
        if not isinstance(section, ml_collections.ConfigDict):
            continue
        for key, value in section.items():
            if value is None:
                kind = int if key in _WHOLE else str
                section[key] = config_dict.placeholder(kind)
    return config


_WHOLE = ("trials", "steps_per_epoch")
