"""A method's loss and gradient with its network applied to pieces of the batch, one by one.

No scan and no checkpoint: features of a piece, the loss of all features, and the gradient of the
features of a piece back through the network.
"""

import jax
import numpy as np

from vireid_jax.methods import common

KEY, STEP = jax.random.key(7), 3


def graded(method):
    """A jitted (variables, batch) -> ((total, (terms, updates)), gradient)."""

    def run(state, batch):
        def of_params(params):
            total, aux = method.loss({**state, "params": params}, batch, KEY, STEP)
            return total, (aux.terms, aux.updates)

        return jax.value_and_grad(of_params, has_aux=True)(state["params"])

    return jax.jit(run)


class Found(Exception):
    """The training pass of a network was reached; nothing after it is traced."""


class Pieces:
    """A network without random streams, compiled for pieces of one size."""

    def __init__(self, net, images, params, stats, rows):
        def forward(params, stats, images):
            state = {"params": params, "batch_stats": stats}
            out, new = net.apply(state, *images, mutable=["batch_stats"])
            return out, new["batch_stats"]

        def both_ways(params, stats, images, cotangent):
            out, pull, new = jax.vjp(lambda p: forward(p, stats, images), params, has_aux=True)
            return out, new, pull(cotangent)[0]

        self.slots, self.images, self.params = len(images[0]), images, params
        out, _ = jax.eval_shape(forward, params, stats, self.cut(images, np.arange(rows)))
        self.zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), out)
        self.run = jax.jit(both_ways)

    def cut(self, tree, rows):
        """The slots `rows` of arrays with a run of rows for each slot of the batch."""

        def of(x):
            slots = np.reshape(x, (self.slots, -1, *x.shape[1:]))[rows]
            return slots.reshape(-1, *slots.shape[2:])

        return jax.tree.map(of, tree)

    def joined(self, trees, pieces):
        """The inverse of `cut` for pieces that are the batch."""
        order = np.argsort(np.concatenate(pieces))

        def of(*parts):
            sized = zip(parts, pieces, strict=True)
            slots = [np.reshape(x, (len(rows), -1, *x.shape[1:])) for x, rows in sized]
            together = np.concatenate(slots)[order]
            return together.reshape(-1, *together.shape[2:])

        return jax.tree.map(of, *trees)

    def __call__(self, stats, rows, cotangent=None):
        """Outputs of a piece, the statistics that it leaves, and the gradient of parameters."""
        along = self.zeros if cotangent is None else self.cut(cotangent, rows)
        return self.run(self.params, stats, self.cut(self.images, rows), along)


def loss_of_pieces(method, state, batch, chunks, monkeypatch):
    """What `graded` gives of a network that is applied to pieces.

    Args:
      method: of no options that save memory.
      state: variables.
      batch: NumPy arrays.
      chunks: lists of pieces, which are lists of rows. All pieces of a chunk start from the same
        running statistics; those that the first one leaves are where the next chunk starts.
      monkeypatch: of pytest.
    """

    def loss(params, train_pass):
        with monkeypatch.context() as patched:
            patched.setattr(common, "train_pass", train_pass)
            total, aux = method.loss({**state, "params": params}, batch, KEY, STEP)
        return total, (aux.terms, aux.updates)

    def reached(net, backbone, variables, images, key, **options):
        raise Found(net, images)

    params, stats = state["params"], state["batch_stats"]
    try:
        loss(params, reached)
    except Found as found:
        network = Pieces(*found.args, params, stats, len(chunks[0][0]))
    pieces, starts, outputs = [], [], []
    for chunk in chunks:
        left = [network(stats, rows) for rows in chunk]
        pieces += chunk
        starts += [stats] * len(chunk)
        outputs += [out for out, _, _ in left]
        stats = left[0][1]

    def of_features(params, out):
        return loss(params, lambda *args, **options: (out, {"batch_stats": stats}))

    features = network.joined(outputs, pieces)
    value_and_grad = jax.jit(jax.value_and_grad(of_features, (0, 1), has_aux=True))
    value, (gradient, cotangent) = value_and_grad(params, features)
    for start, rows in zip(starts, pieces, strict=True):
        gradient = jax.tree.map(np.add, gradient, network(start, rows, cotangent)[2])
    return value, gradient
