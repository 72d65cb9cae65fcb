"""Makes the weights that come with the package: a small ResNet, trained on rendered people.

  python -m vireid_jax.synthetic.pretrain --out DIR               ResNet-10 of width 32
  python -m vireid_jax.synthetic.pretrain --out DIR --width 16

They stand for the ImageNet weights that the papers start from. So the training sees visible light
alone: cameras 3 and 6, too, see by it. People, places and cameras are others than in any recipe.
The network is the plain one that SMCL builds on; its loss is softmax over the people and the
batch-hard triplet loss. Images are in color, gray, or of one color channel.

The training is a run of `vireid_jax.main` and goes on as one: repeat a command that was stopped. On
one device it always ends with the same bits. The file is written at its end.
"""

if __name__ == "__main__":  # what comes next takes a while
    from vireid_jax.runtime import memory
    from vireid_jax.runtime.command import answer_signals

    memory.prepare()
    answer_signals()

import argparse
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from vireid_jax.runtime import command, files, printable

# What differs from the recipe configs/smcl.py for the embedded data.
RECIPE: dict[str, Any] = {
    "init.weights": None,
    "data.seed": 101,
    "data.world": 1,
    "data.infrared_light": False,
    "data.train_ids": 4000,
    "data.train_visible": 3,
    "data.train_infrared": 3,
    "data.val_ids": 48,
    "method.auxiliary": "none",
    "method.metric": "bh_tri",
    "method.id_margin": 0.0,
    "method.metric_weight": 1.0,
    "sampler.num_ids": 16,
    "sampler.num_instances": 2,
    "sampler.steps_per_epoch": 250,
    "augment.visible_channel": "adapt_gray",
    "augment.infrared_channel": "adapt_gray",
    "augment.luma": 0.3,
    "optim.lr": 3e-3,
    "optim.warmup_epochs": 1.0,
    "train.epochs": 40.0,
    "train.eval_every": 4.0,
    "train.checkpoint_every": 1.0,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m vireid_jax.synthetic.pretrain",
        description="Pretrain the small ResNet of the embedded recipes on rendered people in "
        "visible light, and write its weights. --config.KEY=VALUE changes a value of the training.",
    )
    add = parser.add_argument
    add("--out", metavar="DIR", required=True, help="folder to write the file of weights into")
    add("--width", type=int, default=32, help="of the stem (default 32)")
    add("--workdir", metavar="DIR", help="folder of the run (default runs/rendered-WIDTH)")
    words = list(sys.argv[1:] if argv is None else argv)
    changes = [word for word in words if word.startswith("--config.")]
    args = parser.parse_args([word for word in words if word not in changes])
    from vireid_jax import main as program

    recipe = program.read_recipe("smcl").unlock()
    recipe.update_from_flattened_dict({**RECIPE, "method.width": args.width})
    workdir = pathlib.Path(args.workdir or f"runs/rendered-{args.width}")
    try:
        config, changed = program.changed(recipe.lock(), changes)
        files.check_writable(pathlib.Path(args.out))
    except (ValueError, OSError) as error:
        print(printable(f"error: {error}"), file=sys.stderr)
        return 2
    if code := program.run(config, workdir=workdir, overrides=changed):
        return code
    print(f"wrote {write(workdir, pathlib.Path(args.out))}")
    return 0


def write(workdir: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    """Writes the backbone of a run's last checkpoint as float16; returns the file.

    Its name has the network's depth and width and the start of the file's SHA-256; its metadata
    the card.
    """
    import jax
    import safetensors.numpy

    from vireid_jax import build, weights
    from vireid_jax.options import flat
    from vireid_jax.runtime import checkpoint, runfolder
    from vireid_jax.synthetic import dataset

    config = runfolder.load_config(workdir)
    method, _ = build.make_method(config, len(runfolder.load_classes(workdir)), 1)
    shapes = dict(jax.eval_shape(method.init, jax.random.key(0)))
    variables, step = checkpoint.restore_variables(workdir / "checkpoints", shapes)
    arrays = {k: x.astype(np.float16) for k, x in weights.named(variables).items()}
    arrays = {k: np.ascontiguousarray(arrays[k]) for k in sorted(arrays)}
    card = {
        "what": "a ResNet by torchvision's names, trained on rendered people in visible light",
        "made_by": "python -m vireid_jax.synthetic.pretrain",
        "steps": step,
        "images": 2 * step * config.sampler.num_ids * config.sampler.num_instances,
        "render_version": dataset.RENDER_VERSION,
        "versions": runfolder.versions(),
        "recipe": flat(config.to_dict()),
    }
    data = safetensors.numpy.save(arrays, {"card": json.dumps(card)})
    depth, width = config.method.depth, config.method.width
    path = out / f"resnet{depth}x{width}-{hashlib.sha256(data).hexdigest()[:8]}.safetensors"
    files.make_folder(out, what="the weights", hint="give another --out")
    files.write_whole(path, data)
    return path


if __name__ == "__main__":
    command.run(main)
