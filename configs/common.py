"""What the configs of all methods share: data, batches, run length, evaluation.

Configs import ml_collections and each other, never the package: a config says what to do,
the package does it. Durations are epochs. Every number names its source.
"""

import ml_collections
from ml_collections import config_dict

# What each data set is scored under, both directions where both are in use, and what the best
# checkpoint is chosen by where people are held out for that (data.val_ids).
_SYSU = ("sysu/all/single", "sysu/all/multi", "sysu/indoor/single", "sysu/indoor/multi")
PROTOCOLS = {
    "synthetic": _SYSU,
    "sysu": _SYSU,
    "regdb": ("regdb/v2t", "regdb/t2v"),
    "llcm": ("llcm/i2v", "llcm/v2i"),
    "folders": ("folders/i2v", "folders/v2i"),
}
DATASETS = tuple(PROTOCOLS)  # the first is the default


def dataset_of(arg: str | None) -> str:
    """The data set that `--config configs/NAME.py:DATASET` asks for; synthetic by default."""
    dataset = arg or "synthetic"
    if dataset not in DATASETS:
        raise ValueError(
            f"no recipe for the data set {dataset!r}; expected --config configs/NAME.py or "
            f"configs/NAME.py:DATASET with DATASET one of {', '.join(DATASETS)}"
        )
    return dataset


def dataset_and_preset(name: str, arg: str | None, presets: tuple[str, ...]) -> tuple[str, str]:
    """(data set, preset) of what follows "configs/NAME.py:": either, both or neither.

    Without one the data set is synthetic and the preset the first.
    """
    found: dict[str, str] = {}
    for word in arg.split(",") if arg else ():
        kind = "preset" if word in presets else "data set"
        if word not in (*presets, *DATASETS):
            raise ValueError(
                f"configs/{name}.py has neither a data set nor a preset {word!r}; expected "
                f"--config configs/{name}.py:DATASET, :PRESET or :DATASET,PRESET with DATASET one "
                f"of {', '.join(DATASETS)} and PRESET one of {', '.join(presets)}"
            )
        if kind in found:
            raise ValueError(
                f"configs/{name}.py:{arg} names a {kind} twice, {found[kind]} and {word}; expected "
                "one at most"
            )
        found[kind] = word
    return found.get("data set", DATASETS[0]), found.get("preset", presets[0])


def agw_optimizer(c: ml_collections.ConfigDict, milestones: tuple[float, ...]) -> None:
    """SGD as in AGW's code and its descendants: all but necks and classifiers at a tenth."""
    c.optim.name = "sgd"
    c.optim.lr = 0.1
    c.optim.momentum, c.optim.nesterov = 0.9, True
    c.optim.weight_decay = 5e-4
    c.optim.warmup_epochs, c.optim.warmup_factor, c.optim.warmup_by = 10.0, 0.1, "epoch"
    c.optim.milestones = milestones
    c.optim.multipliers = (("(?!neck|classifier)", 0.1),)


def deen_augmentation(c: ml_collections.ConfigDict, dataset: str) -> None:
    """DEEN's and PDM's: gray and erased images in both modalities, on SYSU-MM01 large patches."""
    c.augment.grayscale = c.augment.erase = (0.5, 0.5)
    c.augment.erase_value = (0.485, 0.456, 0.406)  # in standardized units
    c.augment.erase_area = (0.2, 0.8) if dataset == "sysu" else (0.02, 0.4)


