"""Will it fit, and will it scale? Compiles a recipe's steps for chips that are not there.

  python -m launch.ahead --config configs/idkl.py:sysu --topology v5e:2x2
  python -m launch.ahead --config idkl:sysu --config.sampler.num_ids=16 --topology v5e:4x4
  python -m launch.ahead --config configs/agw.py:sysu --topology v5e:1x1 --scaling
  python -m launch.ahead --config configs/agw.py --topology v6e:1x1 --largest_batch
  python -m launch.ahead --config configs/smcl.py --topology cpu:4

The train step and the embed step are those of vireid_jax.main, compiled by the compiler of the
chip, which needs no chip: bytes per chip, FLOPs and collectives are what would run. Times are
estimates (launch/ahead/roofline.py). No data is read. Values are changed as for vireid_jax.main:
--config.sampler.num_ids=16, --config.method.dtype=bfloat16, --config.devices.remat=True. The
number of chips has to divide the rows of a batch, num_ids x num_instances.

Topologies: v5e, v5p and v6e with a shape, as in v5e:4x4 (libtpu has to be installed: in an
environment of its own, pip install "jax[tpu]" and this package); cpu:N, N fake devices; gpu, the
GPUs at hand; h100, one GPU that is not there (pip install --no-deps jax-cuda12-plugin
jax-cuda12-pjrt nvidia-cuda-nvcc-cu12, the first two in the version of jaxlib; bytes leave out the
workspace of cuDNN, and time is not estimated). Minutes for ResNet-50. Exit codes: 0 done, whether
it fits or not; 1 an error that the user can cure; 2 a wrong command line.
"""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime.command import answer_signals

    answer_signals()

import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from absl import flags

from launch.ahead import roofline
from vireid_jax import main as command
from vireid_jax.runtime.command import run

_TOPOLOGY = flags.DEFINE_string(
    "topology", None, "Chips: v5e:4x4, v5p:2x2x2, v6e:2x4, cpu:8, gpu, h100."
)
_SCALING = flags.DEFINE_bool(
    "scaling", False, "Compile for the numbers of --chips too, with the same rows on every chip."
)
_CHIPS = flags.DEFINE_list("chips", ["8", "32", "128", "256"], "Numbers of chips of --scaling.")
_LARGEST = flags.DEFINE_bool(
    "largest_batch", False, "Find the largest batch of one chip, with and without remat."
)
_TRIES = flags.DEFINE_integer("tries", 8, "Most compilations of --largest_batch, of each kind.")
_EMBED = flags.DEFINE_bool("embed", True, "Compile the embed step, too.")
_CLASSES = flags.DEFINE_integer(
    "num_classes", None, "People to train on, where they are not published: of your own images."
)
_QUICK = flags.DEFINE_bool(
    "quick", False, "Compile at the least effort: a small part of the time, a coarser answer."
)
_KEEP = flags.DEFINE_string(
    "keep", None, "Folder that takes what each program came to; the same is not compiled again."
)
_JSON = flags.DEFINE_string("json", None, "File that takes all figures, as JSON.")


def main(argv: Sequence[str]) -> None:
    """Runs one command; see the module's docstring for the exit codes."""
    config, _ = command.parse(argv, flags.FLAGS, about=__doc__)
    if config is None:
        command.refuse(f"--config is missing; {command.known()}")
    name = _TOPOLOGY.value
    if name is None:
        command.refuse("--topology is missing, as in --topology=v5e:2x2 or --topology=cpu:8")
    try:
        topology = roofline.parse(name)
        if _LARGEST.value and topology.kind == "cpu":
            raise ValueError("--largest_batch needs a chip whose memory is known, not a CPU")
        sizes = _sizes(topology) if _SCALING.value else []
    except ValueError as error:
        command.refuse(str(error))
    prepare(topology)
    try:
        figures = report(config, topology, sizes)
    except (ValueError, OSError) as error:
        if flags.FLAGS.debug:
            raise
        print(f"error: {error}\n(--debug shows where)", file=sys.stderr)
        sys.exit(1)
    if _JSON.value:
        path = pathlib.Path(_JSON.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(figures, indent=1) + "\n")


def _sizes(topology: roofline.Topology) -> list[roofline.Topology]:
    """The slices of --chips."""
    try:
        numbers = sorted({int(n) for n in _CHIPS.value})
    except ValueError:
        raise ValueError(f"chips is {_CHIPS.value}, expected numbers, as in 8,256") from None
    if topology.kind == "cpu":  # as many of the default as there are
        numbers = [n for n in numbers if n <= topology.chips]
    return [roofline.of_size(topology, n) for n in numbers]


def prepare(topology: roofline.Topology) -> None:
    """Sets what has to be set before JAX starts; what the user has set stays."""
    if topology.kind == "gpu":
        return
    # A program for TPUs is compiled on the CPU, and libtpu must not look for a TPU.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    if topology.kind in roofline.TPUS:  # what it would look for, and complain of not finding
        os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
        os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # no other process uses a TPU either
    if topology.kind == "cpu":
        set_before = os.environ.get("XLA_FLAGS", "")
        if "host_platform_device_count" not in set_before:
            count = f"--xla_force_host_platform_device_count={topology.chips}"
            os.environ["XLA_FLAGS"] = f"{set_before} {count}".strip()


def report(config: Any, topology: roofline.Topology, sizes: Sequence[roofline.Topology]) -> dict:
    """Compiles what the flags ask for, and prints as it goes.

    Returns:
      All figures, of plain types.

    Raises:
      ValueError: something cannot be had; the message says how to cure it.
    """
    import jax

    from launch.ahead import points

    if _QUICK.value:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
    keep = pathlib.Path(_KEEP.value) if _KEEP.value else None
    found = points.Points(config, num_classes=_CLASSES.value, keep=keep)
    figures: dict[str, Any] = {"recipe": config.run_name, "quick": _QUICK.value, **found.about()}
    figures["step"] = found.step(topology, embed=_EMBED.value)
    if sizes:
        figures["scaling"] = found.scaling(topology, sizes)
    if _LARGEST.value:
        figures["largest_batch"] = found.largest(topology, tries=_TRIES.value)
    return figures


def cli() -> NoReturn:
    """Entry point."""
    run(lambda: main(sys.argv))


if __name__ == "__main__":
    cli()
