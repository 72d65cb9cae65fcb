"""SMCL, Syncretic Modality Collaborative Learning (Wei et al., ICCV 2021).

  python -m vireid_jax.main --config configs/smcl.py           embedded data, minutes on a laptop
  python -m vireid_jax.main --config configs/smcl.py:sysu      the paper's recipe, SYSU-MM01
  python -m vireid_jax.main --config configs/smcl.py:regdb     the paper's recipe, RegDB
  python -m vireid_jax.main --config configs/smcl.py:llcm      the SYSU-MM01 recipe on LLCM
  python -m vireid_jax.main --config configs/smcl.py:folders   the same on your own images

The paper reports 67.39 R1 / 61.78 mAP (SYSU-MM01 all-search single-shot) and 83.93 / 79.83
(RegDB visible to thermal); 417,600 steps on SYSU-MM01, 25,800 on RegDB.
Its tables 1 (components), 2 (auxiliary modalities) and 4 (metric losses) are configurations of
configs/tables.py. Their switches: method.id_margin=0 (no CEHL), method.metric_weight=0 (no
ADSL), method.metric_from_epoch=0 (no incremental training), method.auxiliary, method.metric.
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The recipe for a data set: synthetic (default), sysu, regdb, llcm or folders."""
    dataset = common.dataset_of(arg)
    c = common.base("smcl", dataset)

    m = c.method = ml_collections.ConfigDict(dict(name="smcl"))
    m.depth = 50  # sec. 4.2
    m.width = 64
    m.last_stride = 1  # sec. 4.2: the last stride is 1
    m.kernels = "auto"
    m.dtype = "float32"
    m.auxiliary = "syncretic"  # table 2: x, gray, none; and mixed
    m.smgm_width = 16  # not in the paper; see nets/auxiliary.py
    m.smgm_init = "kaiming"
    m.smgm_input = "standardized"
    m.id_margin = 4.0  # m of eq. 3, sec. 4.2: 4 on SYSU-MM01
    m.metric = "adsl"  # table 4: bh_tri, bdtr, bicenter, hc_tri
    m.center_margin = 0.3  # rho of eq. 6, sec. 4.2
    m.normalize_centers = False
    m.triplet_margin = 0.3  # of bh_tri and hc_tri
    m.bicenter_margin = 0.5  # of bicenter
    m.metric_weight = 0.5  # lambda of eq. 9, sec. 4.2
    m.metric_from_epoch = 220.0  # Q of Algorithm 1, sec. 4.2

    # Sec. 4.2: 4 identities x (4 visible + 4 infrared), Adam, 3.5e-4, a tenth at 40 and 70.
    c.sampler.num_ids = 4
    c.sampler.num_instances = 4
    c.optim.milestones = (40.0, 70.0)
    c.train.epochs = 300.0
    c.train.eval_every = 10.0
    c.train.checkpoint_every = 1.0
    if dataset == "regdb":
        m.id_margin = 1.0  # sec. 4.2
        m.metric_from_epoch = 120.0
        c.train.epochs = 200.0
    # The paper does not use LLCM; there, and for your own images, the recipe for SYSU-MM01 is a
    # starting point.
    if dataset == "synthetic":
        common.laptop(c)
        # Starts as the product of the two images, a proper picture from the first step on.
        m.smgm_init, m.smgm_width, m.smgm_input = "identity", 3, "unit"
        m.id_margin = 1.0
        m.normalize_centers = True  # features of a fresh network have no scale to rely on
        m.metric_weight = 1.0
        # No incremental training: from random weights the center losses teach from the first step
        # (docs/ablations.md). The paper's share of the epochs, 220 of 300, would be 23.
        m.metric_from_epoch = 0.0
        c.sampler.num_ids, c.sampler.num_instances = 8, 4
    return c
