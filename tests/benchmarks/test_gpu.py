"""The check of a GPU: its parts on a CPU at tiny sizes, and all that needs no device."""

import fcntl
import gzip
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import correctness, parts, steps, tables, trace

ROOT = pathlib.Path(__file__).resolve().parents[2]

# --- Where the time goes -----------------------------------------------------------------

# Lines of a program that XLA made for a GPU, shortened.
PROGRAM = """
  %cudnn-conv.1 = (f32[32,144,72,64]{3,2,1,0}, u8[0]{0}) custom-call(%a, %b), dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={op_name="jit(step_fn)/jvp(Net)/stem/conv1/conv_general_dilated"}
  %cublas-gemm.2 = (f32[64,256]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(step_fn)/jvp(Net)/head/dot_general"}
  %input_reduce_fusion.3 = f32[64]{0} fusion(%a), kind=kInput, calls=%f, metadata={op_name="jit(step_fn)/jvp(Net)/layer1_0/bn1/reduce_sum"}
  %loop_add_fusion.4 = f32[64]{0} fusion(%a), kind=kLoop, calls=%f, metadata={op_name="jit(step_fn)/add"}
  %loop_transpose_fusion.5 = f32[64]{0} fusion(%a), kind=kLoop, calls=%f, metadata={op_name="jit(step_fn)/transpose(jvp(Net))/layer1_0/conv1/conv_general_dilated"}
  %copy.6 = f32[64]{0} copy(%a)
  ROOT %while.7 = (s32[], f32[64]{0}) while(%t), condition=%c, body=%d
  %ynn_fusion.8 = f32[64]{0} fusion(%a), kind=kCustom, calls=%f, metadata={op_name="jit(step_fn)/jvp(Net)/layer1_0/conv1/conv_general_dilated"}
"""  # noqa: E501
GROUPS = {
    "cudnn-conv.1": "convolution",
    "cublas-gemm.2": "product",
    "input_reduce_fusion.3": "normalization",
    "loop_add_fusion.4": "elementwise",
    "loop_transpose_fusion.5": "copy",
    "copy.6": "copy",
    "while.7": None,
    "ynn_fusion.8": "convolution",
}


def named(kind, name, pid, tid=None):
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def event(name, start, length, tid=1, pid=7, op=None):
    args = {"hlo_op": op} if op else {}
    return {"ph": "X", "pid": pid, "tid": tid, "ts": start, "dur": length, "name": name} | (
        {"args": args} if args else {}
    )


GPU = [
    named("process_name", "/host:CPU", 1),
    named("process_name", "/device:GPU:0", 7),
    named("thread_name", "Stream #13(Compute)", 7, 1),
    named("thread_name", "Stream #14(MemcpyD2D)", 7, 2),
    named("thread_name", "XLA Ops", 7, 3),
]


def test_operations_are_grouped_by_their_lines():
    assert trace.groups_of(PROGRAM) == GROUPS


def test_shares_and_idle_time_add_up_to_one():
    events = [
        *GPU,
        event("sm90_xmma_fprop", 100, 40, op="cudnn-conv.1"),
        event("loop_add_fusion_4", 150, 10, op="loop_add_fusion.4"),
        event("MemcpyD2D", 160, 10, tid=2),  # side by side with the next
        event("cutlass_gemm", 160, 10),
        event("something", 180, 20),
        event("cudnn-conv.1", 100, 100, tid=3, op="cudnn-conv.1"),  # the same again, as a summary
        event("while", 100, 100, op="while.7"),
        event("python", 0, 1000, pid=1),
    ]
    found = trace.summary(events, GROUPS)
    assert found["window_s"] == pytest.approx(100e-6)
    assert found["idle"] == pytest.approx(0.2)  # 140-150 and 170-180
    shares = found["shares"]
    assert sum(shares.values()) + found["idle"] == pytest.approx(1)
    assert shares["convolution"] == pytest.approx(40 / 90 * 0.8)
    assert shares["copy"] == shares["product"] == shares["elementwise"]
    assert shares["normalization"] == 0 and shares["other"] == pytest.approx(20 / 90 * 0.8)
    assert found["longest"][0] == ["cudnn-conv.1", shares["convolution"]]


