"""Features and sums of similarities of random images; one of the processes of a run, or alone.

`python -m tests.runtime.embedding OUT.npz` stores what they are.
"""

import sys

import jax
import numpy as np

from tests import test_fused as few
from vireid_jax import evaluate
from vireid_jax.runtime import devices, processes
from vireid_jax.types import Method


def main(out):
    processes.start(out + ".run")
    mesh = devices.make_mesh()
    method = Method(lambda key: few.VARIABLES, None, few.embed_images, fusions=few.FUSIONS)
    embed, variables = evaluate.make_embed(method, mesh), devices.place(few.VARIABLES, mesh)
    options = few.options(mesh)
    query, _ = few.sides()  # 11 and 17: neither divides over the devices
    stored = {
        f"query {k}": v
        for k, v in evaluate.embed_records(embed, variables, query, **options).items()
    }
    found = evaluate.accumulate(
        embed, variables, few.sides(), few.FUSIONS, flip=True, memory_bytes=300, **options
    )
    stored |= {f"similarity {k}": v for k, v in found.similarity.items()}
    np.savez(f"{out}.{jax.process_index()}.npz", **stored)
    processes.finish(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
