"""PDM in the step benchmark: its sizes, and the train step in PyTorch."""

import re
from collections.abc import Callable
from typing import Any

WRITTEN = {
    "stages": 4,
    "mfa": True,
    "gate": True,
    "mfgm": "code",
    "id_global_weight": 1.0,
    "cpm_form": "three",
    "ch_form": "code_rms",
}
# The recipe has 8, 64 images and 192 rows, for machines with memory for it (about twice as much).
PAPER_IDS = 4


def settings(size: str, num_ids: int | None = None) -> dict[str, Any]:
    """Batch, facts of the run, optimizer and options of a size, from configs/pdm.py.

    The preset is "code". "modalities" counts the images of a slot: after MFGM each image is three
    rows, so that layer4, the prototypes and all losses see three times as many. The dropout of
    those maps is left out: two frameworks draw different masks, and the losses are compared.

    Args:
      size: "main", or "paper": ResNet-50 at 384 x 192.
      num_ids: P instead of the config's at "main", or of `PAPER_IDS`.

    Raises:
      ValueError: the config has options that the PyTorch step is not written for.
    """
    from benchmarks import candidates
    from configs import pdm

    config = pdm.get_config("synthetic" if size == "main" else "sysu")
    config.method.dropout = 0.0
    facts = {
        "num_classes": config.data.train_ids if size == "main" else 395,
        "image_size": tuple(config.data.image_size),
        "num_ids": num_ids or (config.sampler.num_ids if size == "main" else PAPER_IDS),
    }
    optim = config.optim
    return {
        **facts,
        "num_instances": config.sampler.num_instances,
        "modalities": 2,
        "facts": facts,
        "optim": {
            "name": optim.name,
            "weight_decay": optim.weight_decay,
            "momentum": optim.momentum,
            "nesterov": optim.nesterov,
            "multipliers": tuple(tuple(pair) for pair in optim.multipliers),
        },
        "method": candidates.written_options(config, WRITTEN),
    }


