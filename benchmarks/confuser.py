"""Does IDKL's confuser take the modality out of shared features? A small experiment.

  python -m benchmarks.confuser                    a Markdown table over 3 seeds, and a JSON file
  python -m benchmarks.confuser --seeds 1 --steps 500

Vectors of persons with a modality gap go through a small encoder and a BN neck, on which an
identity classifier and the confuser of `vireid_jax.nets.modality` are trained together, in three
ways:

  half_flip  the released code's: half of each modality's labels turned over, no reversal
  reversal   the paper's (eq. 2): true labels behind a gradient reversal
  none       identities alone; a confuser with true labels looks on, and passes no gradient

Afterwards the confuser is scored on fresh samples of the same persons, and so is a linear probe
that had nothing to do with the training: least squares from neck features to the modality,
fitted to other fresh samples. Half-flipped labels are independent of the features, so the
best confuser is one that answers 1/2 to everything. Its cross-entropy is ln 2 = 0.693, as if it
were confused, whatever the features say of the modality.
"""

import argparse
import json
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vireid_jax.losses.identity import accuracy, cross_entropy
from vireid_jax.methods.idkl import half_flipped
from vireid_jax.nets.modality import ModalityClassifier
from vireid_jax.nets.norm import BatchNorm
from vireid_jax.nets.reversal import reverse_gradient

ARMS = ("half_flip", "reversal", "none")
COLUMNS = {
    "cross_entropy": "cross-entropy of the confuser's task",
    "confuser": "confuser on true labels, %",
    "probe": "linear probe of the modality, %",
    "identity": "identity, %",
}
PERSONS, WIDTH = 24, 32
P, K = 12, 5  # identities and images of each modality in a batch, as in the recipe
GAP = 1.0  # distance of a modality's mean from the middle, in each coordinate's unit of noise
STEPS, RATE = 1500, 2e-3
BATCHES = 32  # of 2 * P * K = 120 vectors each, to fit the probe to; as many for scores
FRESH = 1000  # what is added to a seed for vectors that no training saw


class Network(nn.Module):
    """Encoder of two layers, BN neck, identity classifier and confuser.

    Attributes:
      arm: of `ARMS`, what the confuser does to the gradient.
    """

    arm: str

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[N, WIDTH] -> neck features [N, WIDTH], logits [N, PERSONS] and [N, 2]."""
        x = nn.Dense(WIDTH)(nn.relu(nn.Dense(2 * WIDTH)(x)))
        x = BatchNorm(use_bias=False)(x, train=train)
        logits = nn.Dense(PERSONS, use_bias=False)(x)
        seen = {
            "half_flip": lambda: x,
            "reversal": lambda: reverse_gradient(x, 1.0),
            "none": lambda: jax.lax.stop_gradient(x),
        }[self.arm]()
        return x, logits, ModalityClassifier()(seen, train=train)


def world(key: jax.Array) -> dict[str, jax.Array]:
    """What does not change: persons [PERSONS, WIDTH], a view of them and a mean per modality."""
    persons, view, gap = jax.random.split(key, 3)
    common = jnp.eye(WIDTH)[None]
    return {
        "persons": jax.random.normal(persons, (PERSONS, WIDTH)),
        "view": common + 0.1 * jax.random.normal(view, (2, WIDTH, WIDTH)),
        "gap": GAP * jax.random.normal(gap, (2, WIDTH)),
    }


def draw(key: jax.Array, facts: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """A batch in the order of the package: vectors [2 * P * K, WIDTH] and persons [2 * P * K].

    Row 2b + m is image b of modality m, identity-major. A vector is the person as the modality
    shows it, the modality's mean, and noise of unit variance.
    """
    who, noise = jax.random.split(key)
    label = jnp.repeat(jax.random.permutation(who, PERSONS)[:P], K)
    seen = jnp.einsum("bd,mde->bme", facts["persons"][label], facts["view"])
    x = seen + facts["gap"][None] + jax.random.normal(noise, seen.shape)
    return x.reshape(-1, WIDTH), jnp.repeat(label, 2)


def told(arm: str) -> jax.Array:
    """The confuser's labels of a batch, int32 [2 * P * K]."""
    return half_flipped(P * K) if arm == "half_flip" else jnp.tile(jnp.arange(2), P * K)


