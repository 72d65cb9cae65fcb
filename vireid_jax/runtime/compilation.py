"""The cache of compiled programs: a repeated command starts in seconds."""

import glob
import pathlib
import re
import warnings
from typing import Any

import jax
from absl import logging

from vireid_jax.runtime import files

_DAMAGED = "Error reading persistent compilation cache entry for "  # how JAX's warning begins


def use_cache() -> None:
    """Keeps compiled programs in $JAX_COMPILATION_CACHE_DIR, else in the user's cache folder.

    An entry that is damaged is thrown away, and written again. JAX alone would warn, compile, and
    leave it there for the next start.
    """
    try:
        folder = files.user_folder("JAX_COMPILATION_CACHE_DIR", "xla")
        files.make_folder(pathlib.Path(folder), what="compiled programs", hint="")
    except OSError:  # no home, or one that cannot be written to: every start compiles
        return
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    show = warnings.showwarning

    def without_damage(message: Warning | str, *rest: Any, **named: Any) -> None:
        if not (found := re.match(f"{_DAMAGED}'(.+?)'", str(message))):
            return show(message, *rest, **named)
        # The warning has the program's name, not the file's: its other versions go, too.
        for entry in pathlib.Path(folder).glob(f"{glob.escape(found[1])}-*-cache"):
            entry.unlink(missing_ok=True)
        logging.warning("the compilation cache has a damaged %s: compiling it again", found[1])

    warnings.filterwarnings("always", _DAMAGED)
    warnings.showwarning = without_damage
