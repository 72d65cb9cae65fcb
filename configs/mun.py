"""MUN, Modality Unifying Network (Yu et al., ICCV 2023).

  python -m vireid_jax.main --config configs/mun.py           embedded data, minutes on a laptop
  python -m vireid_jax.main --config configs/mun.py:sysu      the paper's recipe, SYSU-MM01
  python -m vireid_jax.main --config configs/mun.py:regdb     the paper's recipe, RegDB
  python -m vireid_jax.main --config configs/mun.py:llcm      the same on LLCM
  python -m vireid_jax.main --config configs/mun.py:folders   the same on your own images

The paper reports 76.24 R1 / 73.81 mAP (SYSU-MM01 all-search single-shot) and 95.19 / 87.15
(RegDB, visible images searched for in thermal ones). Its tables 1, 2, 3 and 5 are
configurations of configs/tables.py. --config.method.generator_remat=True halves the
memory of the generator for a third more of its time (README).
"""

import ml_collections

from configs import common


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The recipe for a data set: synthetic (default), sysu, regdb, llcm or folders."""
    dataset = common.dataset_of(arg)
    c = common.base("mun", dataset)

    m = c.method = ml_collections.ConfigDict(dict(name="mun"))
    m.depth = 50  # sec. 4.2
    m.width = 64
    m.last_stride = 1  # not in the paper; AGW, CAJ and MPANet use 1
    m.specific = 2  # "stage 1" of each modality: stem and layer1; 1 is the stem alone
    m.kernels = "auto"
    m.dtype = "float32"
    m.auxiliary = "mun"  # table 2: x, mixed, syncretic; and gray, none
    m.smgm_width = 16  # of auxiliary="syncretic"
    m.smgm_init = "kaiming"
    m.smgm_input = "standardized"
    m.generator_ratios = (2, 4, 6, 12)  # sec. 4.2
    # How eqs. 7 to 9 are computed: "folded" saves work for batches of 32 pairs at this size,
    # "direct" for smaller ones. The numbers are the same to rounding.
    m.generator_form = "folded"
    m.generator_remat = False  # True: half the memory of the generator, a third more of its time
    m.normalize = False  # features in tri and ia
    m.tri_margin = 0.3
    m.idc_weight = 0.25  # gamma of eq. 17, sec. 4.2
    m.ida_weight = 0.0  # table 1, "+Aux": 1
    m.ia_weight = 0.5  # theta
    m.ia_margin = 0.55  # alpha of eq. 12, sec. 4.2
    m.ma_weight = 0.008  # sigma
    m.prototypes = True  # table 3: False
    m.bridge = True  # table 3: False

    # Sec. 4.2: 288 x 144; flip, erasing and channel augmentation, whose probabilities are the
    # field's, as is the crop; AdamW with decay 0.01; 90 epochs, from 1e-8 to 2e-3 in 15 epochs, a
    # tenth at 30 and 60.
    if dataset != "synthetic":
        c.data.image_size = (288, 144)
    # The batch is not in the paper: 8 identities x (4 visible + 4 infrared), as AGW.
    c.sampler.num_ids, c.sampler.num_instances = 8, 4
    c.augment.erase = (0.5, 0.5)
    c.augment.visible_channel = "adapt"  # CAJ's: R, G or B in all channels, or unchanged
    c.optim.lr = 2e-3
    c.optim.weight_decay = 0.01
    c.optim.decay = "decoupled"
    c.optim.no_decay = (r".*/(bias|scale|layer_scale)$",)
    c.optim.warmup_epochs = 15.0
    c.optim.warmup_factor = 5e-6
    c.optim.milestones = (30.0, 60.0)
    # 2e-3 is six times what pretrained backbones get elsewhere; AGW and CAJ give them a tenth of
    # the rate of new layers. The paper read literally: --config.optim.multipliers="()".
    c.optim.multipliers = (("backbone/", 0.1),)
    c.train.epochs = 90.0
    c.train.eval_every = 5.0
    c.train.checkpoint_every = 1.0
    if dataset == "synthetic":
        common.laptop(c)
        m.specific = 1  # less to learn twice
        m.generator_form = "direct"  # small maps
        m.smgm_init, m.smgm_width, m.smgm_input = "identity", 3, "unit"  # as in configs/smcl.py
    return c
