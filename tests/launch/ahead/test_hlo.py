"""The reader of HLO: collectives on lines and on known programs; bytes of memory by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from launch.ahead import hlo

pytestmark = pytest.mark.slow

TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%x, %y)
}

%async_computation (p: bf16[2,64]) -> bf16[16,64] {
  %p = bf16[2,64]{1,0} parameter(0)
  ROOT %all-gather.9 = bf16[16,64]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=9, \
replica_groups=[1,8]<=[8], dimensions={0}
}

%inner_body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  %v = f32[4] get-tuple-element(%p), index=1
  %all-reduce.5 = f32[4]{0} all-reduce(%v), channel_id=5, replica_groups={{0,1,2,3},{4,5,6,7}}, \
to_apply=%add
  ROOT %t = (s32[], f32[4]) tuple(%n, %all-reduce.5)
}

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {
  %p = (s32[], f32[4]) parameter(0)
  ROOT %while.2 = (s32[], f32[4]) while(%p), condition=%c, body=%inner_body, \
backend_config={"known_trip_count":{"n":"5"}}
}

%unknown_body (p: (s32[], pred[3])) -> (s32[], pred[3]) {
  ROOT %collective-permute.7 = pred[3]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}
}

ENTRY %main.0_spmd (param: f32[2,3], param.1: f32[8]) -> f32[2,3] {
  %while.1 = (s32[], f32[4]) while(%s), condition=%c, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %while.3 = (s32[], pred[3]) while(%s), condition=%c, body=%unknown_body
  %start = ((f32[2,3]{1,0}, s32[2]{0}), (f32[16,3]{1,0:T(8,128)S(1)}, s32[16]{0})) \
all-gather-start(%a, %b), replica_groups=[1,8]<=[8], dimensions={0}, \
metadata={op_name="jit(f)/gather" stack_frame_id=6}
  %done = (f32[16,3]{1,0}, s32[16]{0}) all-gather-done(%start)
  %pair = (f32[2,3]{1,0}, f32[2,3]{1,0}, u32[]{:S(2)}, u32[]{:S(2)}) \
collective-permute-start(%a), source_target_pairs={{0,1}}
  %all-reduce-start.1 = (f32[7,7,3,64]{3,2,1,0}, /*index=1*/bf16[64]{0}) \
all-reduce-start(%d, %e), channel_id=1, replica_groups={}, to_apply=%add
  %async-start = ((bf16[2,64]), bf16[16,64], s32[]) async-start(%q), calls=%async_computation
  %reduce-scatter.1 = f32[8]{0} reduce-scatter(%param.1), replica_groups=[2,4]<=[8], to_apply=%add
  %fusion = f32[2,3] fusion(%a), kind=kLoop, calls=%all-reduce-scatter-fusion
  ROOT %r = f32[2,3] add(%a, %b), metadata={op_name="jit(f)/all-gather(x)"}
}
"""


def _of(text=TEXT):
    return {(c.kind, c.arrays): c for c in hlo.collectives(text)}


def test_every_form_of_a_collective_is_read():
    found = hlo.collectives(TEXT)
    shown = [(c.kind, c.bytes, c.times, c.group) for c in found]
    assert shown == [
        ("all-gather", 2 * 16 * 64, 1, 8),  # within an async computation
        ("all-reduce", 16, 15, 4),  # three times five
        ("collective-permute", 3, -1, 0),  # a loop without a known end
        ("all-gather", 16 * 3 * 4 + 16 * 4, 1, 8),  # results alone, not the operands
        ("collective-permute", 24, 1, 0),  # without its contexts
        ("all-reduce", 7 * 7 * 3 * 64 * 4 + 128, 1, 0),
        ("reduce-scatter", 32, 1, 4),
    ]
    assert found[3].name == "jit(f)/gather" and found[5].name == ""
    assert found[5].arrays == (hlo.Array("f32", (7, 7, 3, 64)), hlo.Array("bf16", (64,)))


