"""PDM in the step benchmark: its sizes, and the train step in PyTorch."""

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
    return candidates.of_pairs(
        config, size, num_ids or (None if size == "main" else PAPER_IDS), WRITTEN
    )


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

    from benchmarks import step_torch
    from benchmarks.candidates import reference
    from benchmarks.step_torch import cdist, other

    pdm = reference("pdm")
    known = {**pdm.DEEN, **dict.fromkeys(("depth", "width", "last_stride"))}
    options = {k: v for k, v in s["method"].items() if k in known}
    model: Any = pdm.MultiFeature(**s["facts"], **options, preset="code")
    reference("running").load(model, "benchmark")
    model = prepare(model)
    o, features = s["method"], network(model)
    identities = s["num_ids"]

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
        total = total + step_torch.batch_hard(f["global"], who, o["tri_margin"])
        f = {name: x.view(-1, 2, len(labels), x.shape[-1]) for name, x in f.items()}
        mined = [step_torch.pair_mining(x, identities, o["cpm_margin"]) for x in f.values()]
        total = total + o["cpm_weight"] * sum(mined)
        total = total + o["ch_weight"] * heterogeneity(similarity)
        total = total + o["dcs_weight"] * separation(f["full"])
        return total + o["ort_weight"] * step_torch.orthogonality(f["global"])

    return step_torch.optimizer(model, s["optim"], lr), loss


def network(model: Any) -> Callable[..., Any]:
    """Images to features {"global", "full": [rows, D]} and similarities [rows, m, n].

    Without the gate, the attention and the prototypes where the model is DEEN, which has None for
    similarities.
    """
    import torch
    from torch.nn import functional

    from benchmarks.step_torch import like

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
            z = torch.relu(attended(e, b, part) if model.o["mfgm"] == "code" else part)
            weight = e.expand_kernel[b].T[:, :, None, None]
            maps.append(functional.conv2d(z, weight, e.expand_bias[:, b]))
        return torch.cat(maps)

    def attended(e: Any, b: int, part: Any) -> Any:
        """The map of branch b with its attention added."""
        pooled = torch.stack([part.amax((2, 3)), part.mean((2, 3))])
        gates = torch.relu(pooled @ e.channel_squeeze[b]) @ e.channel_excite[b]
        gated = part * gates.sum(0).sigmoid()[:, :, None, None]
        pooled = torch.cat([gated.amax(1, keepdim=True), gated.mean(1, keepdim=True)], 1)
        kernel = e.spatial_kernel[b].permute(3, 2, 0, 1)
        bias = e.spatial_bias[b : b + 1]
        at = functional.conv2d(pooled, kernel, bias, padding=kernel.shape[-1] // 2)
        return gated * at.sigmoid() + part

    def features(visible: Any, infrared: Any) -> Any:
        images = {"visible": visible, "infrared": infrared}
        streams = [model.backbone.get_submodule(k)["stem"](v) for k, v in images.items()]
        x = torch.cat(streams)
        x = low = gate(x) if model.o["gate"] else x
        for n in (1, 2, 3):
            x = model.backbone.shared[f"layer{n}"](x)
            block = getattr(model, f"mfa_{n - 1}")
            x = low = positions(block.position, channels(block.channel, x, low), low)
        x = model.backbone.shared["layer4"](generate(x))
        pool = x.mean((2, 3))
        if not model.o["num_prototypes"]:
            return {"global": pool}, None
        p = model.prototypes
        rows = x.flatten(2)  # [N, D, n]
        similarity = torch.sigmoid(p.prototypes.T @ (rows + p.positions))
        parts = similarity @ rows.transpose(1, 2) / rows.shape[2]
        return {"global": pool, "full": torch.cat([parts.flatten(1), pool], 1)}, similarity

    return features
