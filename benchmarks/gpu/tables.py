"""What the check found, in Markdown; imports no JAX."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks import report
from benchmarks.gpu.trace import GROUPS

# TFLOP/s of bfloat16 products and TB/s of memory that a GPU reaches at best, by a part of its name;
# what is measured on it, not the vendor's sheet. Products of TF32 go half as fast.
PEAKS = {"H200": (790.0, 4.3)}
_ROWS = (("jax", "vireid_jax"), ("torch", "PyTorch eager"), ("torch compiled", "PyTorch compiled"))
_FACTOR = {"bf16": 1.0, "tf32": 0.5}


def peaks(kind: str, tflops: float | None, tbs: float | None) -> dict[str, float] | None:
    """The rates that shares are of; None where neither the device is known nor both are given."""
    known = next((rates for name, rates in PEAKS.items() if name in kind), (None, None))
    found = (tflops or known[0], tbs or known[1])
    return None if None in found else {"tflops": float(found[0]), "tbs": float(found[1])}  # type: ignore[arg-type]


def markdown(found: Mapping[str, Any]) -> str:
    """All tables for which there are figures, and what was left out."""
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for row in found["rows"]:
        rows.setdefault(row["kind"], []).append(row)
    head = f"Device: {found['device']}. {found['seconds']:.0f} of {found['budget_s']:.0f} s."
    parts = [
        head + " **Tiny sizes: the times mean nothing.**" * bool(found["tiny"]),
        _correctness(rows),
        _resume(rows.get("resume", [])),
        _steps(rows, found.get("peaks")),
        _embedding(rows.get("embed", [])),
        _feeding(rows.get("feeding", [])),
        _traces(rows.get("trace", [])),
        _parts(found["parts"], found.get("torch")),
    ]
    return "\n\n".join(filter(None, parts))


def verdicts(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What is wrong, a line each; none if all is right."""
    wrong = []
    for r in rows:
        if r["kind"] == "correctness" and not r["passes"]:
            wrong.append(f"{r['method']}: the GPU's loss or gradient in float32 is not the CPU's")
        if r["kind"] == "resume" and r["deterministic"] and r["differ"]:
            wrong.append(f"resume: {r['differ']} of {r['arrays']} arrays have other bits")
    return wrong