def test_on_a_cpu_operations_are_those_with_a_name_of_the_program():
    cpu = [named("process_name", "/host:CPU", 7), event("Execute", 0, 50)]
    found = trace.summary([*cpu, event("copy.6", 10, 5, op="copy.6")], GROUPS)
    assert found["shares"]["copy"] == pytest.approx(1) and found["idle"] == 0
    with pytest.raises(ValueError, match="no operation of the device"):
        trace.summary(cpu, GROUPS)


def test_the_newest_profile_is_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no profile in"):
        trace.read(tmp_path)
    for name in ("2026_01", "2026_02"):
        folder = tmp_path / "plugins" / "profile" / name
        folder.mkdir(parents=True)
        with gzip.open(folder / "host.trace.json.gz", "wt") as file:
            json.dump({"traceEvents": [event(name, 0, 1)]}, file)
    assert trace.read(tmp_path)[0]["name"] == "2026_02"


def test_a_profile_of_this_jax_is_understood(tmp_path):
    def conv(x, w):
        return jax.lax.conv(x, w, (1, 1), "SAME")

    x, w = jnp.ones((2, 3, 16, 16)), jnp.ones((4, 3, 3, 3))
    compiled = jax.jit(conv).lower(x, w).compile()
    with jax.profiler.trace(str(tmp_path)):
        jax.block_until_ready(compiled(x, w))
    found = trace.summary(trace.read(tmp_path), trace.groups_of(compiled.as_text()))
    assert found["shares"]["convolution"] > 0


# --- Processes within a budget -----------------------------------------------------------


def part(name, code, timeout_s=60.0, **env):
    return parts.Part(name, [sys.executable, "-c", code], timeout_s, env)


def run(wanted, out, **options):
    found = []
    settings = {"budget_s": 100.0, "workers": 1, "ended": found.append} | options
    parts.run(wanted, out, **settings)
    return {p["part"]: p for p in found}


def test_a_part_that_fails_or_hangs_loses_what_it_had_not_found(tmp_path):
    said = "import json, os, sys, time; print('a line'); print(json.dumps({'n': 1}), flush=True);"
    found = run(
        [
            part("good", said + "print(os.environ['X'])", X="{}"),
            part("bad", said + "raise SystemExit('out of memory')"),
            part("hangs", said + "time.sleep(60)", timeout_s=5.0),
        ],
        tmp_path,
        workers=2,
    )
    states = {name: p["state"] for name, p in found.items()}
    assert states == {"good": "done", "bad": "failed (1)", "hangs": "timed out"}
    assert found["good"]["rows"] == [{"n": 1}, {}] and not found["good"]["last_lines"]
    assert found["bad"]["rows"] == found["hangs"]["rows"] == [{"n": 1}]
    assert found["bad"]["last_lines"] == ["out of memory"]


def test_the_budget_stops_what_runs_and_leaves_out_the_rest(tmp_path):
    now = [0.0]

    def clock():  # each look is three seconds later
        now[0] += 3.0
        return now[0]

    hangs = "import time; time.sleep(60)"
    wanted = [part("runs", hangs, 10**6), part("late", hangs, 10**6)]
    found = run(wanted, tmp_path, budget_s=40.0, clock=clock)
    assert found["runs"]["state"] == "stopped at the budget"
    assert found["late"]["state"] == "left out" and not found["late"]["rows"]


def test_times_are_taken_alone_and_programs_compiled_together(tmp_path):
    def free(kind):
        with open(tmp_path / "device.lock", "w") as file:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    with parts.device(tmp_path, alone=False):
        assert free(fcntl.LOCK_SH) and not free(fcntl.LOCK_EX)
    with parts.device(tmp_path, alone=True):
        assert not free(fcntl.LOCK_SH)
    assert free(fcntl.LOCK_EX)


