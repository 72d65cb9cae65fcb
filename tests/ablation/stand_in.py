"""Takes the command line of the main command and leaves what it would leave, without training.

The environment's STAND_IN says in JSON how: {"fail": [...], "wait": [...], "preempted": [...],
"killed": [...], "stubborn": [...], "nothing": [...]}, each with parts of --config that are meant.
"""

import json
import os
import pathlib
import signal
import sys
import time
import zlib

# The tests' numbers: any, but of the row and the seed alone.
METRICS = ("R1", "R5", "R10", "R20", "mAP", "mINP")


def made_up(config, seed, corrupt):
    """{metric: fraction} of a row; `config` is the value of --config."""
    names = (f"{config.rpartition('/')[2]} {seed} {corrupt} {metric}" for metric in METRICS)
    values = (zlib.crc32(name.encode()) % 10_000 / 10_000 for name in names)
    return dict(zip(METRICS, values, strict=True))


def options_of(argv):
    """{option: value}; a second value of one is refused, as that of a tuple is added to it."""
    pairs = [argument.removeprefix("--").partition("=")[::2] for argument in argv]
    repeated = {key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1}
    if repeated - {"config.eval.flip", "config.eval.rerank"}:
        sys.exit(f"given twice: {repeated}")
    return dict(pairs)


def main():
    given = options_of(sys.argv[1:])
    how = {
        what
        for what, parts in json.loads(os.environ.get("STAND_IN", "{}")).items()
        if any(part in given["config"] for part in parts)
    }
    workdir = pathlib.Path(given["workdir"])
    with (workdir / "starts").open("a") as f:
        f.write(given.get("mode", "train") + "\n")
    print("it starts", flush=True)
    if "fail" in how:
        print("error: the loss is not finite", file=sys.stderr)
        sys.exit(1)
    if "killed" in how:
        os.kill(os.getpid(), signal.SIGKILL)
    if "preempted" in how:
        sys.exit(42)
    saved = workdir / "saved"
    if how & {"wait", "stubborn"} and not saved.exists():

        def stop(signum, frame):
            del frame
            saved.touch()
            if signum == signal.SIGINT or "wait" in how:
                sys.exit(130 if signum == signal.SIGINT else 42)

        signal.signal(signal.SIGINT, stop)

        signal.signal(signal.SIGTERM, stop)
        (workdir / "waits").touch()
        for _ in range(600):
            time.sleep(0.1)
    if "nothing" in how:
        sys.exit(0)
    corrupt = given.get("config.eval.corrupt")
    (protocol,) = eval(given["config.eval.protocols"])  # written by the command itself
    result = {
        "protocol": protocol,
        "feature": "bn",
        "gallery": "agw",
        "rerank": None,
        "checkpoint": "last",
        "metrics": made_up(given["config"], given["config.seed"], corrupt),
        "trials": [{}] * int(given.get("config.eval.trials", 10)),
    }
    if corrupt:
        result |= {"corrupt": corrupt, "corrupt_seed": 0, "results": 10, "trials": [{}] * 10}
    folder = workdir / "eval" / "50"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{protocol.replace('/', '-')}-{corrupt}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
