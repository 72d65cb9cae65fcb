"""DEEN, Diverse Embedding Expansion Network (Zhang and Wang, CVPR 2023).

  python -m vireid_jax.main --config configs/deen.py            embedded data, a laptop
  python -m vireid_jax.main --config configs/deen.py:sysu       SYSU-MM01; also regdb, llcm, folders

Values are those of the authors' code, ZYK100/LLCM, folder DEEN, at 886e27c. Papers that compare
with it print 74.7 R1 / 71.8 mAP on SYSU-MM01 all-search single-shot, 91.1 / 85.1 on RegDB, visible
to infrared, and 54.9 / 62.9 on LLCM, infrared to visible.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The recipe for a data set: synthetic (default), sysu, regdb, llcm or folders."""
    dataset = common.dataset_of(arg)
    c = common.base("deen", dataset)

    m = c.method = ml_collections.ConfigDict(dict(name="deen"))
    m.depth = 50
    m.width = 64
    m.last_stride = 1
    m.stages = 3 if dataset == "regdb" else 4  # RegDB: no layer4, expansion after layer2
    m.kernels = "auto"
    m.dtype = "float32"
    m.branches = 2
    m.dropout = 0.01
    m.tri_margin = 0.3
    m.cpm_weight = 0.8
    m.cpm_margin = 0.2
    m.ort_weight = 0.01
    m.normalize = False

    if dataset != "synthetic":
        c.data.image_size = (384, 144)
    c.sampler.num_ids, c.sampler.num_instances = 6, 4
    common.deen_augmentation(c, dataset)
    common.agw_optimizer(c, milestones=(20.0, 80.0))  # a third one, at 120, is never reached
    c.train.epochs = 151.0
    c.train.eval_every = 5.0
    c.train.checkpoint_every = 1.0
    if dataset == "synthetic":
        common.laptop(c)
    return c