def torch_training(s: dict[str, Any], prepare: Callable[[Any], Any], lr: float) -> tuple[Any, Any]:
    """The optimizer, and the loss of standardized images [B, 3, H, W] and labels [B].

    Parameters are those of the tests' reference; its network and terms, which go image by image
    and identity by identity, are written again for speed. The attention has the matrices of
    energies of the released code, and the 49 x 49 convolution is one. Rows are in its order too:
    visible images, infrared ones, then what each branch made of them.

    Args:
      s: from `settings`.
      prepare: moves the model to its device and layout.
      lr: learning rate.
    """
    import torch
    from torch.nn import functional

    from benchmarks.candidates import reference

    pdm = reference("pdm")
    known = {**pdm.DEEN, **dict.fromkeys(("depth", "width", "last_stride"))}
    options = {k: v for k, v in s["method"].items() if k in known}
    model: Any = pdm.MultiFeature(**s["facts"], **options, preset="code")
    reference("running").load(model, "benchmark")
    model = prepare(model)
    optimizer = _optimizer(model, s["optim"], lr)
    o, features = s["method"], _network(model)
    identities = s["num_ids"]

    def cdist(x: Any, y: Any) -> Any:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")

    def triplet(x: Any, who: Any) -> Any:
        distance, same = cdist(x, x), who[:, None] == who[None]
        farthest = distance.masked_fill(~same, -torch.inf).amax(1)
        nearest = distance.masked_fill(same, torch.inf).amin(1)
        return torch.relu(o["tri_margin"] + farthest - nearest).mean()

    def other(n: int, like: Any) -> Any:
        return ~torch.eye(n, dtype=torch.bool, device=like.device)

    def pair_mining(rows: Any) -> Any:
        """L_cpm in the released form, over all branches and both modalities at once."""
        centers = rows.unflatten(2, (identities, -1)).mean(3)  # [1 + G, 2, P, D]
        c, g = centers[0], centers[1:]
        pull = (c.flip(0) - g).norm(dim=-1)  # [G, 2, P]
        own = (c - g).norm(dim=-1).detach()
        mask = ~other(identities, c)
        nearest = [cdist(x, x).masked_fill(mask, torch.inf).amin(-1) for x in (g, c)]
        hinges = [torch.relu(pull - far + o["cpm_margin"]) for far in (own, *nearest)]
        return (hinges[0] + (hinges[1] + hinges[2]) / 2).mean(-1).sum() / 2

    def heterogeneity(similarity: Any) -> Any:
        count, places = similarity.shape[1:]
        i, j = torch.triu_indices(count, count, 1, device=similarity.device)
        return -(cdist(similarity, similarity)[:, i, j] / places**0.5).mean()

    def separation(rows: Any) -> Any:
        """L_dcs: centers of identities over modalities and branches."""
        x = rows.unflatten(2, (identities, -1)).movedim(2, 0).flatten(1, 3)  # [P, S, D]
        centers = x.mean(1)
        pull = torch.relu((x - centers[:, None]).norm(dim=-1) - o["dcs_pull_margin"]).mean()
        apart = cdist(centers, centers)[other(identities, x)]
        return pull + torch.relu(o["dcs_push_margin"] - apart).mean()

    def loss(visible: Any, infrared: Any, labels: Any) -> Any:
        f, similarity = features(visible, infrared)
        who = labels.repeat(len(f["global"]) // len(labels))
        total: Any = 0.0
        for name, x in f.items():
            logits = getattr(model, f"classifier_{name}")(getattr(model, f"neck_{name}")(x))
            total = total + functional.cross_entropy(logits, who)
        if o["normalize"]:
            f = {name: functional.normalize(x) for name, x in f.items()}
        total = total + triplet(f["global"], who)
        f = {name: x.view(-1, 2, len(labels), x.shape[-1]) for name, x in f.items()}
        total = total + o["cpm_weight"] * (pair_mining(f["global"]) + pair_mining(f["full"]))
        total = total + o["ch_weight"] * heterogeneity(similarity)
        total = total + o["dcs_weight"] * separation(f["full"])
        made = f["global"][1:]
        pairs = (made.sum(0).square().sum() - made.square().sum()) / 2
        return total + o["ort_weight"] * pairs / (2 * len(labels) * (1 + len(made)))

    return optimizer, loss


def _network(model: Any) -> Callable[..., Any]:
    """Images to features {"global", "full": [rows, D]} and similarities [rows, m, n]."""
    import torch
    from torch.nn import functional

    def like(y: Any, x: Any) -> Any:
        """Map y in the layout of map x: a copy once, instead of mixed layouts from here on."""
        last = x.is_contiguous(memory_format=torch.channels_last)
        return y.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    def gate(x: Any) -> Any:
        """SimAM."""
        square = (x - x.mean((2, 3), keepdim=True)).square()
        variance = square.sum((2, 3), keepdim=True) / (x.shape[2] * x.shape[3] - 1)
        return x * torch.sigmoid(square / (4 * (variance + 1e-4)) + 0.5)

    def channels(block: Any, high: Any, low: Any) -> Any:
        """CNL."""
        theta, phi, g = (
            layer(x).flatten(2)
            for layer, x in ((block.theta, high), (block.phi, low), (block.g, low))
        )
        energy = theta @ phi.transpose(1, 2) / theta.shape[1]
        y = like((energy @ g).view(low.shape), low)
        return high + block.bn(block.w(y))

    def positions(block: Any, high: Any, low: Any) -> Any:
        """PNL."""
        shape = (len(high), low.shape[1], -1)
        theta, phi, g = (
            layer(x).contiguous().view(shape)
            for layer, x in ((block.theta, high), (block.phi, low), (block.g, low))
        )
        energy = theta.transpose(1, 2) @ phi / phi.shape[2]  # [N, n of high, n of low]
        y = g @ energy.transpose(1, 2)
        y = like(y.view(len(high), low.shape[1] // 2, *high.shape[2:]), high)
        return high + block.bn(block.w(y))

    def generate(x: Any) -> Any:
        """MFGM: the maps, then those of every branch."""
        e = model.expansion
        convs = [getattr(e, f"dilated_{d}") for d in (1, 2, 3)]
        y = sum(conv(x) for conv in convs) / 3
        maps = [x]
        for b, part in enumerate(y.chunk(e.branches, 1)):
            pooled = torch.stack([part.amax((2, 3)), part.mean((2, 3))])
            gates = torch.relu(pooled @ e.channel_squeeze[b]) @ e.channel_excite[b]
            gated = part * gates.sum(0).sigmoid()[:, :, None, None]
            pooled = torch.cat([gated.amax(1, keepdim=True), gated.mean(1, keepdim=True)], 1)
            kernel = e.spatial_kernel[b].permute(3, 2, 0, 1)
            at = functional.conv2d(
                pooled, kernel, e.spatial_bias[b : b + 1], padding=kernel.shape[-1] // 2
            )
            z = torch.relu(gated * at.sigmoid() + part)
            weight = e.expand_kernel[b].T[:, :, None, None]
            maps.append(functional.conv2d(z, weight, e.expand_bias[:, b]))
        return torch.cat(maps)

    def features(visible: Any, infrared: Any) -> Any:
        images = {"visible": visible, "infrared": infrared}
        streams = [model.backbone.get_submodule(k)["stem"](v) for k, v in images.items()]
        x = low = gate(torch.cat(streams))
        for n in (1, 2, 3):
            x = model.backbone.shared[f"layer{n}"](x)
            block = getattr(model, f"mfa_{n - 1}")
            x = low = positions(block.position, channels(block.channel, x, low), low)
        x = model.backbone.shared["layer4"](generate(x))
        pool, p = x.mean((2, 3)), model.prototypes
        rows = x.flatten(2)  # [N, D, n]
        similarity = torch.sigmoid(p.prototypes.T @ (rows + p.positions))
        parts = similarity @ rows.transpose(1, 2) / rows.shape[2]
        return {"global": pool, "full": torch.cat([parts.flatten(1), pool], 1)}, similarity

    return features


def _optimizer(model: Any, optim: dict[str, Any], lr: float) -> Any:
    """The recipe's: Adam, or SGD with momentum, and rates by parameter."""
    import torch

    groups: dict[float, list[Any]] = {}
    for name, p in model.named_parameters():
        path = name.replace(".", "/")
        factor = next((f for pattern, f in optim["multipliers"] if re.match(pattern, path)), 1.0)
        groups.setdefault(factor, []).append(p)
    of_rates = [{"params": p, "lr": lr * factor} for factor, p in groups.items()]
    decay = optim["weight_decay"]
    if optim["name"] == "adam":
        return torch.optim.Adam(of_rates, weight_decay=decay, fused=True)
    momentum = {k: optim[k] for k in ("momentum", "nesterov")}
    return torch.optim.SGD(of_rates, lr=lr, weight_decay=decay, **momentum, fused=True)
