"""State dicts of a ResNet by torchvision's names, drawn by NumPy. No torch, no package."""

import numpy as np

LAYOUTS = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
    101: (True, (3, 4, 23, 3)),
}


def shapes(depth, width=64, *, classes=10):
    """{name: shape} in the order of torchvision's state_dict()."""
    bottleneck, blocks = LAYOUTS[depth]
    growth = 4 if bottleneck else 1
    found = {"conv1.weight": (width, 3, 7, 7), **_norm("bn1", width)}
    inputs = width
    for stage, count in enumerate(blocks, 1):
        planes = width * 2 ** (stage - 1)
        for b in range(count):
            at = f"layer{stage}.{b}"
            if bottleneck:
                plan = [(planes, inputs, 1), (planes, planes, 3), (planes * 4, planes, 1)]
            else:
                plan = [(planes, inputs, 3), (planes, planes, 3)]
            for n, (o, i, k) in enumerate(plan, 1):
                found[f"{at}.conv{n}.weight"] = (o, i, k, k)
                found |= _norm(f"{at}.bn{n}", o)
            if b == 0 and (stage > 1 or bottleneck):
                found[f"{at}.downsample.0.weight"] = (planes * growth, inputs, 1, 1)
                found |= _norm(f"{at}.downsample.1", planes * growth)
            inputs = planes * growth
    return found | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def _norm(name, width):
    leaves = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{leaf}": (width,) for leaf in leaves} | {f"{name}.num_batches_tracked": ()}


def draw(depth, width=64, *, seed=0):
    """Arrays whose features are of order 1, with statistics that are none of a fresh network."""
    r = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes(depth, width).items():
        leaf = name.rsplit(".", 1)[1]
        if leaf == "num_batches_tracked":
            arrays[name] = np.array(7)
            continue
        if len(shape) == 4:
            x = r.standard_normal(shape) * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
        elif leaf == "running_var":
            x = r.uniform(0.5, 1.5, shape)
        elif leaf == "weight" and len(shape) == 1:
            x = r.uniform(0.3, 0.7, shape)
        else:
            x = 0.2 * r.standard_normal(shape)
        arrays[name] = x.astype(np.float32)
    return arrays


def images(count=2, size=(64, 32), seed=1):
    """float32 [count, H, W, 3]."""
    return np.random.default_rng(seed).standard_normal((count, *size, 3)).astype(np.float32)
