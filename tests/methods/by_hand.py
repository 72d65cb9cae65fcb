"""A method's loss and gradient with its network applied to pieces of the batch, one by one.

No scan, no checkpoint and no interception: features of a piece, the loss of all features, and the
gradient of the features of a piece back through the network.
"""

import flax.linen as nn
import jax
import numpy as np

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


def training_pass(method, state, batch, monkeypatch):
    """The network and the arguments that a method's loss applies it to."""

    def apply(net, state, *args, **options):
        raise Found(net, args)

    with monkeypatch.context() as patched:
        patched.setattr(nn.Module, "apply", apply)
        try:
            method.loss(state, batch, KEY, STEP)
        except Found as found:
            return found.args
    raise AssertionError("the loss did not apply its network")


class Pieces:
    """A network without random streams, compiled for pieces of one size."""

    def __init__(self, net, args, params, stats, rows):
        images = [x for x in args if np.ndim(x)]
        rest = [x for x in args if not np.ndim(x)]

        def forward(params, stats, images):
            state = {"params": params, "batch_stats": stats}
            out, new = net.apply(state, *images, *rest, mutable=["batch_stats"])
            return out, new["batch_stats"]

        def both_ways(params, stats, images, cotangent):
            out, pull, new = jax.vjp(lambda p: forward(p, stats, images), params, has_aux=True)
            return out, new, pull(cotangent)[0]

        self.batch, self.images, self.params = len(images[0]), images, params
        given = params, stats, self.cut(images, np.arange(rows))
        self.zeros = jax.tree.map(
            lambda x: np.zeros(x.shape, x.dtype), jax.eval_shape(forward, *given)[0]
        )
        self.run = jax.jit(both_ways)

    def cut(self, tree, rows):
        """The slots `rows` of arrays with a run of rows for each slot of the batch."""

        def of(x):
            slots = np.reshape(x, (self.batch, -1, *x.shape[1:]))[rows]
            return slots.reshape(-1, *slots.shape[2:])

        return jax.tree.map(of, tree)

    def joined(self, trees, pieces):
        """The inverse of `cut` for pieces that are the batch."""
        order = np.argsort(np.concatenate(pieces))

        def of(*parts):
            slots = [
                np.reshape(x, (len(rows), -1, *x.shape[1:]))
                for x, rows in zip(parts, pieces, strict=True)
            ]
            together = np.concatenate(slots)[order]
            return together.reshape(-1, *together.shape[2:])

        return jax.tree.map(of, *trees)

    def features(self, stats, rows):
        """Outputs of a piece, and the statistics that it leaves."""
        return self.run(self.params, stats, self.cut(self.images, rows), self.zeros)[:2]

    def gradient(self, stats, rows, cotangent):
        """Of the parameters, given that of all outputs."""
        images, own = self.cut(self.images, rows), self.cut(cotangent, rows)
        return self.run(self.params, stats, images, own)[2]


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
    net, args = training_pass(method, state, batch, monkeypatch)
    params, stats = state["params"], state["batch_stats"]
    network = Pieces(net, args, params, stats, len(chunks[0][0]))
    pieces, starts, outputs = [], [], []
    for chunk in chunks:
        left = [network.features(stats, rows) for rows in chunk]
        pieces += chunk
        starts += [stats] * len(chunk)
        outputs += [out for out, _ in left]
        stats = left[0][1]

    original = nn.Module.apply

    def of_features(params, out):
        def apply(net, state, *args, mutable=False, rngs=None, method=None):
            if mutable:
                return out, {"batch_stats": stats}
            return original(net, state, *args, method=method)

        with monkeypatch.context() as patched:
            patched.setattr(nn.Module, "apply", apply)
            total, aux = method.loss({**state, "params": params}, batch, KEY, STEP)
        return total, (aux.terms, aux.updates)

    features = network.joined(outputs, pieces)
    graded = jax.jit(jax.value_and_grad(of_features, (0, 1), has_aux=True))
    value, (gradient, cotangent) = graded(params, features)
    for start, rows in zip(starts, pieces, strict=True):
        back = network.gradient(start, rows, cotangent)
        gradient = jax.tree.map(np.add, gradient, back)
    return value, gradient
