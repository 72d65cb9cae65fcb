"""AGW for two modalities (Ye et al., arXiv 2001.04193) and CAJ (Ye et al., ICCV 2021).

  python -m vireid_jax.main --config configs/agw.py               embedded data, a laptop
  python -m vireid_jax.main --config configs/agw.py:sysu          AGW on SYSU-MM01
  python -m vireid_jax.main --config configs/agw.py:regdb,caj     CAJ's joint learning on RegDB
  python -m vireid_jax.main --config configs/agw.py:caj           the same on the embedded data

Values are those of the authors' code, mangye16/Cross-Modal-Re-ID-baseline, and for AGW on LLCM of
that data set's authors, ZYK100/LLCM, folder AGW. CAJ on LLCM is its recipe for SYSU-MM01. They
report 47.50 R1 / 47.65 mAP (AGW) and 69.88 / 66.89 (CAJ) on SYSU-MM01 all-search single-shot,
70.05 / 66.37 and 85.03 / 79.14 on RegDB, visible to infrared. CAJ tests with mirrored images too:
--config.eval.flip=True gives those rows.
"""

import ml_collections

from configs import common

PRESETS = ("agw", "caj")


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The recipe DATASET, DATASET,PRESET or PRESET; synthetic and agw by default."""
    dataset, preset = common.dataset_and_preset("agw", arg, PRESETS)
    c = common.base("agw", dataset)
    caj = preset == "caj"
    if caj:
        c.run_name = f"agw-caj-{dataset}"

    m = c.method = ml_collections.ConfigDict(dict(name="agw"))
    m.depth = 50
    m.width = 64
    m.last_stride = 1
    m.kernels = "auto"
    m.dtype = "float32"
    m.non_local = "one"
    m.tri_form = "squared" if caj else "weighted"
    m.tri_weights = "released"
    m.tri_weight = 1.0
    m.normalize = False

    if dataset != "synthetic":
        c.data.image_size = (288, 144)
    c.sampler.num_ids, c.sampler.num_instances = 8, 4
    if dataset == "llcm":
        c.augment.erase = (0.5, 0.5)
    if caj:
        c.augment.erase = (0.5, 0.5)
        c.augment.erase_value = (0.4914, 0.4822, 0.4465)  # in standardized units
        c.augment.infrared_channel = "adapt_gray"
        c.augment.second_view = "exchange"
    common.agw_optimizer(c, milestones=(20.0, 50.0))
    c.train.epochs = 100.0 if caj else 81.0
    c.train.eval_every = 5.0
    c.train.checkpoint_every = 1.0
    if dataset == "synthetic":
        common.laptop(c)
        if caj:  # the first view as it is
            c.augment.visible_channel, c.augment.infrared_channel = "none", "adapt_gray"
    return c