def test_bits_of_types():
    for dtype, bits in (
        *(("pred", 8), ("s4", 4), ("u8", 8), ("bf16", 16), ("f8e4m3fn", 8)),
        *(("c128", 128), ("s32", 32)),
    ):
        assert hlo.bits(dtype) == bits, dtype
        (array,) = hlo.arrays(f"{dtype}[3,5]{{1,0}}")
        assert array.bytes == -(-15 * bits // 8), dtype


def test_groups_of_devices():
    for groups, size in {
        "{}": 0,
        "{{0,1},{2,3}}": 2,
        "[2,4]<=[8]": 4,
        "[4,2]<=[2,4]T(1,0)": 2,
        "mesh['a'=4,'b'=2] {'a'}": 4,
        "mesh['a'=4,'b'=2] {'a','b'}": 8,
        "mesh['a'=8] {'a':(2)4}": 4,
    }.items():
        line = f"  %x = f32[4]{{0}} all-reduce(%y), channel_id=1, replica_groups={groups}, to=%add"
        (found,) = hlo.collectives(line)
        assert found.group == size, groups


def _compiled(f, *shapes, rows=(True,)):
    mesh = Mesh(jax.devices()[:4], ("data",), axis_types=(AxisType.Auto,))
    by = [NamedSharding(mesh, PartitionSpec("data") if r else PartitionSpec()) for r in rows]
    everywhere = NamedSharding(mesh, PartitionSpec())
    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
    jitted = jax.jit(f, in_shardings=tuple(by), out_shardings=everywhere)
    return hlo.collectives(jitted.lower(*arguments).compile().as_text())


def test_programs_whose_collectives_are_known():
    (mean,) = _compiled(lambda x: x.sum(0), (8, 5))
    assert (mean.kind, mean.bytes, mean.times, mean.group) == ("all-reduce", 20, 1, 4)
    (gather,) = _compiled(lambda x: 2 * x, (8, 5))
    assert (gather.kind, gather.bytes, gather.group) == ("all-gather", 160, 4)
    assert not _compiled(lambda x: 2 * x, (8, 5), rows=(False,))

    def loop(x):
        return jax.lax.fori_loop(
            0, 7, lambda _, y: jnp.cos(y + jnp.sin(x + y[None]).sum(0)), x[0] * 0
        )

    looped = [c for c in _compiled(loop, (8, 5)) if c.times != 1]
    assert [(c.kind, c.times) for c in looped] == [("all-reduce", 7)]


def _one(kind, *shapes):
    return hlo.Collective(kind, tuple(hlo.Array("f32", s) for s in shapes), 8, 1, "")


CARRIED = [
    (_one("all-reduce", (3, 3, 64, 64), (64,)), hlo.GRADIENTS),
    (_one("all-reduce", (9, 64, 64)), hlo.GRADIENTS),  # in another arrangement
    (_one("all-reduce", (2, 100)), hlo.GRADIENTS),  # statistics
    (_one("all-reduce", (16, 128)), hlo.FEATURES),  # of a batch
    (_one("all-gather", (16, 2, 64)), hlo.FEATURES),
    (_one("all-gather", (3, 3, 64, 64)), hlo.OTHER),  # parameters are not gathered
    (_one("all-gather", (16, 128), (16, 24, 8, 64)), hlo.OTHER),
    (_one("all-to-all", (2, 2, 4, 8)), hlo.OTHER),  # small, but maps
    (_one("all-reduce", (16, 4096)), hlo.OTHER),
]


def test_what_a_collective_carries():
    sizes = dict(parameters={3 * 3 * 64 * 64, 64}, statistics=256, features=16 * 128)
    for collective, expected in CARRIED:
        assert hlo.group_of(collective, **sizes) == expected, collective
        gathers = collective.kind == "all-gather" and collective.arrays[0].shape == (3, 3, 64, 64)
        shared = hlo.group_of(collective, **sizes, shared=2)
        alone = gathers and len(collective.arrays) == 1
        assert shared == (hlo.PARAMETERS if alone else expected), collective


def test_sums_of_arrays_that_do_not_grow():
    sizes = dict(parameters={64}, statistics=1, features=16)
    sums = _one("all-reduce", (64,), (24, 24, 12, 12))
    assert hlo.group_of(sums, **sizes) == hlo.OTHER
    assert hlo.group_of(sums, **sizes, fixed={24 * 24 * 12 * 12}) == hlo.GRADIENTS
    moved = _one("all-gather", (24, 24, 12, 12))
    assert hlo.group_of(moved, **sizes, fixed={24 * 24 * 12 * 12}) == hlo.OTHER


def test_gradients_that_are_scattered():
    sizes = dict(parameters={3 * 3 * 64 * 64}, statistics=256, features=16)
    half = _one("reduce-scatter", (3, 3, 32, 64))
    assert hlo.group_of(half, **sizes, shared=2) == hlo.GRADIENTS
    assert hlo.group_of(half, **sizes) == hlo.OTHER


# --- Memory: a program as the TPU compiler writes it ------------------------------------

SCHEDULED = """HloModule jit_f, is_scheduled=true

%fused (p: f32[1000]) -> f32[1000] {
  %p = f32[1000]{0:T(1024)} parameter(0)
  ROOT %e = f32[1000]{0:T(1024)} exponential(%p)
}

%body (s: (s32[], f32[100])) -> (s32[], f32[100]) {
  %s = (s32[]{:T(128)}, f32[100]{0:T(128)}) parameter(0)
  %v = f32[100]{0:T(128)} get-tuple-element(%s), index=1
  %fusion.7 = f32[100]{0:T(128)} fusion(%v), kind=kLoop, calls=%fused
  ROOT %t = (s32[]{:T(128)}, f32[100]{0:T(128)}) tuple(%v, %fusion.7)
}

ENTRY %main.1 (a: bf16[64,10], b: f32[1000]) -> f32[1000] {
  %a = bf16[64,10]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[1000]{0:T(1024)} parameter(1)
  %copy-start = (f32[1000]{0:T(1024)S(1)}, f32[1000]{0:T(1024)}, u32[]{:S(2)}) copy-start(%b)
  %slice-start = ((bf16[64,10]{1,0:T(8,128)(2,1)}), bf16[16,10]{1,0:T(8,128)(2,1)S(1)}, \
s32[]{:S(2)}) slice-start(%a), slice={[0:16], [0:10]}
  %copy-done = f32[1000]{0:T(1024)S(1)} copy-done(%copy-start)
  %slice-done = bf16[16,10]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start)
  %fusion.1 = f32[1000]{0:T(1024)S(1)} fusion(%copy-done, %slice-done), kind=kLoop, calls=%fused
  %fusion.2 = (f32[1000]{0:T(1024)}, f32[8]{0:T(128)S(1)}) fusion(%fusion.1, %b, %b), \
kind=kLoop, calls=%fused, metadata={op_name="jit(f)/mul(%a)"}
  %while.1 = (s32[]{:T(128)}, f32[100]{0:T(128)}) while(%tuple), condition=%cond, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %get = f32[1000]{0:T(1024)} get-tuple-element(%fusion.2), index=0
  ROOT %copy.2 = f32[1000]{0:T(1024)} copy(%get)
}
"""


def test_bytes_by_hand():
    prefetched = 4000 + 16 * 10 * 2  # the array, and a quarter of the other
    second = 4000 + 4000  # reads b once, though it is named twice, and writes one of two results
    loop = 3 * (400 + 400)
    copied = 4000 + 4000
    assert hlo.traffic(SCHEDULED) == prefetched + second + loop + copied


def test_arrays_in_the_memory_of_the_chip():
    for kind, size in {
        "f32[10]{0:T(128)}": 40,
        "f32[10]{0:T(128)S(1)}": 0,
        "bf16[4,5]{1,0:T(8,128)(2,1)}": 40,
        "(f32[2]{0}, /*index=1*/s32[]{:T(128)}, f32[9]{0:S(2)})": 12,
        "pred[7]": 7,
        "token[]": 0,
    }.items():
        assert hlo.in_memory(kind) == size, kind
