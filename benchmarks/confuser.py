"""Does IDKL's confuser take the modality out of features? A small experiment.

  python -m benchmarks.confuser                    three seeds
  python -m benchmarks.confuser --seeds 1 --steps 600

Vectors of persons with a modality gap go through a linear encoder and batch normalization. The
confuser of `vireid_jax.methods.idkl.net` is trained on what comes out, in three ways:

  half_flip  the released code's: half of each modality's labels turned over, no reversal
  reversal   the paper's (eq. 2): true labels behind a gradient reversal
  none       true labels, and no gradient passes to the encoder, which stays as it was drawn

The encoder learns from the confuser alone: with an identity loss it would drop a gap that says
nothing of persons by itself, in every way. Adam's rate for the confuser is five times the
encoder's and its first moment short (0.5), as adversaries need it to settle.

Afterwards the confuser is scored on fresh samples, and so is a linear probe that had nothing to
do with the training: least squares from features to the modality, fitted to other fresh samples.
Half-flipped labels are independent of the features, so the best confuser is one that answers 1/2
to everything. Its cross-entropy is ln 2 = 0.693, as if it were confused, whatever the features
say of the modality.
"""

import argparse
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import report
from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.methods.idkl.losses import half_flipped
from vireid_jax.methods.idkl.net import ModalityClassifier, reverse_gradient
from vireid_jax.nets import init
from vireid_jax.nets.norm import BatchNorm

# The factor of `reverse_gradient`: -1 passes the gradient as it is, 0 passes none.
STRENGTH = {"half_flip": -1.0, "reversal": 1.0, "none": 0.0}
COLUMNS = {
    "cross_entropy": "cross-entropy of the confuser's task",
    "confuser": "confuser on true labels, %",
    "probe": "linear probe of the modality, %",
}
PERSONS, WIDTH = 24, 32
# Of the encoder: fewer than the input has. The probe sees through any invertible linear map, so
# an encoder that keeps all dimensions could hide nothing from it.
FEATURES = 16
P, K = 12, 5  # identities and images of each modality in a batch, as in the recipe
GAP = 2.0  # standard deviation of a coordinate of a modality's mean; that of the noise is 1
STEPS, RATE = 1000, 1e-3
CONFUSER_RATE = 5.0  # times the encoder's
BATCHES = 32  # of 2 * P * K vectors, to fit the probe to; as many to score on


class World(NamedTuple):
    """What the vectors of one seed are made of."""

    persons: np.ndarray  # [PERSONS, WIDTH]
    mean: np.ndarray  # [2, WIDTH], of a modality


class Network(nn.Module):
    """A linear encoder, batch normalization, and the confuser."""

    @nn.compact
    def __call__(
        self, x: jax.Array, strength: Any = 0.0, *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """[N, WIDTH] -> features [N, FEATURES] and the confuser's logits [N, 2]."""
        x = nn.Dense(FEATURES, kernel_init=init.torch_uniform(), name="encoder")(x)
        x = BatchNorm(use_bias=False)(x, train=train)
        confuser = ModalityClassifier(name="confuser")
        return x, confuser(reverse_gradient(x, strength), train=train)


def world(seed: int) -> World:
    """Persons and modalities of a seed."""
    rng = np.random.default_rng([seed, 0])
    persons = rng.normal(size=(PERSONS, WIDTH))
    return World(persons, GAP * rng.normal(size=(2, WIDTH)))


def draw(facts: World, rng: np.random.Generator, batches: int) -> np.ndarray:
    """Batches in the order of the package, float32 [batches, N, WIDTH], N = 2 * P * K.

    Row 2b + m is image b of modality m, identity-major. A vector is the person, the modality's
    mean, and noise of unit variance.
    """
    who = np.stack([rng.permutation(PERSONS)[:P] for _ in range(batches)]).repeat(K, 1)
    shown = facts.persons[who][:, :, None] + facts.mean
    x = shown + rng.normal(size=shown.shape)
    return x.reshape(batches, -1, WIDTH).astype(np.float32)


def told(arm: str) -> jax.Array:
    """The confuser's labels of a batch, int32 [2 * P * K]."""
    return half_flipped(P * K) if arm == "half_flip" else jnp.tile(jnp.arange(2), P * K)


@jax.jit
def train(variables: Any, x: jax.Array, modality: jax.Array, strength: Any, key: Any) -> Any:
    """Trains on batches x [steps, N, WIDTH] in turn with Adam, its rate falling as a cosine.

    One program for all arms: they differ in the confuser's labels `modality` [N] and in what of
    its gradient gets through, `strength`. Returns the variables at the end.
    """
    steps = len(x)
    optimizer = optax.chain(
        optax.scale_by_adam(b1=0.5),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(RATE, steps)),
    )

    def objective(params: Any, state: Any, batch: Any) -> tuple[jax.Array, Any]:
        x, key = batch
        (_, guess), updates = Network().apply(
            {"params": params, "batch_stats": state},
            x,
            strength,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": key},
        )
        return cross_entropy(guess, modality), updates["batch_stats"]

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        params, state, moments = carry
        gradient, state = jax.grad(objective, has_aux=True)(params, state, batch)
        change, moments = optimizer.update(gradient, moments)
        change["confuser"] = jax.tree.map(lambda u: CONFUSER_RATE * u, change["confuser"])
        return (optax.apply_updates(params, change), state, moments), None

    params, state = variables["params"], variables["batch_stats"]
    carry = (params, state, optimizer.init(params))
    (params, state, _), _ = jax.lax.scan(step, carry, (x, jax.random.split(key, steps)))
    return {"params": params, "batch_stats": state}