def test_without_a_gpu_the_command_ends_at_once(tmp_path):
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    called = [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path / "out")]
    done = subprocess.run(called, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("error: JAX finds no GPU here (cpu: cpu).")
    assert "add --tiny" in done.stderr


# --- Figures and tables ------------------------------------------------------------------


def test_flops_of_convolutions_and_products_are_counted():
    def f(x, w, m):
        y = jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        again = jax.lax.scan(lambda c, _: (c @ m, None), y.mean((1, 2)), None, length=3)[0]
        return jax.jit(lambda z: z @ m)(again)

    shapes = ((2, 6, 5, 3), (3, 3, 3, 8), (8, 8))
    jaxpr = jax.make_jaxpr(f)(*(jnp.ones(s) for s in shapes)).jaxpr
    assert steps.products(jaxpr) == 2 * (2 * 4 * 3 * 8) * (3 * 3 * 3) + 4 * 2 * (2 * 8 * 8)


def test_errors_are_relative_and_name_the_worst_array():
    expected = (2.0, {"a": np.full(100, 3.0), "b": np.full(100, 4.0), "none": np.full(2, 1e-9)})
    found = (2.002, {"a": np.full(100, 3.3), "b": np.full(100, 4.0), "none": np.full(2, 5e-9)})
    e = correctness.errors(found, expected)
    assert e["loss"] == pytest.approx(1e-3) and e["worst_name"] == "a"
    assert e["worst"] == pytest.approx(0.1) and e["gradient"] == pytest.approx(0.06)
    assert 0.99 < e["cosine"] < 1
    small = {"loss": 1e-6, "gradient": 5e-3}
    assert correctness.passes(small, {"gradient": 1e-3})  # as rounding moves the CPU's
    assert not correctness.passes(small, {"gradient": 1e-5})
    assert not correctness.passes(small | {"loss": 1e-3}, {"gradient": 1.0})
    assert not correctness.passes({"loss": np.nan, "gradient": 0.0}, {"gradient": 1.0})


def figures(**changes):
    """A report with a row of every kind."""
    step = {"method": "agw", "images": 64, "precision": "bf16"}
    errors = {"loss": 1e-6, "gradient": 2e-5, "worst": 3e-4, "worst_name": "x", "cosine": 0.999}
    compiled = {"compile_s": 30.0, "temp_bytes": 5e9, "argument_bytes": 1e9}
    compiled |= {"flops": 2e12, "bytes_accessed": 4e10}
    bits = {"kind": "resume", "steps": 8, "arrays": 90}
    rows = [
        {"kind": "correctness", "method": "agw", **errors, "cpu": errors, "passes": True},
        {"kind": "bfloat16", "method": "agw", **errors},
        {**bits, "deterministic": True, "differ": 0},
        {**bits, "deterministic": False, "differ": 3},
        {"kind": "compiled", "framework": "jax", **step, **compiled},
        {"kind": "step", "framework": "jax", **step, "step_s": [0.01, 0.02], "peak_bytes": 7e9},
        {"kind": "step", "framework": "torch", **step, "step_s": [0.02], "peak_bytes": None},
        {"kind": "compiled", "framework": "jax", **step, **compiled, "precision": "tf32"},
        {"kind": "embed", **step, "step_s": [0.032]},
        {"kind": "feeding", **step, "source": "one batch", "step_s": [0.01]},
        {"kind": "feeding", **step, "source": "loader", "step_s": [0.0125]},
        {
            **{"kind": "trace", **step, "window_s": 0.03, "steps": 3, "idle": 0.1},
            "shares": dict.fromkeys(trace.GROUPS, 0.15),
            "longest": [["cudnn-conv.1", 0.2]],
        },
    ]
    ended = [{"part": "train-pdm", "state": "timed out", "seconds": 9.0, "last_lines": ["oom"]}]
    found = {"device": "NVIDIA H200", "tiny": False, "budget_s": 480.0, "seconds": 300.0}
    found |= {"peaks": tables.peaks("NVIDIA H200", None, None), "torch": None}
    return json.loads(json.dumps({**found, "rows": rows, "parts": ended} | changes))


def test_the_tables_say_what_was_found():
    text = tables.markdown(figures())
    for line in (
        "| agw | 1.0e-06 | 2.0e-05 | 3.0e-04 | 2.0e-05 | good | 1.0e-06 | 0.9990 |",
        "- with XLA's deterministic operations: the same bits (90 arrays after 8 steps)",
        "- without a flag: 3 arrays with other bits (90 arrays after 8 steps)",
        # 2 TFLOP in 10 ms are 200 TFLOP/s, 25 % of 790; 40 GB are 4 TB/s, 93 % of 4.3.
        "| agw | vireid_jax | bf16 | 10.0 | 6400 | 0.50 |  | 30 | 7.00 | 5.00 + 1.00 | 200.0 "
        "| 25 % | 4.00, 93 % |",
        "| agw | vireid_jax | tf32 |  |  |  |  | 30 |  | 5.00 + 1.00 |  |  |  |",
        "| agw | PyTorch eager | bf16 | 20.0 | 3200 |  |  |  |  |  |  |  |  |",
        "| agw | bf16 | 64 | 2000 |",
        "The device waits 20 % of the time.",
        "| agw | bf16 | 10.0 | 15 % |",
        "- train-pdm: timed out after 9 s",
        "PyTorch is not installed",
    ):
        assert line in text, line
    assert "times mean nothing" not in text
    assert "times mean nothing" in tables.markdown(figures(tiny=True))
    assert "of peak" not in tables.markdown(figures(peaks=None))
    empty = tables.markdown(figures(rows=[], parts=[], torch="2.13.0"))
    assert empty == "Device: NVIDIA H200. 300 of 480 s."


def test_what_is_wrong_is_said():
    rows = figures()["rows"]
    assert tables.verdicts(rows) == []
    rows[0]["passes"], rows[2]["differ"] = False, 2
    assert [line.partition(":")[0] for line in tables.verdicts(rows)] == ["agw", "resume"]


def test_peak_rates_are_known_or_given_or_left_out():
    assert tables.peaks("NVIDIA H200", None, None) == {"tflops": 790.0, "tbs": 4.3}
    assert tables.peaks("NVIDIA H200", 900.0, None) == {"tflops": 900.0, "tbs": 4.3}
    assert tables.peaks("NVIDIA T4", 65.0, 0.3) == {"tflops": 65.0, "tbs": 0.3}
    assert tables.peaks("NVIDIA T4", 65.0, None) is tables.peaks("cpu", None, None) is None


@pytest.mark.slow
def test_the_whole_check_runs_on_a_cpu(tmp_path):
    """Of one method; every part ends well, and finds what it is there for.

    Without torch.compile, which takes minutes on a CPU and needs a C++ compiler, and with one of
    the two resumed runs.
    """
    parts = ("correctness", "train", "torch-", "feeding", "embed", "resume-plain")
    called = [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--busy-ok", "--methods", "agw"]
    done = subprocess.run(
        [*called, "--only", *parts, "--budget", "900", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1000,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    ended = {p["part"]: p["state"] for p in found["parts"]}
    assert set(ended.values()) == {"done"}, ended
    planned = [p.name for p in command.plan(["agw"], _flags(tmp_path), torch=True)]
    assert list(ended) == [name for name in planned if name.startswith(parts)]
    kinds = {(r["kind"], r.get("method"), r.get("framework")) for r in found["rows"]}
    assert {
        *(("correctness", "agw", None), ("correctness", "caj", None), ("bfloat16", "agw", None)),
        *(("step", "agw", "jax"), ("step", "agw", "torch"), ("trace", "agw", None)),
        *(("resume", None, None), ("embed", "agw", None), ("feeding", "agw", None)),
    } <= kinds
    for r in found["rows"]:
        if r["kind"] == "compiled" and r["framework"] == "jax":
            assert r["flops"] > 0 and r["temp_bytes"] > 0
    assert tables.markdown(found).strip() in (tmp_path / "gpu.md").read_text()


def _flags(out):
    return type("Flags", (), {"tiny": True, "out": out})()
