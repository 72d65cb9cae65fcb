"""The command line: python -m vireid_jax.main --config configs/smcl.py [--config.key=value ...].

Exit codes: 0 done, 1 an error that the user can cure, 2 a wrong command line, 42 stopped by
SIGTERM with everything saved (run the same command again), 130 the same for Ctrl-C, 43 another
process of the run was lost (run the same command again on all hosts).
"""

# Nothing heavy up here: --help and a misspelt flag must answer at once.
import sys
from collections.abc import Sequence

from absl import app, flags

from vireid_jax import command

_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder of the run; repeating a command resumes its run. Default: "
    "runs/<name of the recipe and of the values changed in it>.",
)
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval"], "train (and score), or eval: score a run's checkpoint."
)
_STEP = flags.DEFINE_string(
    "step", "last", "Checkpoint that --mode=eval scores: last, best, or a number of steps."
)
_DIST = flags.DEFINE_enum(
    "dist",
    "auto",
    ["auto", "off", "on"],
    "Several processes: auto finds a TPU pod, a Slurm step or JAX_COORDINATOR_ADDRESS, "
    "JAX_NUM_PROCESSES and JAX_PROCESS_ID; off: one process; on: refuse to be only one.",
)


def main(argv: Sequence[str]) -> None:
    """Runs one command; see the module's docstring for the exit codes."""
    config = command.recipe(argv)
    if config is None and not (_MODE.value == "eval" and _WORKDIR.value):
        command.refuse(
            f"--config is missing (or --mode=eval with --workdir of a run); {command.known()}"
        )
    from vireid_jax import run

    sys.exit(
        run.run(
            config,
            workdir=_WORKDIR.value,
            overrides={} if config is None else command.overrides(),
            mode=_MODE.value,
            step=_STEP.value,
            dist=_DIST.value,
            debug=command.DEBUG.value,
        )
    )


def cli() -> None:
    """Entry point of the `vireid` command."""
    app.run(main, flags_parser=command.parse)


if __name__ == "__main__":
    cli()