def _correctness(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    exact = rows.get("correctness", [])
    if not exact:
        return ""
    half = {r["method"]: r for r in rows.get("bfloat16", [])}
    header = ["method", "loss", "gradient", "worst array", "CPU, weights moved by rounding", ""]
    header += ["bf16: loss", "bf16: cosine of the gradients"]
    body = []
    for r in exact:
        cells = [r["method"], *(f"{r[k]:.1e}" for k in ("loss", "gradient", "worst"))]
        cells += [f"{r['cpu']['gradient']:.1e}", "good" if r["passes"] else "**WRONG**"]
        b = half.get(r["method"])
        cells += [f"{b['loss']:.1e}", f"{b['cosine']:.4f}"] if b else ["", ""]
        body.append(cells)
    return (
        "Relative errors of the GPU in float32 against the CPU of the same machine (embedded "
        f"recipes):\n\n{report.table(header, body)}"
    )


def _resume(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for r in sorted(rows, key=lambda r: not r["deterministic"]):
        flag = "with XLA's deterministic operations" if r["deterministic"] else "without a flag"
        same = "the same bits" if not r["differ"] else f"{r['differ']} arrays with other bits"
        lines.append(f"- {flag}: {same} ({r['arrays']} arrays after {r['steps']} steps)")
    return "A run that was stopped and resumed:\n\n" + "\n".join(lines) if lines else ""


def _steps(
    rows: Mapping[str, Sequence[Mapping[str, Any]]], rates: Mapping[str, float] | None
) -> str:
    timed, compiled = (
        {(r["method"], r["framework"], r["precision"]): r for r in rows.get(kind, [])}
        for kind in ("step", "compiled")
    )
    keys = timed | compiled
    if not keys:
        return ""
    header = ["method", "", "precision", "ms a step", "images/s", "ratio to eager"]
    header += ["ratio to compiled", "compile s", "peak GB", "temp + args GB", "TFLOP/s"]
    header += ["of peak", "memory TB/s, of peak"] if rates else []
    body = []
    for method in dict.fromkeys(k[0] for k in keys):
        for framework, title in _ROWS:
            for precision in ("bf16", "tf32", "fp32"):
                key = (method, framework, precision)
                if key in keys:
                    of = [timed.get((method, f, precision)) for f, _ in _ROWS]
                    body.append(
                        [method, title, precision, *_step(timed.get(key), compiled.get(key), of)]
                        + (_shares(timed.get(key), compiled.get(key), rates) if rates else [])
                    )
    return (
        "The train step at the paper's size. A ratio is our time over theirs in the same "
        "precision. Other parts compile beside it while a step is compiled, not while one is "
        "timed.\n\n" + report.table(header, body, left=3)
    )


def _best(row: Mapping[str, Any] | None) -> float | None:
    return None if row is None else min(row["step_s"])


def _step(
    row: Mapping[str, Any] | None,
    compiled: Mapping[str, Any] | None,
    frameworks: Sequence[Mapping[str, Any] | None],
) -> list[str]:
    """Cells from "ms a step" on; `frameworks` are the rows of the same precision."""
    c, best = compiled or {}, _best(row)
    cells = ["", "", "", ""]
    if row is not None and best is not None:
        ours = row["framework"] == "jax"
        ratios = [f"{best / t:.2f}" if ours and (t := _best(r)) else "" for r in frameworks[1:]]
        cells = [f"{1e3 * best:.1f}", f"{row['images'] / best:.0f}", *ratios]
    cells.append(f"{c['compile_s']:.0f}" if "compile_s" in c else "")
    peak = (row or {}).get("peak_bytes")
    cells.append(f"{peak / 1e9:.2f}" if peak else "")
    both = [c[k] for k in ("temp_bytes", "argument_bytes") if c.get(k) is not None]
    cells.append(" + ".join(f"{size / 1e9:.2f}" for size in both))
    flops = c.get("flops")
    return [*cells, f"{flops / best / 1e12:.1f}" if flops and best is not None else ""]


def _shares(
    row: Mapping[str, Any] | None, compiled: Mapping[str, Any] | None, rates: Mapping[str, float]
) -> list[str]:
    """Shares of the peak rates; float32 without TF32 does not run on the matrix units."""
    if row is None or compiled is None:
        return ["", ""]
    best, factor = min(row["step_s"]), _FACTOR.get(row["precision"], 0.0)
    share = (compiled.get("flops") or 0.0) * factor and (
        compiled["flops"] / best / 1e12 / (factor * rates["tflops"])
    )
    rate = (compiled.get("bytes_accessed") or 0.0) / best / 1e12
    return [
        f"{100 * share:.0f} %" if share else "",
        f"{rate:.2f}, {100 * rate / rates['tbs']:.0f} %" if rate else "",
    ]


def _embedding(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    body = [
        [r["method"], r["precision"], r["images"], f"{r['images'] / min(r['step_s']):.0f}"]
        for r in rows
    ]
    return (
        "Embedding of images on the device:\n\n"
        + report.table(["method", "precision", "images at once", "images/s"], body, left=2)
        + "\n\nScoring ranks in NumPy on the host and does not use the device "
        "(`python -m benchmarks.evaluator`). DEEN's and PDM's sums of similarities are made on "
        "the device."
    )


def _feeding(rows: Sequence[Mapping[str, Any]]) -> str:
    best = {(r["method"], r["source"]): r for r in rows}
    lines = []
    for method in dict.fromkeys(r["method"] for r in rows):
        alone, fed = (best.get((method, s)) for s in ("one batch", "loader"))
        if alone is None or fed is None:
            continue
        waits = max(1 - min(alone["step_s"]) / min(fed["step_s"]), 0.0)
        rates = [r["images"] / statistics.median(r["step_s"]) for r in (alone, fed)]
        lines.append(
            f"{method} in {fed['precision']}: {rates[0]:.0f} images/s on one batch again and "
            f"again, {rates[1]:.0f} on batches that the loader gathers from memory. The device "
            f"waits {100 * waits:.0f} % of the time."
        )
    return "\n".join(lines)


def _traces(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    body, longest = [], []
    for r in rows:
        shares = [*(r["shares"][g] for g in GROUPS), r["idle"]]
        ms = 1e3 * r["window_s"] / r["steps"]
        body.append(
            [r["method"], r["precision"], f"{ms:.1f}", *(f"{100 * s:.0f} %" for s in shares)]
        )
        names = ", ".join(f"`{name}` {100 * share:.1f} %" for name, share in r["longest"][:5])
        longest.append(f"- {r['method']}: {names}")
    header = ["method", "precision", "ms a step, traced", *GROUPS, "idle"]
    return (
        "Where the time of a step goes. A fused loop counts by its last operation. A GPU's "
        "operations are launched one by one within a profile, so the idle time is at most so "
        "much.\n\n"
        + report.table(header, body, left=2)
        + "\n\nThe longest operations:\n\n"
        + "\n".join(longest)
    )


def _parts(parts: Sequence[Mapping[str, Any]], torch: str | None) -> str:
    lines = [] if torch else ["- PyTorch is not installed: its rows are left out."]
    for p in parts:
        if p["state"] != "done":
            lines.append(f"- {p['part']}: {p['state']} after {p['seconds']:.0f} s")
            lines += [f"      {line}" for line in p.get("last_lines", [])]
    return "What is missing:\n\n" + "\n".join(lines) if lines else ""
