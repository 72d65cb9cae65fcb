"""Checkpoints of the authors' code, taken whole: what their modules are called, and ours.

  recipe         code                                       names that only such a file has
  agw            mangye16/Cross-Modal-Re-ID-baseline, CAJ   base_resnet.base.*
  deen           ZYK100/LLCM, DEEN/model.py                 the same, and DEE.*
  pdm            mmunhappy/ICASSP2025-PDM, model_pdm_os.py  the same, and PLM.*
  idkl:official  1KK077/IDKL, models/baseline.py            backbone.shared_module_bh.*

Their networks hold whole ResNets and use some stages of each, such as the stem of
`visible_module.visible`: the other stages were never trained, and are idle.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

ANCHOR = "layer1.0.conv1.weight"  # every ResNet has it
CLASSIFIER = "classifier.weight"  # [people, features] in all of them
_BRANCHES = ("1", "2")  # of an expansion; {b} in a name stands for each
_BLOCK = re.compile(r"attention_layer(\d)_(\d+)/")

_STREAMS = (
    (r"backbone/stem_visible/(.+)", r"visible_module/visible/\1"),
    (r"backbone/stem_infrared/(.+)", r"thermal_module/thermal/\1"),
    (r"backbone/layer(\d)_(\d+)/(.+)", r"base_resnet/base/layer\1/\2/\3"),
)
_STREAMS_IDLE = (
    r"(visible_module\.visible|thermal_module\.thermal)\.(layer\d|fc)\..+"
    r"|base_resnet\.base\.(conv1|bn1|fc)\..+"
)
_AGW = (
    *_STREAMS,
    (r"attention_(\d)/(\d+)/g/(.+)", r"NL_\1/\2/g/0/\3"),
    (r"attention_(\d)/(\d+)/w/(.+)", r"NL_\1/\2/W/0/\3"),
    (r"attention_(\d)/(\d+)/bn/(.+)", r"NL_\1/\2/W/1/\3"),
    (r"attention_(\d)/(\d+)/(.+)", r"NL_\1/\2/\3"),
    (r"neck/(.+)", r"bottleneck/\1"),
    (r"classifier/(.+)", r"classifier/\1"),
)
_MFA = [
    (rf"mfa_{n}/{ours}/{part}/(.+)", rf"MFA{n + 1}/{theirs}/{target}/\{last}")
    for n in range(3)
    for ours, theirs in (("channel", "CNL"), ("position", "PNL"))
    for part, target, last in (("w", "W/0", 1), ("bn", "W/1", 1), ("(theta|phi|g)", r"\1", 2))
]
_DEEN = (
    *_STREAMS,
    *_MFA,
    (r"expansion/dilated_(\d)/(.+)", r"DEE/FC{b}\1/\2"),
    (r"expansion/expand_kernel", r"DEE/FC{b}/weight"),
    (r"expansion/expand_bias", r"DEE/FC{b}/bias"),
    (r"neck_global/(.+)", r"bottleneck/\1"),
    (r"classifier_global/(.+)", r"classifier/\1"),
)
_PDM = (
    *((ours, theirs.replace("DEE/", "MFGM/")) for ours, theirs in _DEEN),
    (r"expansion/channel_squeeze", r"MFGM/SC{b}/ca/se/0/weight"),
    (r"expansion/channel_excite", r"MFGM/SC{b}/ca/se/2/weight"),
    (r"expansion/spatial_kernel", r"MFGM/SC{b}/sa/conv/weight"),
    (r"expansion/spatial_bias", r"MFGM/SC{b}/sa/conv/bias"),
    (r"prototypes/prototypes", r"PLM/learnable_proto"),
    (r"prototypes/positions", r"PLM/pos_embedding"),
    (r"neck_full/(.+)", r"bottleneck_s/\1"),
    (r"classifier_full/(.+)", r"classifier_s/\1"),
)
_IDKL = (
    (r"backbone/(stem/|layer[12]_)(.+)", r"backbone/shared_module_fr/model_sh_fr/\1\2"),
    (r"backbone/layer(\d_\d+)_specific/(.+)", r"backbone/special/special_module/layer\1/\2"),
    (r"backbone/layer(\d_\d+)/(.+)", r"backbone/shared_module_bh/model_sh_bh/layer\1/\2"),
    (r"purifier/norm/(.+)", r"backbone/IN/\1"),
    (r"purifier/mask_e/down/(.+)", r"backbone/mask2/channel_attention/0/\1"),
    (r"purifier/mask_e/up/(.+)", r"backbone/mask2/channel_attention/2/\1"),
    (r"purifier/mask_r/down/(.+)", r"backbone/mask1/channel_attention/0/\1"),
    (r"purifier/mask_r/up/(.+)", r"backbone/mask1/channel_attention/2/\1"),
    (r"neck_sh/(.+)", r"bn_neck/\1"),
    (r"neck_purified/(.+)", r"bn_neck_sp/\1"),
    (r"classifier_sh/(.+)", r"classifier/\1"),
    (r"classifier_purified/(.+)", r"classifier_sp/\1"),
    (r"classifier_entropy/(.+)", r"C_sp_f/\1"),
    (r"confuser_neck/(.+)", r"D_shared_pseu/\1"),
    (r"discriminator_neck/(.+)", r"D_special/\1"),
)
# special_att is built and never called; the statistics of IN serve the specific branch in tests,
# whose features are not tested.
_IDKL_IDLE = (
    r"backbone\.shared_module_fr\.model_sh_fr\.(layer[34]|fc)\..+"
    r"|backbone\.(shared_module_bh\.model_sh_bh|special\.special_module)\."
    r"(conv1|bn1|layer[12]|fc)\..+"
    r"|backbone\.special_att\..+|backbone\.IN\.running_(mean|var)"
)


class Layout(NamedTuple):
    """The names of one code.

    Attributes:
      recipe: what builds its network.
      trunk: what precedes the names of a whole ResNet; only such files have it.
      sign: how other names begin that only such files have.
      modules: our name of an array, as a pattern -> theirs; the first that fits counts.
      idle: pattern of their arrays that their features do not depend on.
    """

    recipe: str
    trunk: str
    sign: str
    modules: Sequence[tuple[str, str]]
    idle: str

    def names(self, ours: str, every: Collection[str]) -> tuple[str, ...]:
        """What "backbone/layer1_0/conv1/weight" is made of; () if they have nothing like it.

        `every` are the names of all our arrays: non-local blocks are counted.
        """
        if block := _BLOCK.match(ours):
            found = {int(b[2]) for b in map(_BLOCK.match, every) if b and b[1] == block[1]}
            count = sorted(found).index(int(block[2]))
            ours = f"attention_{block[1]}/{count}/{ours[block.end() :]}"
        for pattern, theirs in self.modules:
            if match := re.fullmatch(pattern, ours):
                name = re.sub(r"(layer\d|downsample)_(\d+)", r"\1/\2", match.expand(theirs))
                name = name.replace("stem/", "").replace("/", ".")
                each = [name.replace("{b}", b) for b in _BRANCHES]
                return tuple(dict.fromkeys(each))
        return ()


_BASE = "base_resnet.base."
LAYOUTS = (  # a file is of the first that fits
    Layout("pdm", _BASE, "PLM.", _PDM, _STREAMS_IDLE),
    Layout("deen", _BASE, "DEE.", _DEEN, _STREAMS_IDLE),
    Layout("agw", _BASE, "", _AGW, _STREAMS_IDLE),
    Layout("idkl:official", "backbone.shared_module_bh.model_sh_bh.", "", _IDKL, _IDKL_IDLE),
)
# The shifts of their necks are not trained and stay at 0, ours have none.
ZEROS = re.compile(r"(bottleneck(_s)?|bn_neck(_sp)?)\.bias")


def prefix_of(arrays: Mapping[str, np.ndarray]) -> str:
    """What torch.nn.DataParallel writes before every name."""
    return "module." if arrays and all(name.startswith("module.") for name in arrays) else ""


def recognize(arrays: Mapping[str, np.ndarray]) -> Layout | None:
    """The code whose checkpoint the arrays are, by their names; None for any other file."""
    prefix = prefix_of(arrays)
    for layout in LAYOUTS:
        signs = any(name.startswith(prefix + layout.sign) for name in arrays)
        if signs and prefix + layout.trunk + ANCHOR in arrays:
            return layout
    return None


def people(arrays: Mapping[str, np.ndarray], *, source: str = "the arrays") -> int:
    """How many people the network of an author's checkpoint tells apart.

    Raises:
      ValueError: the arrays are no checkpoint of a known code with its classifier.
    """
    classifier = arrays.get(prefix_of(arrays) + CLASSIFIER)
    if recognize(arrays) is None or classifier is None or classifier.ndim != 2:
        raise ValueError(
            f"{source} is no checkpoint of the authors' code of AGW, CAJ, DEEN, PDM or IDKL, which "
            "alone can be scored as it is; to score a run, name its folder with --workdir"
        )
    return len(classifier)
