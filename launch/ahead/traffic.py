"""Bytes between a chip's memory and its cores, read off the optimized HLO of a TPU program.

XLA's cost analysis has a figure "bytes accessed", but it counts what stays in the cores' own memory
(VMEM) as well, and every prefetch of a slice as if the whole array moved. The optimized program
says where each array is: layouts with S(1) and above are not in the chip's memory. Counted here is
what every scheduled operation reads and writes there, each operand once.
"""

import re

from launch.ahead import hlo

# ops that move nothing
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier"),
}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_OPERAND = re.compile(r"%([\w.-]+)")
_SPACE = re.compile(r"S\((\d+)\)")
_TYPE = re.compile(r"\b[a-z]+\d*\w*\[[\d,<=]*\](?:\{[^}]*\})?")
_SCHEDULED = re.compile(r"[\])}] (?:while|conditional|call)\(")


def in_memory(kind: str) -> int:
    """Bytes of the arrays of a type that are in the chip's memory."""
    total = 0
    for array in _TYPE.findall(kind):
        space = _SPACE.search(array)
        if space is None or space[1] == "0":
            total += sum(a.bytes for a in hlo.arrays(array))
    return total


def traffic(text: str) -> int:
    """Bytes that a program reads from and writes to a chip's memory.

    Loops count as often as they run where that is known, else once; branches all count.
    """
    times = hlo.run_times(text)
    scheduled = _scheduled(text)
    kinds: dict[tuple[str, str], str] = {}  # (computation, name): type
    total = 0
    for computation, line in hlo.instructions(text):
        if computation not in scheduled or not (match := _INSTRUCTION.match(line)):
            continue
        name, kind, operation, rest = match.groups()
        kinds[computation, name] = kind
        if operation in _FREE or operation.endswith("-done"):
            continue
        count = abs(times.get(computation, 1))
        if operation == "copy-start":  # (copy, original, context)
            copy, original = hlo.elements(kind)[:2]
            total += count * (in_memory(copy) + in_memory(original))
            continue
        if operation == "slice-start":  # ((original), slice, context): it alone is read
            original, part = hlo.elements(kind)[:2]
            size = sum(a.bytes for a in hlo.arrays(part))
            total += count * (in_memory(part) + (size if in_memory(original) else 0))
            continue
        if "ConcatBitcast" in rest:  # a view of slices side by side
            continue
        if operation.endswith("-start"):
            kind = "".join(hlo.elements(kind)[1:2])
        operands = set(_OPERAND.findall(rest.partition("), ")[0]))
        read = sum(in_memory(kinds.get((computation, operand), "")) for operand in operands)
        total += count * (read + in_memory(kind))
    return total


def _scheduled(text: str) -> set[str]:
    """The computations whose instructions run one by one, not within a fusion or reduction."""
    found = {hlo.entry(text)}
    for _, line in hlo.instructions(text):
        if _SCHEDULED.search(line):
            found |= set(hlo.called(line))
    return found
