"""What the configs of all methods share: data, batches, run length, evaluation.

Configs import ml_collections and each other, never the package: a config says what to do,
the package does it. Durations are epochs. Every number names its source.
"""

import ml_collections
from ml_collections import config_dict

DATASETS = ("synthetic", "sysu", "regdb", "llcm")

# Every recipe that a paper trains from ImageNet weights is wired for them with the loaders
# of the licensed data sets; the embedded data is trained from scratch.


def dataset_of(arg: str | None) -> str:
    """The data set that `--config configs/NAME.py:DATASET` asks for; synthetic by default."""
    dataset = arg or "synthetic"
    if dataset not in DATASETS:
        raise ValueError(
            f"no recipe for the data set {dataset!r}; expected --config configs/NAME.py or "
            f"configs/NAME.py:DATASET with DATASET one of {', '.join(DATASETS)}"
        )
    return dataset


def base(method: str, dataset: str) -> ml_collections.ConfigDict:
    """The sections that do not depend on the method, at the size of the data set."""
    laptop = dataset == "synthetic"
    c = ml_collections.ConfigDict()
    c.run_name = f"{method}_{dataset}"  # the default workdir is runs/<run_name>
    c.seed = 0
    c.allow_changes = False  # resume although training options differ from the run's

    c.data = ml_collections.ConfigDict(dict(name=dataset, image_size=(96, 48)))
    if laptop:
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
    if dataset == "regdb":
        c.data.trial = 1  # which of the ten released splits

    c.sampler = ml_collections.ConfigDict()
    c.sampler.num_ids = 8  # P, identities in a batch
    c.sampler.num_instances = 4  # K, images of an identity in each modality
    # None: max(visible, infrared) // (P * K) + 1, the epoch of the AGW family's code
    c.sampler.steps_per_epoch = config_dict.placeholder(int)
    c.sampler.replacement = True

    c.loader = ml_collections.ConfigDict()
    # "arrays" needs decoded images in memory and no TensorFlow; the batches are the same.
    c.loader.name = "arrays" if laptop else "tfdata"
    c.loader.prefetch = 2  # batches; tf.data only

    c.augment = ml_collections.ConfigDict()
    c.augment.flip = 0.5  # probability
    c.augment.pad = 10  # pixels on each side before the random crop
    c.augment.pad_value = 0
    c.augment.grayscale = 0.0
    c.augment.erase = 0.0  # probability of random erasing
    c.augment.erase_area = (0.02, 0.4)
    c.augment.erase_aspect = 0.3
    c.augment.erase_value = (0.0, 0.0, 0.0)  # in standardized units
    c.augment.visible_channel = "none"  # or exchange, exchange_luma, adapt, adapt_gray
    c.augment.infrared_channel = "none"
    c.augment.luma = 0.5
    c.augment.paired = False  # share flip and crop between row i of both modalities

    c.optim = ml_collections.ConfigDict()
    c.optim.name = "adam"
    c.optim.lr = 3.5e-4
    c.optim.weight_decay = 5e-4
    c.optim.decay = "coupled"  # as torch.optim.Adam; "decoupled" is AdamW
    c.optim.momentum = 0.9  # SGD only
    c.optim.schedule = "multistep"  # or cosine, constant
    c.optim.milestones = ()  # epochs
    c.optim.gamma = 0.1
    c.optim.warmup_epochs = 0.0
    c.optim.warmup_factor = 0.1
    c.optim.restart_epoch = config_dict.placeholder(float)  # start the schedule again here
    c.optim.clip_norm = config_dict.placeholder(float)
    c.optim.multipliers = ()  # e.g. (("backbone/.*", 0.1),)

    c.train = ml_collections.ConfigDict()
    c.train.epochs = 20.0
    c.train.log_every = 10  # steps
    c.train.eval_every = 5.0  # epochs between validations on held-out identities; 0: none
    c.train.checkpoint_every = 5.0  # epochs
    c.train.keep = 3  # newest checkpoints kept, beside the best by validation mAP
    c.train.tensorboard = True

    c.eval = ml_collections.ConfigDict()
    c.eval.protocols = (
        "sysu/all/single",
        "sysu/all/multi",
        "sysu/indoor/single",
        "sysu/indoor/multi",
    )
    c.eval.validation = "sysu/all/single"
    c.eval.trials = 10  # gallery draws
    c.eval.batch_size = 256
    c.eval.baselines = laptop  # score raw pixels and the untrained network too
    return c
