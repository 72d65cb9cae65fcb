"""What a compiled program moves, read off its optimized HLO text: between chips, and in memory."""

import math
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

KINDS = (
    *("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "ragged-all-to-all"),
    *("collective-permute", "collective-broadcast"),
)
REDUCTIONS = ("all-reduce", "reduce-scatter")
GRADIENTS, FEATURES, OTHER = "gradients and statistics", "features and labels", "other"
PARAMETERS = "parameters"

_KIND = "|".join(KINDS)
# The result's type may be a tuple, whose layouts have parentheses and braces of their own.
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({_KIND})(-start)?\(")
_ARRAY = re.compile(r"\b(pred|token|[a-z]+\d+\w*)\[([\d,<=]*)\]")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_CALLED = re.compile(
    r"\b(?:to_apply|calls|condition|body|true_computation|false_computation)=%?([\w.-]+)"
    r"|\b(?:branch_computations|calls)=\{([^}]*)\}"
)
_BODY = re.compile(r"\bbody=%?([\w.-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_GROUPS = re.compile(r"replica_groups=(?:\[(\d+),(\d+)\]|\{\{([\d,]*)\})")
# Of newer XLA: mesh['a'=4,'b'=2] {'a'}, the axes in braces within, or parts of them, 'a':(1)2.
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}")
_AXIS = re.compile(r"'([^']*)'(?::\(\d+\)(\d+))?")
_NAME = re.compile(r'op_name="([^"]*)"')
# Operations that move nothing.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "iota"),
    *("while", "conditional", "call", "partition-id", "replica-id", "opt-barrier"),
}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_OPERAND = re.compile(r"%([\w.-]+)")
_SPACE = re.compile(r"S\((\d+)\)")
_TYPE = re.compile(r"\b[a-z]+\d*\w*\[[\d,<=]*\](?:\{[^}]*\})?")
_SCHEDULED = re.compile(r"[\])}] (?:while|conditional|call)\(")


class Array(NamedTuple):
    """An array that a collective returns on every device."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its size; types below a byte count as packed."""
        return -(-math.prod(self.shape) * bits(self.dtype) // 8)


class Collective(NamedTuple):
    """One operation between devices."""

    kind: str
    arrays: tuple[Array, ...]  # what every device has of the result
    group: int  # devices that take part together; 0: all
    times: int  # a step, more than one within loops; -1: in a loop of unknown length, counted once
    name: str  # of the operation in the program that was compiled, "" if the compiler made it

    @property
    def bytes(self) -> int:
        """Result on every device, of one time."""
        return sum(array.bytes for array in self.arrays)


def bits(dtype: str) -> int:
    """Bits of a number of an HLO type: 32 of f32, 8 of f8e4m3fn, 128 of c128."""
    if dtype == "pred":
        return 8
    digits = re.match(r"[a-z]+(\d+)", dtype)
    return int(digits[1]) if digits else 0  # a token is no data


def collectives(text: str) -> list[Collective]:
    """Every collective of a program, in the order of the text.

    Of a pair -start, -done the start counts, which may return its operands beside the results.
    """
    times = run_times(text)
    found = []
    for computation, line in instructions(text):
        if match := _OPERATION.match(line):
            result, kind, start = match.groups()
            if start and kind in ("all-gather", "collective-permute", "reduce-scatter"):
                result = elements(result)[1]  # (operands, results, and of permutes two contexts)
            found.append(
                Collective(
                    kind,
                    tuple(arrays(result)),
                    _group(line),
                    times.get(computation, 1),
                    name[1] if (name := _NAME.search(line)) else "",
                )
            )
    return found


def arrays(text: str) -> Iterator[Array]:
    """The arrays that a type in HLO names: f32[8,3]{1,0}, or a tuple of such."""
    for dtype, shape in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", text)):
        if dtype != "token":
            yield Array(dtype, tuple(int(n.lstrip("<=")) for n in shape.split(",") if n))


def group_of(
    collective: Collective,
    *,
    parameters: Collection[int],
    statistics: int,
    features: int,
    fixed: Collection[int] = (),
    shared: int = 1,
) -> str:
    """What a collective of a data-parallel train step carries, as far as its size tells.

    Args:
      collective: one operation.
      parameters: numbers in each parameter, and so in its gradient.
      statistics: most numbers in a sum over the batch, of a normalization or a loss.
      features: most numbers in the features of the global batch.
      fixed: numbers in other arrays of weights or statistics, see `programs.fixed_sizes`.
      shared: devices that share a copy of the parameters (fsdp): it is gathered, and its
        gradients are scattered.

    Returns:
      GRADIENTS for reductions of gradients, statistics and scalars, PARAMETERS for gathers of
      parameters, FEATURES for what is no larger than the features and has at most three axes,
      OTHER for the rest: activation maps, if anything moves them.
    """

    def small(array: Array) -> bool:
        return math.prod(array.shape) <= features and len([n for n in array.shape if n > 1]) <= 3

    def reduced(array: Array) -> bool:
        size = math.prod(array.shape)
        known = size in parameters or size * shared in parameters or size in fixed
        return known or size <= statistics

    if collective.kind in REDUCTIONS and all(map(reduced, collective.arrays)):
        return GRADIENTS
    gathered = all(math.prod(array.shape) in parameters for array in collective.arrays)
    if shared > 1 and collective.kind == "all-gather" and gathered:
        return PARAMETERS
    return FEATURES if all(map(small, collective.arrays)) else OTHER


def elements(text: str) -> list[str]:
    """The elements of a tuple type; those of "(a, (b, c))" are "a" and " (b, c)"."""
    parts, depth, start = [], 0, 1
    for n, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if (letter == "," and depth == 1) or (letter == ")" and depth == 0):
            parts.append(text[start:n])
            start = n + 1
    return parts


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """(computation, line) of every line that does not begin a computation."""
    computation = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            computation = match[2]
        else:
            yield computation, line


def _group(line: str) -> int:
    if mesh := _MESH.search(line):
        lengths = dict(re.findall(r"'([^']*)'=(\d+)", mesh[1]))
        return math.prod(int(part or lengths[axis]) for axis, part in _AXIS.findall(mesh[2]))
    match = _GROUPS.search(line)
    if not match:
        return 0
    return int(match[2]) if match[2] else len(match[3].split(",")) if match[3] else 0


def entry(text: str) -> str:
    """The computation that a program begins with."""
    for line in text.splitlines():
        if (match := _COMPUTATION.match(line)) and match[1]:
            return match[2]
    return ""


def called(line: str) -> list[str]:
    """The computations that an instruction names."""
    names = [one or several for one, several in _CALLED.findall(line)]
    return [name for some in names for name in re.findall(r"[\w.-]+", some)]


def run_times(text: str) -> dict[str, int]:
    """How often each computation runs in a step; negative if a loop's length is unknown."""
    callers: dict[str, list[tuple[str, int]]] = {}  # callee: [(caller, trips)]
    for computation, line in instructions(text):
        body = _BODY.search(line)
        trips = _TRIPS.search(line)
        for callee in called(line):
            looped = body is not None and callee == body[1]
            count = (int(trips[1]) if trips else -1) if looped else 1
            callers.setdefault(callee, []).append((computation, count))
    first = entry(text)
    known: dict[str, int] = {first: 1}

    def times(computation: str) -> int:
        if computation not in known:
            counts = [(times(caller), count) for caller, count in callers.get(computation, [])]
            sign = -1 if any(t < 0 or c < 0 for t, c in counts) else 1
            known[computation] = sign * sum(abs(t * c) for t, c in counts) or 1
        return known[computation]

    return {computation: times(computation) for computation in [first, *callers]}


# --- Memory -----------------------------------------------------------------------------


def in_memory(kind: str) -> int:
    """Bytes of the arrays of a type that are in the chip's memory."""
    total = 0
    for array in _TYPE.findall(kind):
        space = _SPACE.search(array)
        if space is None or space[1] == "0":
            total += sum(a.bytes for a in arrays(array))
    return total


def traffic(text: str) -> int:
    """Bytes that a TPU program reads from and writes to a chip's memory, each operand once.

    XLA's "bytes accessed" also counts what stays in the cores (VMEM), and a whole array for every
    prefetch of a slice. Layouts with S(1) and above are not in the chip's memory. A loop of unknown
    length counts once, and all branches count.
    """
    times = run_times(text)
    scheduled = _scheduled(text)
    kinds: dict[tuple[str, str], str] = {}  # (computation, name): type
    total = 0
    for computation, line in instructions(text):
        if computation not in scheduled or not (match := _INSTRUCTION.match(line)):
            continue
        name, kind, operation, rest = match.groups()
        kinds[computation, name] = kind
        if operation in _FREE or operation.endswith("-done"):
            continue
        count = abs(times.get(computation, 1))
        if operation == "copy-start":  # (copy, original, context)
            copy, original = elements(kind)[:2]
            total += count * (in_memory(copy) + in_memory(original))
            continue
        if operation == "slice-start":  # ((original), slice, context): it alone is read
            original, part = elements(kind)[:2]
            size = sum(a.bytes for a in arrays(part))
            total += count * (in_memory(part) + (size if in_memory(original) else 0))
            continue
        if "ConcatBitcast" in rest:  # a view of slices side by side
            continue
        if operation.endswith("-start"):
            kind = "".join(elements(kind)[1:2])
        operands = set(_OPERAND.findall(rest.partition("), ")[0]))
        read = sum(in_memory(kinds.get((computation, operand), "")) for operand in operands)
        total += count * (read + in_memory(kind))
    return total


def _scheduled(text: str) -> set[str]:
    """The computations whose instructions run one by one, not within a fusion or reduction."""
    found = {entry(text)}
    for _, line in instructions(text):
        if _SCHEDULED.search(line):
            found |= set(called(line))
    return found
