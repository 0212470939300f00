"""The trainer: `python -m trainer --config=FILE` (in the image also `rmldnn --config=FILE`).

Runs what one configuration says. With `--run-folder DIR` it works in DIR and also writes
metrics.jsonl, result.json, trainer.log and checkpoints there; without, only what the configuration
names, relative to where it was started. Exit codes: see trainer/errors.py.

A run with `--run-folder DIR` that stopped (exit code 3, or killed) goes on with the same command
and `--resume`: from the batch after the one that DIR/checkpoints/last.pt was written at (or last.pt
in the folder that `checkpoints.save` names), anew where there is none. metrics.jsonl, trainer.log
and the text logs are appended to. On a CPU its numbers are those of a run that never stopped, bit
by bit. After a kill, which leaves a last.pt up to a minute old, epochs may be told twice.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import json
import os
import sys
import traceback
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MISSING = [
    name for name in ("pydantic", "yaml", "numpy", "PIL", "h5py", "torch") if not find_spec(name)
]
if MISSING:
    print(
        f"{sys.executable} has no {', '.join(MISSING)}: make install, then .venv/bin/python "
        "(source .venv/bin/activate)",
        file=sys.stderr,
    )
    sys.exit(2)

from trainer.config import load_config  # noqa: E402
from trainer.console import Console  # noqa: E402
from trainer.errors import CAUSES, InputError, NoSpace, OutOfMemory, RmlError  # noqa: E402
from trainer.events import LOG_FILE, METRICS_FILE, RESULT_FILE, SCHEMA_VERSION, EventLog, plain  # noqa: E402
from trainer.stopping import StopRequest  # noqa: E402

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt (malloc.h)."""

INFINITE = "infinite"
SPINS_PER_MS = 100_000
"""Turns of a waiting loop, as libgomp itself counts them."""

AFFINITIES: dict[str, dict[str, str]] = {
    "near": {
        "OMP_PROC_BIND": "close",
        "OMP_PLACES": "threads",
        "KMP_AFFINITY": "granularity=thread,compact,1,0",
    },
    "far": {
        "OMP_PROC_BIND": "spread",
        "OMP_PLACES": "threads",
        "KMP_AFFINITY": "granularity=thread,scatter",
    },
    "off": {"OMP_PROC_BIND": "false", "KMP_AFFINITY": "disabled"},
}
"""GNU's OpenMP, which torch brings on Linux, reads OMP_…; Intel's and LLVM's read KMP_…, too."""

