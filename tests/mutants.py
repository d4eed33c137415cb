"""Damaged models in bundles with a good digest, each tried in a process of its own: `mutants.py ORDER COUNT` tells a JSON line.

This process has loaded everything and forks; it is what stands for the agent, and its end would end the count.
"""

import json
import os
import select
import signal
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import msgspec
import numpy as np
from bad_models import good, operated, tflite, weighty

from edge.bundle import write_bundle
from edge.updating import trial


def mutant(data: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(data)
    kind = rng.choice(5, p=(0.6, 0.1, 0.1, 0.1, 0.1))
    at = int(rng.integers(len(damaged)))
    length = int(rng.integers(1, 64))
    if kind == 0:
        for _ in range(rng.integers(1, 9)):
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
    elif kind == 1:
        damaged[at : at + length] = bytes(len(damaged[at : at + length]))
    elif kind == 2:
        del damaged[max(at, 16) :]
    elif kind == 3:
        damaged[at : at + length] = rng.bytes(len(damaged[at : at + length]))
    else:
        damaged[at:at] = rng.bytes(length)
    return bytes(damaged)


def main(order_file: Path, count: int) -> None:
    order = msgspec.json.decode(order_file.read_bytes(), type=trial.Order)
    import onnxruntime  # noqa: F401
    from ai_edge_litert.interpreter import Interpreter  # noqa: F401

    rng = np.random.default_rng(16)
    bases = [(good()[0], operated(weighty), "model.onnx"), (*tflite(1.0), "model.tflite")]
    found: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    peak = 0
    whole = ""
    for i in range(-1, count):
        manifest, members, member = bases[i % 2] if i >= 0 else bases[0]
        damaged = mutant(members[member], rng) if i >= 0 else members[member]
        write_bundle(Path(order.candidate), manifest, {**members, member: damaged})
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            trial._limit(order)
            result = trial.judge(order, at=lambda stage: None)
            os.write(writer, f"{result.verdict} {result.stage} {' '.join(result.reasons)[-60:]}".encode())
            os._exit(0)
        os.close(writer)
        ready, _, _ = select.select([reader], [], [], order.deadline_s)
        verdict, _, reason = (os.read(reader, 4096).decode() if ready else "late").partition(" ")
        os.close(reader)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        _, status, usage = os.wait4(pid, 0)
        if i < 0:
            whole = verdict
            continue
        peak = max(peak, usage.ru_maxrss * 1024)
        found[verdict or "died"] += 1
        reasons[f"{member} {reason.partition(' ')[0]}"] += 1
        if not verdict:
            code = os.waitstatus_to_exitcode(status)
            ends[signal.Signals(-code).name if code < 0 else f"exit {code}"] += 1
        if (i + 1) % 500 == 0 or i + 1 == count:
            tally = {name: found[name] for name in ("refused", "died", "accepted", "unknown", "late")}
            more = {"ends": dict(ends), "stages": dict(reasons), "whole": whole, "peak_bytes": peak}
            print(json.dumps({"tried": sum(found.values()), **tally, **more}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
