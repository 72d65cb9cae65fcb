"""The losses of DEEN and PDM by loops over identities in NumPy, and derivatives by differences."""

import jax
import jax.numpy as jnp
import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def double(function, *arrays):
    """A function in float64, compiled."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.jit(function)(*map(jnp.asarray, arrays)))


def slopes(function, *arrays):
    """Gradients with respect to all arrays, in float64."""
    return double(jax.grad(function, tuple(range(len(arrays)))), *arrays)


def numeric(function, x, step=1e-6):
    """A gradient by differences."""
    gradient = np.zeros_like(x)
    for at in np.ndindex(*x.shape):
        moved = [x.copy(), x.copy()]
        moved[0][at] += step
        moved[1][at] -= step
        gradient[at] = (function(moved[0]) - function(moved[1])) / (2 * step)
    return gradient


def distance(a, b):
    return np.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def cpm(c, g, *, margin=0.2, form="three", frozen=None):
    """`frozen`: own distances [P, 2] to take for D(c_m, g_m)."""
    total = 0.0
    for m in (0, 1):
        for j in range(len(c)):
            pull = distance(c[j, 1 - m], g[j, m])
            own = distance(c[j, m], g[j, m]) if frozen is None else frozen[j, m]
            made = [distance(g[j, m], g[k, m]) for k in range(len(c)) if k != j]
            apart = [distance(c[j, m], c[k, m]) for k in range(len(c)) if k != j]
            if form == "three":
                far = [own, min(made), min(apart)]
                a, b, e = (max(pull - x + margin, 0) for x in far)
                value = (a + (b + e) / 2) / 2
            else:
                value = max(pull - own - min(apart) + margin, 0)
            total += value / len(c)
    return total


def dcs(rows, pull_margin=0.01, push_margin=0.7):
    centers = [sum(r) / len(r) for r in rows]
    pull = [
        max(distance(f, c) - pull_margin, 0) for r, c in zip(rows, centers, strict=True) for f in r
    ]
    pairs = [(j, k) for j in range(len(rows)) for k in range(len(rows)) if j < k]
    push = [max(push_margin - distance(centers[j], centers[k]), 0) for j, k in pairs]
    return np.mean(pull) + np.mean(push)


def ch(logits, form):
    values = []
    for maps in logits:
        for i in range(len(maps)):
            for j in range(i):
                a, b = maps[i], maps[j]
                if form == "code_rms":
                    values.append(-np.sqrt(np.mean((sigmoid(a) - sigmoid(b)) ** 2)))
                else:
                    cosine = sum(a * b) / np.sqrt(sum(a * a) * sum(b * b))
                    values.append(cosine)
    return np.mean(values)