OUT_OF_SCOPE_APPS = ("pde", "gan", "obj")
ONE_IMAGE = "Expected more than 1 value per channel"


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; `--config= FILE`, which a shell splits in two, works too."""
    parser = argparse.ArgumentParser(prog="trainer", description="Trains, evaluates and predicts.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--config", help="configuration file (JSON, or YAML by its name)")
    what.add_argument("--describe", metavar="LAYERS", help="print what a network file describes")
    what.add_argument("--check", metavar="CONFIG", help="print which keys of a configuration act")
    schema = "print the JSON Schema of configurations"
    what.add_argument("--schema", action="store_true", help=schema)
    one_key = (
        "one key of the configuration, like optimizer.learning_rate=1e-4; may stand repeatedly"
    )
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help=one_key)
    parser.add_argument("--at", metavar="256x256", help="with --describe: for this image size")
    parser.add_argument("--app", default="dnn", help="kind of run: dnn (default)")
    parser.add_argument("--run-folder", help="work in this folder and write events there too")
    resume = "go on from last.pt of the run folder, anew where there is none; appends to its files"
    parser.add_argument("--resume", action="store_true", help=resume)
    measured = "train a few batches only and tell, as JSON, what they take (also in result.json)"
    trust = "run the Python file of a network that only a checkpoint names"
    parser.add_argument("--trust-code", action="store_true", help=trust)
    parser.add_argument("--measure", action="store_true", help=measured)
    timed = "train without evaluations and checkpoints; tell samples/s and the latency of batches"
    parser.add_argument("--benchmark", action="store_true", help=timed)
    first = "with --benchmark: batches that are not counted (default 4)"
    parser.add_argument("--warm-up", type=int, metavar="N", help=first)
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps")
    parser.add_argument("--threads", type=int, help="CPU threads (default: one a core)")
    parser.add_argument(
        "--inter-op-threads", type=int, help="threads that run operations side by side"
    )
    parser.add_argument(
        "--blocktime", metavar="MS", help="how long waiting threads stay awake: 0, 1, …, infinite"
    )
    parser.add_argument(
        "--affinity",
        choices=sorted(AFFINITIES),
        help="threads stay on cores that are near each other, or far; off: they move",
    )
    parser.add_argument("--parent-pid", type=int, help="stop when this parent process ends")
    joined = list(arguments)
    if "--config=" in joined[:-1]:
        at = joined.index("--config=")
        joined[at : at + 2] = [f"--config={joined[at + 1]}"]
    return parser.parse_args(joined)


def _check(options: argparse.Namespace) -> None:
    if options.app in OUT_OF_SCOPE_APPS:
        raise InputError("--app", f"'{options.app}' is not in the scope of this program", "dnn")
    if options.app != "dnn":
        raise InputError("--app", f"unknown name '{options.app}'", "dnn")
    for name in ("threads", "inter_op_threads"):
        count = getattr(options, name)
        if count is not None and count < 1:
            option = f"--{name.replace('_', '-')}"
            raise InputError(option, f"{count} threads cannot compute", "1 or more")
    if options.warm_up is not None and (options.warm_up < 0 or not options.benchmark):
        accepted = "0 or more, with --benchmark"
        raise InputError("--warm-up", f"{options.warm_up}", accepted)
    if options.benchmark and (options.resume or options.measure):
        other = "--resume" if options.resume else "--measure"
        raise InputError("--benchmark", f"stands together with {other}", "one of them")
    if options.blocktime not in (None, INFINITE) and not options.blocktime.isdecimal():
        accepted = f"milliseconds, or {INFINITE}"
        raise InputError("--blocktime", f"'{options.blocktime}' is no time", accepted)
    if options.resume and not options.run_folder:
        raise InputError("--resume", "there is no run folder to go on in", "with --run-folder DIR")


def enter_run_folder(folder: str | None, resume: bool = False) -> Path | None:
    """Makes the run folder the working directory; refuses one that has a result already.

    A result that a resume can go on from is removed: it would soon be wrong.
    """
    if folder is None:
        return None
    path = Path(folder).absolute()
    if resume and _ended_early(path / RESULT_FILE):
        (path / RESULT_FILE).unlink()
    if (path / RESULT_FILE).exists():
        fix = "give an empty folder, or remove result.json to run again"
        raise InputError(str(path), f"has a {RESULT_FILE}: this run has ended", "", fix)
    try:
        path.mkdir(parents=True, exist_ok=True)
        os.chdir(path)
    except (FileExistsError, NotADirectoryError, PermissionError) as error:
        raise InputError(str(path), f"cannot be a run folder ({error.strerror})") from None
    return path


def _ended_early(result: Path) -> bool:
    try:
        return bool(json.loads(result.read_text(encoding="utf-8"))["exit_code"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def describe(path: str, at: str | None = None) -> int:
    """Prints one JSON object about a network file; the exit code."""
    from trainer.describe import described

    try:
        facts = described(path, at)
    except Exception as error:
        known = translated(error)
        if known is None:
            raise
        print(f"Error: {known}", file=sys.stderr)
        return known.exit_code
    print(json.dumps(facts))
    return 0


def explain(check: str | None, settings: list[str]) -> int:
    """Prints which keys of the configuration `check` act, or without one the JSON Schema."""
    from trainer.explain import schema, told

    if check is None:
        print(json.dumps(schema(), indent=1))
        return 0
    try:
        lines = list(told(load_config(check, settings)))
    except RmlError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    print("\n".join(lines))
    return 0


def prepare_process(
    threads: int | None, blocktime: str | None = None, affinity: str | None = None
) -> None:
    """Tells OpenMP its threads, and to sleep soon where they wait for each other; keeps memory.

    Read once, when torch is loaded. With libgomp's own patience (300,000 turns), threads that share
    their cores with anything else wait for each other at full speed: two trainings of two threads
    on two cores took 45 s an epoch, with this 3.2 s, and one alone 1.2 and 1.4 s.

    `blocktime` are the milliseconds of that patience, `affinity` is a name of AFFINITIES.

    What a Mac's GPU cannot compute, its CPU shall: torch reads that then, too.
    """
    keep_memory()
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    if threads:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if blocktime is not None:
        os.environ["KMP_BLOCKTIME"] = blocktime
        spins = "INFINITY" if blocktime == INFINITE else str(int(blocktime) * SPINS_PER_MS)
        os.environ["GOMP_SPINCOUNT"] = spins
    os.environ.update(AFFINITIES[affinity] if affinity else {})


def keep_memory() -> None:
    """Lets a process keep what tensors leave, with glibc, unless MALLOC_… says something else.

    It is given back to the system otherwise and asked for again, a page at a time, at every
    operation: training steps of networks in layers/ take 1.08 to 1.6 times as long on one core
    (benchmarks/memory.py). The price is up to a quarter more memory.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(M_MMAP_THRESHOLD, 2**30)
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def open_inter_op(threads: int | None) -> None:
    """Tells torch how many operations run side by side; it takes this once in a process."""
    import torch

    if threads and threads != torch.get_num_interop_threads():
        torch.set_num_interop_threads(threads)


