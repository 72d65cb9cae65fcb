"""Where a step's time goes on the device: a profile of jax.profiler as shares of groups.

An operation belongs to a group by its line in the compiled program. A fused loop has the name of
its last operation, so a normalization that is fused with the ReLU after it counts by the ReLU.
"""

import gzip
import json
import pathlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

GROUPS = ("convolution", "product", "normalization", "elementwise", "copy", "other")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (?:\(.*?\)|\S+) ([a-z][\w-]*)\((.*)$")
_NAME = re.compile(r'op_name="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_NORM = re.compile(r"/(bn\w*|\w*norm\w*|neck\w*)/", re.I)
_COPY = re.compile(r"(?:^|_)(copy|transpose|concatenate|slice|pad|bitcast)", re.I)
_HOLDS_OTHERS = ("while", "conditional", "call", "async-start", "async-done")
# Kernels that no operation of the program names.
_KERNELS = {
    "copy": re.compile(r"memcpy|memset|copy|transpose|nchwToNhwc|nhwcToNchw", re.I),
    "convolution": re.compile(r"conv|fprop|dgrad|wgrad|cudnn|xmma", re.I),
    "product": re.compile(r"gemm|cublas|cutlass|nvjet|matmul|dot", re.I),
}


def groups_of(text: str) -> dict[str, str | None]:
    """{operation: its group} of a compiled program; None for what only holds others.

    Args:
      text: of the program, from `compiled.as_text()`.
    """
    found: dict[str, str | None] = {}
    for line in text.splitlines():
        if match := _INSTRUCTION.match(line):
            found[match[1]] = _group(*match.groups())
    return found


def _group(name: str, opcode: str, rest: str) -> str | None:
    if opcode in _HOLDS_OTHERS:
        return None
    path = found[1] if (found := _NAME.search(rest)) else ""
    target = found[1].lower() if (found := _TARGET.search(rest)) else ""
    last = path.rsplit("/", 1)[-1]
    whole = opcode in ("convolution", "dot", "custom-call") or "kind=kCustom" in rest
    if opcode == "convolution" or "conv" in target or (whole and last == "conv_general_dilated"):
        return "convolution"
    if opcode == "dot" or re.search("gemm|matmul|cublas", target) or (whole and "dot" in last):
        return "product"
    if opcode in ("copy", "copy-start", "copy-done", "transpose") or _COPY.search(name):
        return "copy"
    if _NORM.search(path):
        return "normalization"
    return "other" if opcode == "custom-call" else "elementwise"


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
    """The events of the newest profile in the folder that jax.profiler was given.

    Raises:
      FileNotFoundError: there is none.
    """
    files = sorted(folder.glob("plugins/profile/*/*.trace.json.gz"))
    if not files:
        raise FileNotFoundError(f"no profile in {folder}, expected plugins/profile/*/*.json.gz")
    with gzip.open(files[-1], "rt") as file:
        return json.load(file)["traceEvents"]


def summary(
    events: Iterable[Mapping[str, Any]], groups: Mapping[str, str | None]
) -> dict[str, Any]:
    """Shares of the time between the first operation and the end of the last.

    Args:
      events: of a profile in Chrome's format; times are microseconds.
      groups: from `groups_of`.

    Returns:
      {"window_s": seconds, "idle": share in which nothing ran on the device, "shares": {group:
      share}, "longest": [[operation, share]], ten of them}. Shares and "idle" add up to 1.

    Raises:
      ValueError: no operation was recorded.
    """
    ran = _on_device(list(events), groups)
    if not ran:
        raise ValueError("the profile has no operation of the device; was a step run within it?")
    first = min(start for start, _, _, _ in ran)
    window = max(start + length for start, length, _, _ in ran) - first
    busy, reached = 0.0, first
    for start, length, _, _ in sorted(ran):
        busy += max(start + length - max(start, reached), 0.0)
        reached = max(reached, start + length)
    by_group: defaultdict[str, float] = defaultdict(float)
    by_name: defaultdict[str, float] = defaultdict(float)
    for _, length, name, group in ran:
        by_group[group] += length
        by_name[name] += length
    longest = sorted(by_name, key=lambda name: -by_name[name])
    scale = busy / window / sum(by_group.values())  # of operations that run side by side
    return {
        "window_s": window / 1e6,
        "idle": 1 - busy / window,
        "shares": {g: by_group[g] * scale for g in GROUPS},
        "longest": [[name, by_name[name] * scale] for name in longest[:10]],
    }


def _on_device(
    events: list[Mapping[str, Any]], groups: Mapping[str, str | None]
) -> list[tuple[float, float, str, str]]:
    """(start, length, operation, group) of what ran: on streams of a GPU, or else on the CPU."""
    names: dict[str, dict[Any, str]] = {"process_name": {}, "thread_name": {}}
    for e in events:
        if e.get("ph") == "M" and e.get("name") in names:
            names[e["name"]][e["pid"], e.get("tid")] = e["args"]["name"]
    gpus = {pid for (pid, _), name in names["process_name"].items() if "GPU" in name}
    streams = {
        key for key, name in names["thread_name"].items() if key[0] in gpus and "Stream" in name
    }
    found = []
    for e in events:
        if e.get("ph") != "X" or not e.get("dur"):
            continue
        operation = e.get("args", {}).get("hlo_op", "")
        if (e["pid"], e.get("tid")) not in streams if streams else not operation:
            continue
        if operation in groups:
            group = groups[operation]
        else:
            group = next((g for g, p in _KERNELS.items() if p.search(e["name"])), "other")
        if group is not None:
            found.append((float(e["ts"]), float(e["dur"]), operation or e["name"], group))
    return found