def laptop(c: ml_collections.ConfigDict) -> None:
    """The embedded data on two CPU cores: a small network that starts from random weights.

    Of AGW, CAJ, DEEN and PDM. Ours, not the papers'. Where it departs from their recipes, the
    reason is speed: few steps from random weights instead of many from ImageNet's.
    """
    c.method.depth, c.method.width = 10, 32
    c.method.normalize = True  # features of a fresh network have no scale to rely on
    c.sampler.num_ids, c.sampler.num_instances = 16, 2
    c.sampler.steps_per_epoch = 20
    c.augment.pad = 4  # 10 of 384 rows would be 2.5 of 96
    c.augment.erase = c.augment.grayscale = (0.0, 0.0)
    c.augment.visible_channel = "adapt_gray"  # dyes say nothing about infrared
    c.augment.infrared_channel = "none"
    c.optim.name, c.optim.lr = "adam", 4e-3
    c.optim.nesterov, c.optim.multipliers = False, ()  # nothing is pretrained
    c.optim.schedule, c.optim.milestones = "cosine", ()
    c.optim.warmup_epochs, c.optim.warmup_factor, c.optim.warmup_by = 1.0, 0.1, "step"
    c.train.epochs = 32.0
    c.train.eval_every = 5.0
    c.train.checkpoint_every = 5.0


