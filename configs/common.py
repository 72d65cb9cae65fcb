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

    Of all methods. Ours, not the papers'. Where it departs from their recipes, the reason is speed:
    few steps from random weights instead of many from ImageNet's.
    """
    c.method.depth, c.method.width = 10, 32
    if "normalize" in c.method:
        c.method.normalize = True  # features of a fresh network have no scale to rely on
    c.sampler.num_ids, c.sampler.num_instances = 16, 2
    c.sampler.steps_per_epoch = 20
    c.augment.pad = 4  # 10 of 384 rows would be 2.5 of 96
    c.augment.pad_value = 0
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
    c.run_name = f"{method}-{dataset}"  # the default folder is runs/<run_name>
    c.seed = 0  # of the weights, the batches and all random numbers of a step
    c.allow_changes = False  # resume although training options differ from the run's

    c.data = ml_collections.ConfigDict()
    c.data.name = dataset  # the data set; a recipe's word behind the colon
    if laptop:
        c.data.image_size = (96, 48)  # height and width in pixels
        c.data.seed = 0  # which people are rendered
        c.data.world = 0  # whose cameras: 0 the standard ones, another number a draw of others
        c.data.infrared_light = True  # False: cameras 3 and 6 see by visible light, to pretrain
        c.data.train_ids = 240  # people to train on
        c.data.train_visible = 3  # images of each before each visible camera
        c.data.train_infrared = 5  # images of each before each infrared camera
        c.data.val_ids = 24  # people held out from training to choose the best checkpoint on
        c.data.val_visible = 2  # as train_visible
        c.data.val_infrared = 3  # as train_infrared
        c.data.test_ids = 96  # people to test on
        c.data.test_visible = 10  # as train_visible; the multi-shot protocol draws 10
        c.data.test_infrared = 5  # as train_infrared
    else:
        c.data.image_size = (384, 128)  # height and width in pixels
        c.data.root = config_dict.placeholder(str)  # folder as released; or a CSV file
        # cached: decoded once into a file; memory: that file in memory; encoded: as they are.
        c.data.images = "cached"
        c.data.filter = "lanczos"  # of resizing: lanczos (AGW's family) or bilinear (IDKL)
        # What is black and white of 16-bit images: full, image or LOW:HIGH; None: full.
        c.data.thermal_range = config_dict.placeholder(str)
        c.data.strict = True  # refuse a tree that lacks anything of the release
        c.data.unreadable = "refuse"  # images that cannot be decoded; or skip
        c.data.val_ids = 0  # people held out from training to choose the best checkpoint on
        c.data.cache = config_dict.placeholder(str)  # folder of decoded images; None: the default
        c.data.prepared = config_dict.placeholder(str)  # folder of `prepare`, without root
    if dataset == "regdb":
        c.data.trial = 1  # which of the ten released splits
    if dataset == "folders":
        c.data.test_share = 0.25  # of the people; 1: all, to score a trained model
        c.data.seed = 0  # which people those are

    c.init = ml_collections.ConfigDict()
    # ImageNet weights of the backbone, or a checkpoint of the authors' code of AGW, CAJ, DEEN, PDM
    # or IDKL: a .pth, .safetensors or .npz file; None: random weights.
    c.init.weights = config_dict.placeholder(str)
    c.init.unused = "refuse"  # trained arrays of the file without a place; or ignore

    c.sampler = ml_collections.ConfigDict()
    c.sampler.rule = "agw"  # or agw_legacy, exhaust (MPANet, IDKL), permute; see data/sampler.py
    c.sampler.num_ids = 8  # P, identities in a batch
    c.sampler.num_instances = 4  # K, images of an identity in each modality
    # Length of an epoch; none: the rule's own, for agw max(visible, infrared) // (P * K) + 1.
    c.sampler.steps_per_epoch = config_dict.placeholder(int)
    c.sampler.replacement = True  # of agw: an image may occur twice in a batch, as in AGW's code

    c.loader = ml_collections.ConfigDict()
    c.loader.name = "arrays"  # or tfdata, which needs TensorFlow; the batches are the same
    c.loader.prefetch = 2  # batches made ahead

    c.augment = ml_collections.ConfigDict()
    c.augment.flip = 0.5  # probability of a mirror image
    c.augment.pad = 10  # pixels on each side before the random crop
    c.augment.pad_value = 0  # of these pixels, 0 to 255
    # Probability of a gray image, (visible, infrared); a single number holds for both.
    c.augment.grayscale = (0.0, 0.0)
    c.augment.erase = (0.0, 0.0)  # probability of random erasing, the same way
    c.augment.erase_area = (0.02, 0.4)  # share of the image that is erased, least and most
    c.augment.erase_aspect = (0.3, 1 / 0.3)  # height to width of the patch, least and most
    c.augment.erase_form = "uniform"  # of the aspect ratio; torchvision's erasing: log_uniform
    c.augment.erase_attempts = 100  # patches tried until one fits; torchvision's: 10
    c.augment.erase_value = (0.0, 0.0, 0.0)  # of the patch, in standardized units
    # Channel operator of visible images: none, exchange, exchange_luma, adapt or adapt_gray.
    c.augment.visible_channel = "none"
    c.augment.infrared_channel = "none"  # the same of infrared images
    # CAJ: every visible image a second time, with this channel operator ("exchange"); "none": once.
    c.augment.second_view = "none"
    c.augment.luma = 0.5  # probability of the gray outcome of adapt_gray
    c.augment.paired = False  # share flip and crop between row i of both modalities

    c.optim = ml_collections.ConfigDict()
    c.optim.name = "adam"  # or sgd
    c.optim.lr = 3.5e-4  # learning rate
    c.optim.weight_decay = 5e-4  # its factor
    c.optim.decay = "coupled"  # coupled: L2 as torch.optim.Adam has it; decoupled: AdamW
    c.optim.momentum = 0.9  # of sgd
    c.optim.nesterov = False  # of sgd
    c.optim.schedule = "multistep"  # or cosine, constant
    c.optim.milestones = ()  # epochs at which multistep multiplies the rate by gamma
    c.optim.gamma = 0.1  # of multistep
    c.optim.warmup_epochs = 0.0  # epochs in which the rate rises
    c.optim.warmup_factor = 0.1  # share of the rate that the warm-up starts from
    c.optim.warmup_by = "step"  # how it rises: each step; or each epoch, AGW's staircase
    c.optim.restart_epoch = config_dict.placeholder(float)  # epoch of a second start
    c.optim.clip_norm = config_dict.placeholder(float)  # largest norm of the gradient
    c.optim.multipliers = ()  # of the rate, by parameter name: (("backbone/.*", 0.1),)
    # Paths without weight decay, e.g. (".*/bias", ".*/scale"); torch decays all that it is given.
    c.optim.no_decay = ()

    c.train = ml_collections.ConfigDict()
    c.train.epochs = 20.0  # length of the training
    c.train.log_every = 10  # steps between records of the losses
    c.train.eval_every = 5.0  # epochs between validations on held-out identities; 0: none
    c.train.checkpoint_every = 5.0  # epochs between checkpoints; 0: the last alone
    c.train.keep = 3  # newest checkpoints kept, beside the best by validation mAP
    c.train.tensorboard = True  # write event files, too

    # How a step is laid out on the devices. None of it is in the papers.
    c.devices = ml_collections.ConfigDict()
    c.devices.fsdp = 1  # devices that share one copy of parameters and optimizer state
    c.devices.bn_groups = 1  # runs of rows with batch statistics of their own; 1: of all rows
    c.devices.accumulate = 1  # chunks that a batch is embedded and back-propagated in
    c.devices.remat = False  # compute maps a second time in the backward pass, to save memory

    c.eval = ml_collections.ConfigDict()
    c.eval.protocols = PROTOCOLS[dataset]  # what the test set is scored under
    c.eval.validation = PROTOCOLS[dataset][0]  # what validation is scored under
    c.eval.trials = config_dict.placeholder(int)  # draws; None: the protocol's number, 10 or 1
    c.eval.gallery = "agw"  # or official: SYSU-MM01's fixed permutations, from the file below
    c.eval.rand_perm = config_dict.placeholder(str)  # the file rand_perm_cam.mat, of official
    c.eval.cmc = "protocol"  # R1 ... R20 count as the protocol says; or id: people, image: images
    c.eval.distance = "cosine"  # or euclidean, of features as they come, for re-ranking too
    c.eval.flip = False  # rows for the mean feature of an image and its mirror image, too
    # Of methods whose headline is a sum of similarities (DEEN, PDM): "accumulate" the sum, or
    # "store" one wide vector an image, which re-ranking needs.
    c.eval.fuse = "accumulate"
    c.eval.rerank = "none"  # or all, queries: rows after k-reciprocal re-ranking, too
    c.eval.corrupt = config_dict.placeholder(str)  # visible, infrared, both or visible:fog:3
    c.eval.corrupt_repeats = 10  # draws of the corruptions
    c.eval.corrupt_seed = 0  # of the first draw
    c.eval.batch_size = 256  # images embedded at once
    c.eval.memory_mb = 128  # working memory of the evaluator, beyond the features
    c.eval.baselines = laptop  # score raw pixels and the untrained network too
    return c
