"""Bytes of a chip's memory, by hand for a program as the TPU compiler writes it."""

import pytest

from launch.ahead import traffic

TEXT = """HloModule jit_f, is_scheduled=true

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
    assert traffic.traffic(TEXT) == prefetched + second + loop + copied


@pytest.mark.parametrize(
    "kind, size",
    [
        ("f32[10]{0:T(128)}", 40),
        ("f32[10]{0:T(128)S(1)}", 0),
        ("bf16[4,5]{1,0:T(8,128)(2,1)}", 40),
        ("(f32[2]{0}, /*index=1*/s32[]{:T(128)}, f32[9]{0:S(2)})", 12),
        ("pred[7]", 7),
        ("token[]", 0),
    ],
)
def test_arrays_in_the_memory_of_the_chip(kind, size):
    assert traffic.in_memory(kind) == size
