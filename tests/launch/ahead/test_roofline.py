"""Times and chips: by hand, and by the limits that a model of communication has to have."""

import pytest

from launch.ahead import roofline
from launch.ahead.hlo import Array, Collective

V5E, V5P = roofline.TPUS["v5e"], roofline.TPUS["v5p"]


def _collective(kind, numbers, group=0, times=1):
    return Collective(kind, (Array("f32", (numbers,)),), group, times, "")


def _estimate(shape, *collectives, chip=V5E, flops=0.0, read=0.0, dtype="bfloat16"):
    return roofline.estimate(
        flops=flops,
        traffic=read,
        collectives=collectives,
        chip=chip,
        shape=shape,
        dtype=dtype,
    )


def test_a_chip_by_itself():
    time = _estimate((1, 1), _collective("all-reduce", 10**6), flops=197e12, read=1.638e12)
    assert time.compute == pytest.approx(1.0) and time.memory == pytest.approx(2.0)
    assert time.transfer == time.latency == 0  # nobody to talk to
    assert time.serial == time.overlapped == time.memory


def test_an_all_reduce_by_hand():
    # 4 MB in a 2 x 4 slice without rings: 2 * 7/8 of it over one link of 50 GB/s along each axis,
    # and there and back over 1 + 3 hops.
    time = _estimate((2, 4), _collective("all-reduce", 10**6))
    assert time.transfer == pytest.approx(2 * 7 / 8 * 4e6 / (2 * 50e9))
    assert time.latency == pytest.approx(2 * 4 * 1e-6)
    # A whole pod has two rings of two links, and half way round is the farthest.
    time = _estimate((16, 16), _collective("all-reduce", 10**6))
    assert time.transfer == pytest.approx(2 * 255 / 256 * 4e6 / (4 * 50e9))
    assert time.latency == pytest.approx(2 * 16 * 1e-6)


def test_cubes_have_rings_and_less_has_not():
    assert roofline.closed(V5P, (4, 4, 8)) == [True] * 3
    assert roofline.closed(V5P, (2, 4, 4)) == [False] * 3
    assert roofline.closed(V5E, (8, 16)) == [False, True]
    assert roofline.bandwidth(V5P, (4, 4, 4)) == 6 * 100e9 == 4800e9 / 8
    assert roofline.bandwidth(V5E, (16, 16)) == 1600e9 / 8


def test_kinds_of_collectives():
    size, group = 4096, 4
    sent = {
        kind: roofline.sent(_collective(kind, size // 4), group)
        for kind in ("all-gather", "all-reduce", "all-to-all", "collective-permute")
    }
    assert sent["all-gather"] == sent["all-to-all"] == 3 / 4 * size
    assert sent["all-reduce"] == 2 * sent["all-gather"] and sent["collective-permute"] == size
    # A reduce-scatter and the gather of its result are an all-reduce.
    scattered = roofline.sent(_collective("reduce-scatter", size // 4 // group), group)
    assert scattered + sent["all-gather"] == sent["all-reduce"]


def test_loops_groups_and_nothing():
    once = _estimate((2, 4), _collective("all-gather", 1000))
    thrice = _estimate((2, 4), _collective("all-gather", 1000, times=3))
    unknown = _estimate((2, 4), _collective("all-gather", 1000, times=-1))
    assert thrice.transfer == pytest.approx(3 * once.transfer)
    assert thrice.latency == pytest.approx(3 * once.latency)
    assert unknown == once
    assert not _estimate((2, 4), _collective("all-reduce", 10**6, group=1)).transfer
    pairs = _estimate((2, 4), _collective("all-reduce", 10**6, group=2))
    assert pairs.transfer < _estimate((2, 4), _collective("all-reduce", 10**6)).transfer


def test_a_step_lies_between_its_bounds():
    time = _estimate((4, 4), _collective("all-reduce", 10**8), flops=1e12, read=1e9)
    parts = (time.compute, time.memory, time.transfer + time.latency)
    assert time.overlapped == max(parts) and time.serial <= sum(parts)
    assert time.serial == time.chip + time.transfer + time.latency


def test_the_rate_is_that_of_the_dtype():
    assert (
        _estimate((1, 1), flops=1e12).compute
        == _estimate((1, 1), flops=1e12, dtype="float32").compute
    )  # TPUs round float32 operands by default
    h100 = roofline.GPUS["H100"]
    halves = [
        _estimate((1,), chip=h100, flops=1e12, dtype=d).compute for d in ("bfloat16", "float32")
    ]
    assert halves[1] == pytest.approx(2 * halves[0], rel=0.01)


# --- Chips ----------------------------------------------------------------------------------


def test_topologies_are_read_and_others_refused():
    for name, kind, shape, count in (
        ("v5e:4x4", "v5e", (4, 4), 16),
        ("v5e:1x1", "v5e", (1, 1), 1),
        ("v5p:2x2x2", "v5p", (2, 2, 2), 8),
        ("v6e:16x16", "v6e", (16, 16), 256),
        ("cpu:8", "cpu", (8,), 8),
        ("h100", "h100", (1,), 1),
    ):
        assert roofline.parse(name) == (name, kind, shape)
        assert roofline.parse(name).chips == count, name
    for name, message in {
        "v4:2x2": "no chip 'v4'; expected v5e, v5p, v6e with a shape",
        "v5e": "v5e comes as 1x1, 2x2",
        "v5e:3x3": "v5e comes as 1x1, 2x2",
        "v5p:4x4": "v5p comes as 1x1x1, 2x2x1",
        "cpu": "expected cpu:N with a number N",
        "cpu:0": "expected cpu:N with a number N",
        "gpu:8": "no chip 'gpu'",
        "h100:2": "no chip 'h100'",
        "": "no chip ''",
    }.items():
        with pytest.raises(ValueError) as error:
            roofline.parse(name)
        assert message in str(error.value) and repr(name) in str(error.value), name


def test_slices_of_a_size():
    base = roofline.parse("v5e:1x1")
    assert [roofline.of_size(base, n).name for n in (8, 32, 128, 256)] == [
        *("v5e:2x4", "v5e:4x8", "v5e:8x16", "v5e:16x16")
    ]
    assert roofline.of_size(roofline.parse("v5p:4x4x4"), 8).shape == (2, 2, 2)
    assert roofline.of_size(roofline.parse("cpu:8"), 2) == ("cpu:2", "cpu", (2,))
    h100 = roofline.parse("h100")
    assert roofline.of_size(h100, 1) == h100
    with pytest.raises(ValueError, match="no slice of 24 v5e chips; there are 1, 4, 8"):
        roofline.of_size(base, 24)
    with pytest.raises(ValueError, match="cpu:2 has 2 devices, not 4"):
        roofline.of_size(roofline.parse("cpu:2"), 4)


def test_figures_of_chips_are_of_one_kind():
    for chip in (*roofline.TPUS.values(), *roofline.GPUS.values()):
        assert 10**10 < chip.memory < 2 * 10**11 and 8e11 < chip.bandwidth < 1e13
        assert 1e14 < chip.peak["bfloat16"] < 2e15 and 1e10 < chip.link < 1e12
        assert chip.source.startswith("https://")
    gpu = roofline.parse("gpu")
    assert roofline.chip_of(gpu, "NVIDIA H100 80GB HBM3") is roofline.GPUS["H100"]
    assert roofline.chip_of(gpu, "NVIDIA T4") is None
    assert roofline.chip_of(roofline.parse("h100")) is roofline.GPUS["H100"]
    assert roofline.chip_of(roofline.parse("cpu:2")) is None