def base(method: str, dataset: str) -> ml_collections.ConfigDict:
    """The sections that do not depend on the method, at the size of the data set."""
    laptop = dataset == "synthetic"
    c = ml_collections.ConfigDict()
    c.run_name = f"{method}-{dataset}"  # the default workdir is runs/<run_name>
    c.seed = 0
    c.allow_changes = False  # resume although training options differ from the run's

    c.data = ml_collections.ConfigDict(dict(name=dataset))
    if laptop:
        c.data.image_size = (96, 48)
        c.data.seed = 0
        c.data.train_ids = 240  # identities; images of each below are per camera
        c.data.train_visible = 3
        c.data.train_infrared = 5
        c.data.val_ids = 24
        c.data.val_visible = 2
        c.data.val_infrared = 3
        c.data.test_ids = 96
        c.data.test_visible = 10  # the multi-shot protocol draws 10
        c.data.test_infrared = 5
    else:
        c.data.image_size = (384, 128)
        c.data.root = config_dict.placeholder(str)  # the folder as released
        c.data.images = "cached"  # decoded once into a file; or memory, encoded
        c.data.filter = "lanczos"  # of resizing: AGW and its descendants; MPANet, IDKL: bilinear
        c.data.strict = True  # refuse a tree that lacks anything of the release
        c.data.unreadable = "refuse"  # images that cannot be decoded; or skip
        c.data.val_ids = 0  # people held out from training to choose the best checkpoint on
        c.data.cache = config_dict.placeholder(str)  # folder of decoded images; None: the default
        c.data.prepared = config_dict.placeholder(str)  # folder, instead of root
    if dataset == "regdb":
        c.data.trial = 1  # which of the ten released splits
    if dataset == "folders":
        c.data.test_share = 0.25  # of the people; 1: all, to score a trained model
        c.data.seed = 0  # which people those are

    c.init = ml_collections.ConfigDict()
    # ImageNet weights of the backbone: a .pth, .safetensors or .npz file; None: random weights.
    c.init.weights = config_dict.placeholder(str)

    c.sampler = ml_collections.ConfigDict()
    c.sampler.rule = "agw"  # or agw_legacy, exhaust (MPANet, IDKL), permute; see data/sampler.py
    c.sampler.num_ids = 8  # P, identities in a batch
    c.sampler.num_instances = 4  # K, images of an identity in each modality
    # None: the rule's own; for agw max(visible, infrared) // (P * K) + 1, as in AGW's code
    c.sampler.steps_per_epoch = config_dict.placeholder(int)
    c.sampler.replacement = True

    c.loader = ml_collections.ConfigDict()
    c.loader.name = "arrays"  # or tfdata, which needs TensorFlow; the batches are the same
    c.loader.prefetch = 2  # batches

    c.augment = ml_collections.ConfigDict()
    c.augment.flip = 0.5  # probability
    c.augment.pad = 10  # pixels on each side before the random crop
    c.augment.pad_value = 0
    # Probabilities (visible, infrared); a single number holds for both.
    c.augment.grayscale = (0.0, 0.0)
    c.augment.erase = (0.0, 0.0)  # random erasing
    c.augment.erase_area = (0.02, 0.4)
    c.augment.erase_aspect = (0.3, 1 / 0.3)
    c.augment.erase_form = "uniform"  # of the aspect ratio; torchvision's erasing: log_uniform
    c.augment.erase_attempts = 100  # torchvision's: 10
    c.augment.erase_value = (0.0, 0.0, 0.0)  # in standardized units
    c.augment.visible_channel = "none"  # or exchange, exchange_luma, adapt, adapt_gray
    c.augment.infrared_channel = "none"
    # CAJ: every visible image a second time, with this channel operator ("exchange"); "none": once.
    c.augment.second_view = "none"
    c.augment.luma = 0.5
    c.augment.paired = False  # share flip and crop between row i of both modalities

    c.optim = ml_collections.ConfigDict()
    c.optim.name = "adam"
    c.optim.lr = 3.5e-4
    c.optim.weight_decay = 5e-4
    c.optim.decay = "coupled"  # as torch.optim.Adam; "decoupled" is AdamW
    c.optim.momentum = 0.9  # SGD only
    c.optim.nesterov = False  # SGD only
    c.optim.schedule = "multistep"  # or cosine, constant
    c.optim.milestones = ()  # epochs
    c.optim.gamma = 0.1
    c.optim.warmup_epochs = 0.0
    c.optim.warmup_factor = 0.1
    c.optim.warmup_by = "step"  # or epoch: AGW's staircase
    c.optim.restart_epoch = config_dict.placeholder(float)  # start the schedule again here
    c.optim.clip_norm = config_dict.placeholder(float)
    c.optim.multipliers = ()  # e.g. (("backbone/.*", 0.1),)
    # Paths without weight decay, e.g. (".*/bias", ".*/scale"); torch decays all that it is given.
    c.optim.no_decay = ()

    c.train = ml_collections.ConfigDict()
    c.train.epochs = 20.0
    c.train.log_every = 10  # steps
    c.train.eval_every = 5.0  # epochs between validations on held-out identities; 0: none
    c.train.checkpoint_every = 5.0  # epochs
    c.train.keep = 3  # newest checkpoints kept, beside the best by validation mAP
    c.train.tensorboard = True

    # How a step is laid out on the devices. None of it is in the papers.
    c.devices = ml_collections.ConfigDict()
    c.devices.fsdp = 1  # devices that share one copy of parameters and optimizer state
    c.devices.bn_groups = 1  # runs of rows with batch statistics of their own; 1: of all rows
    c.devices.accumulate = 1  # chunks that a batch is embedded and back-propagated in
    c.devices.remat = False  # compute the maps inside blocks anew in the backward pass

    c.eval = ml_collections.ConfigDict()
    c.eval.protocols = PROTOCOLS[dataset]
    c.eval.validation = PROTOCOLS[dataset][0]
    c.eval.trials = config_dict.placeholder(int)  # draws; None: the protocol's number, 10 or 1
    c.eval.gallery = "agw"  # or official: SYSU-MM01's fixed permutations, from the file below
    c.eval.rand_perm = config_dict.placeholder(str)  # rand_perm_cam.mat
    c.eval.flip = False  # rows for the mean feature of an image and its mirror image, too
    # Of methods whose headline is a sum of similarities (DEEN, PDM): "accumulate" the sum, or
    # "store" one wide vector an image, which re-ranking needs.
    c.eval.fuse = "accumulate"
    c.eval.rerank = "none"  # or all, queries: rows after k-reciprocal re-ranking, too
    c.eval.corrupt = config_dict.placeholder(str)  # visible, infrared, both, visible:fog:3, ...
    c.eval.corrupt_repeats = 10
    c.eval.corrupt_seed = 0
    c.eval.batch_size = 256
    c.eval.memory_mb = 128  # working memory of the evaluator, beyond the features
    c.eval.baselines = laptop  # score raw pixels and the untrained network too
    return c