@partial(jax.jit, static_argnames=("arm", "steps"))
def train(arm: str, seed: Any, steps: int) -> tuple[dict[str, Any], dict[str, jax.Array]]:
    """Trains one network with Adam; returns its variables and the world it lives in."""
    net = Network(arm)
    key, at_world, at_init = jax.random.split(jax.random.key(seed), 3)
    facts = world(at_world)
    variables = net.init(at_init, jnp.zeros((2, WIDTH)), train=False)
    params, state = variables["params"], variables["batch_stats"]
    optimizer = optax.adam(RATE)

    def objective(params: Any, state: Any, key: jax.Array) -> tuple[jax.Array, Any]:
        at_batch, at_dropout = jax.random.split(key)
        x, label = draw(at_batch, facts)
        (_, logits, modality), updates = net.apply(
            {"params": params, "batch_stats": state},
            x,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": at_dropout},
        )
        total = cross_entropy(logits, label) + cross_entropy(modality, told(arm))
        return total, updates["batch_stats"]

    def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
        params, state, optimum = carry
        gradient, state = jax.grad(objective, has_aux=True)(params, state, key)
        change, optimum = optimizer.update(gradient, optimum)
        return (optax.apply_updates(params, change), state, optimum), None

    start = (params, state, optimizer.init(params))
    (params, state, _), _ = jax.lax.scan(step, start, jax.random.split(key, steps))
    return {"params": params, "batch_stats": state}, facts


@partial(jax.jit, static_argnames=("arm", "batches"))
def look(
    arm: str, variables: Any, facts: Any, key: jax.Array, batches: int
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Fresh batches at test time: neck features [batches * N, WIDTH], and the heads' scores."""
    net = Network(arm)

    def one(key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, label = draw(key, facts)
        z, logits, modality = net.apply(variables, x, train=False)
        scores = {
            "cross_entropy": cross_entropy(modality, told(arm)),
            "confuser": accuracy(modality, jnp.tile(jnp.arange(2), P * K)),
            "identity": accuracy(logits, label),
        }
        return z, scores

    z, scores = jax.lax.map(one, jax.random.split(key, batches))
    return z.reshape(-1, WIDTH), {name: x.mean() for name, x in scores.items()}


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
    right = (with_one(test) @ weights > 0) == (np.arange(len(test)) % 2 == 1)
    return float(right.mean())


def run(arm: str, seed: int, *, steps: int = STEPS, batches: int = BATCHES) -> dict[str, float]:
    """Trains and scores one arm; the same seed is the same world in every arm.

    Args:
      arm: of `ARMS`.
      seed: of the world, the initial weights and all batches.
      steps: of training.
      batches: of 2 * P * K vectors to fit the probe to, and as many to score everything on.

    Returns:
      A number for each of `COLUMNS`.

    Raises:
      ValueError: for an unknown arm.
    """
    if arm not in ARMS:
        raise ValueError(f"arm is {arm!r}, expected one of {ARMS}")
    variables, facts = train(arm, seed, steps)
    at_fit, at_test = jax.random.split(jax.random.key(seed + FRESH))
    fit, _ = look(arm, variables, facts, at_fit, batches)
    test, scores = look(arm, variables, facts, at_test, batches)
    found = {name: float(x) for name, x in scores.items()}
    return found | {"probe": probe(np.asarray(fit), np.asarray(test))}


def table(results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """A Markdown table: a row for each arm, mean and standard deviation over its runs."""

    def cell(name: str, runs: Sequence[Mapping[str, float]]) -> str:
        scale, digits = (1, 3) if name == "cross_entropy" else (100, 1)
        values = [scale * r[name] for r in runs]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.{digits}f} ± {spread:.{digits}f}"

    rows = [["confuser", *COLUMNS.values()], ["---"] + ["---:"] * len(COLUMNS)]
    rows += [[arm, *(cell(name, runs) for name in COLUMNS)] for arm, runs in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    """Parses the command line, trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--json", type=pathlib.Path, default=pathlib.Path("runs/confuser.json"))
    flags = parser.parse_args()
    if flags.seeds < 1 or flags.steps < 1:
        parser.error("--seeds and --steps are 1 or more")
    results = {
        arm: [run(arm, seed, steps=flags.steps) for seed in range(flags.seeds)] for arm in ARMS
    }
    print(f"{flags.steps} steps, {flags.seeds} seeds, mean ± standard deviation\n")
    print(table(results))
    flags.json.parent.mkdir(parents=True, exist_ok=True)
    flags.json.write_text(json.dumps({"steps": flags.steps, "results": results}, indent=1))
    print(f"\nwritten to {flags.json}")


if __name__ == "__main__":
    main()