def translated(error: BaseException) -> RmlError | None:
    """A known reason in an exception of the libraries, as one of ours; else None."""
    if isinstance(error, RmlError):
        return error
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return OutOfMemory(f"out of memory: {text.splitlines()[0] if text else 'MemoryError'}")
    full = ("can't allocate memory", "MPS backend out of memory")
    if isinstance(error, RuntimeError) and any(part in text for part in full):
        return OutOfMemory(f"out of memory: {text.splitlines()[0]}")
    if isinstance(error, ValueError) and text.startswith(ONE_IMAGE):
        found = "leaves a batch of one image, too little for this network's normalisation"
        fix = "another batch_size, or larger images"
        return InputError("data.batch_size", found, fix=fix)
    if isinstance(error, RuntimeError) and "deterministic implementation" in text:
        found = text.split(". ")[0]
        return InputError("deterministic", found, "false", "leave it out for this network or loss")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"no space left on the disk: {error.filename or 'while writing'}")
    if own := sys.modules.get("trainer.networks.own"):  # imported with torch, if at all
        fault: RmlError | None = own.fault_of(error)
        return fault
    return None


def write_result(folder: Path | None, content: dict[str, Any]) -> None:
    """result.json, written beside and renamed; a full disk must not hide why the run ended."""
    if folder is None:
        return
    beside = folder / f".{RESULT_FILE}"
    try:
        beside.write_text(json.dumps(plain(content), indent=1) + "\n", encoding="utf-8")
        os.replace(beside, folder / RESULT_FILE)
    except OSError as error:
        beside.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            print(f"{RESULT_FILE} cannot be written: {error}", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit code."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when torch and the networks are imported
    if options.describe:
        return describe(options.describe, options.at)
    if options.check or options.schema:
        return explain(options.check, options.set)
    folder: Path | None = None
    console = Console()
    events = EventLog(None)
    stop = StopRequest()
    stop.on_signals()
    result: dict[str, Any] = {}
    try:
        _check(options)
        config_path = Path(options.config).absolute()
        folder = enter_run_folder(options.run_folder, options.resume)
        if folder:
            console = Console(folder / LOG_FILE)
            events = EventLog(folder / METRICS_FILE)
            stop.on_still_heartbeat(folder / "heartbeat")
        if options.parent_pid:
            stop.on_parent_death(options.parent_pid)
        config = load_config(config_path, options.set)
        prepare_process(options.threads, options.blocktime, options.affinity)
        from trainer.epoch import Run
        from trainer.train import open_clock, run  # torch takes 1.5 s to import

        open_inter_op(options.inter_op_threads)
        checkpoints = Path("checkpoints") if folder else None
        if config.checkpoints.save:
            checkpoints = Path(config.checkpoints.save)
        this = Run(
            console,
            events,
            stop,
            checkpoints,
            options.device,
            options.threads,
            options.resume,
            options.trust_code,
        )
        if options.benchmark:
            this = replace(this, clock=open_clock(config, options.warm_up), checkpoints=None)
        if options.measure:
            from trainer.measure import measure

            result = {"measured": measure(config, this)}
            console.plain(json.dumps(plain(result["measured"])))
        else:
            result = run(config, this)
        code, reason = 0, CAUSES[0]
        console.line("All done (return value = 0).")
    except Exception as error:
        known = translated(error)
        code = known.exit_code if known else 1
        reason = str(known) if known else f"{type(error).__name__}: {error}"
        text = f"Error: {reason}" if known else traceback.format_exc()
        with contextlib.suppress(OSError):  # stderr may be a file on a full disk
            print(text, file=sys.stderr, flush=True)
        if folder:
            with contextlib.suppress(OSError):
                console.plain(text)
    write_result(
        folder, {"schema_version": SCHEMA_VERSION, "exit_code": code, "reason": reason, **result}
    )
    with contextlib.suppress(OSError):
        events.write("end", reason=reason, exit_code=code)
        events.close()
    return code


if __name__ == "__main__":
    sys.exit(main())
