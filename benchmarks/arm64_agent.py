"""Runs on the emulated processor: frames in chunks, through what a device does with them, a mark before and after.

arm64_agent.py JOB.json    {"cases": [{"bundle": file, "frames": file, "chunks": [bytes, …], "before": chunks not counted}, …]}

From the bytes that were read to the events: decoder, windower, model, scorers, memory, smoothing, calibration, alarm, drift and
the sensor's health. Neither the reading itself, nor outbox and broker.
"""

import json
import os
import sys
from pathlib import Path

from edge.bundle import Bundle
from edge.config import StreamConfig
from edge.sensing.decoders import open_decoder


def main(job: Path) -> None:
    for case in json.loads(job.read_text())["cases"]:
        bundle = Bundle.open(Path(case["bundle"]))
        decoder = open_decoder(StreamConfig(port="/dev/null", clock="sensor"), bundle.channels, bundle.manifest.rate_hz)
        pipeline = bundle.pipeline()
        with Path(case["frames"]).open("rb") as frames:
            chunks = [frames.read(size) for size in case["chunks"]]
        for i, chunk in enumerate(chunks):
            if i == case["before"]:
                os.getppid()
            pipeline.judge(decoder.feed(chunk, 0))
        os.getppid()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