@jax.jit
def look(variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`Network` at test time."""
    return Network().apply(variables, x, train=False)  # type: ignore[return-value]


def probe(fit: np.ndarray, test: np.ndarray) -> float:
    """Accuracy of least squares from features to the modality, which alternates row by row.

    Args:
      fit: [N, D], what the weights are fitted to.
      test: [L, D], what they are scored on.
    """

    def with_one(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x.astype(np.float64), np.ones((len(x), 1))], 1)

    sign = np.where(np.arange(len(fit)) % 2, 1.0, -1.0)
    weights = np.linalg.lstsq(with_one(fit), sign, rcond=None)[0]
    infrared = np.arange(len(test)) % 2 == 1
    return float(((with_one(test) @ weights > 0) == infrared).mean())


def run(arm: str, seed: int, *, steps: int = STEPS, batches: int = BATCHES) -> dict[str, float]:
    """Trains and scores one arm; the same seed is the same world in every arm.

    Args:
      arm: of `STRENGTH`.
      seed: of the world, the initial weights and all batches.
      steps: of training.
      batches: of 2 * P * K vectors to fit the probe to, and as many to score everything on.

    Returns:
      A number for each of `COLUMNS`; shares are 0 to 1.

    Raises:
      ValueError: for an unknown arm.
    """
    if arm not in STRENGTH:
        raise ValueError(f"arm is {arm!r}, expected one of {list(STRENGTH)}")
    facts = world(seed)
    x = draw(facts, np.random.default_rng([seed, 1]), steps)
    at_init, at_dropout = jax.random.split(jax.random.key(seed))
    variables = Network().lazy_init(
        at_init, jax.ShapeDtypeStruct(x.shape[1:], x.dtype), train=False
    )
    variables = train(variables, x, told(arm), STRENGTH[arm], at_dropout)
    x = draw(facts, np.random.default_rng([seed, 2]), 2 * batches)
    z, guess = look(variables, x.reshape(-1, WIDTH))
    fit, test = np.split(np.asarray(z), 2)
    guess = jnp.split(guess, 2)[1]
    return {
        "cross_entropy": float(cross_entropy(guess, jnp.tile(told(arm), batches))),
        "confuser": float(accuracy(guess, jnp.tile(jnp.arange(2), batches * P * K))),
        "probe": probe(fit, test),
    }


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A Markdown table: a row for each arm, mean and standard deviation over its runs."""

    def cell(name: str, runs: Sequence[Mapping[str, float]]) -> str:
        scale, digits = (1, 3) if name == "cross_entropy" else (100, 1)
        values = [scale * r[name] for r in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"

    rows = [[arm, *(cell(name, runs) for name in COLUMNS)] for arm, runs in results.items()]
    return report.table(["confuser", *COLUMNS.values()], rows)


def markdown(found: dict[str, Any]) -> str:
    """The table, and what it is of."""
    seeds = len(next(iter(found["results"].values())))
    return f"{found['steps']} steps, {seeds} seeds, mean ± standard deviation\n\n" + table(
        found["results"]
    )


def main() -> None:
    """Parses the command line, trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    report.options(parser)
    parser.add_argument("--seeds", type=report.positive, default=3)
    parser.add_argument("--steps", type=report.positive, default=STEPS)
    flags = parser.parse_args()
    measuring = report.Run("confuser", flags)
    results = {
        arm: [run(arm, seed, steps=flags.steps) for seed in range(flags.seeds)] for arm in STRENGTH
    }
    measuring.save({"steps": flags.steps, "results": results}, markdown)


if __name__ == "__main__":
    main()
