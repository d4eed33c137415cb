"""Run the model on new samples alone: what it needs of the past is carried from call to call.

The windowed graph computes a whole window for every hop: at a hop of one sample, the same convolutions N times over. This one
gives the same outputs at the price of one step a sample, whatever the hop (docs/adr/0010-streaming.md).
"""

from itertools import pairwise
from typing import Any

import numpy as np

from edge.errors import BundleError
from edge.scoring.backends import OUTPUTS, Outputs, onnx_session
from edge.signal import Float32, Windows

MOST = 64
"""Samples in one call, so that a burst never needs more memory than that."""
_KINDS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class StreamGraph:
    """`stream.onnx`, which any number of streams share (`quantize.stream` says what it gives)."""

    def __init__(self, model: bytes) -> None:
        self.session, _ = onnx_session(model)
        inputs = {str(entry.name): entry for entry in self.session.get_inputs()}
        states = [name for name in inputs if name.startswith("state_")]
        self.outputs = [*OUTPUTS, *(f"next_{name.removeprefix('state_')}" for name in states)]
        found = {*inputs, *(entry.name for entry in self.session.get_outputs())}
        if missing := {"samples", *self.outputs} - found:
            raise BundleError(f"the model with state lacks {', '.join(sorted(missing))}")
        sizes = self.session.get_modelmeta().custom_metadata_map
        try:
            self.window, self.steps, self.stride = (int(sizes[name]) for name in ("window", "steps", "stride"))
            self.trace_each, self.map_each = int(sizes["trace_each"]), int(sizes["map_each"])
            self.blank = {name: np.zeros(inputs[name].shape, _KINDS[inputs[name].type]) for name in states}
        except (KeyError, ValueError, TypeError) as error:
            raise BundleError(f"the model with state does not say what it carries: {error}") from None

    def start(self, hop: int) -> "Stream":
        """For one stream whose windows begin `hop` samples apart."""
        return Stream(self, hop)


class Stream:
    """What one stream carries from call to call."""

    def __init__(self, graph: StreamGraph, hop: int) -> None:
        if not 0 < hop <= graph.window:
            raise ValueError(f"windows of {graph.window} samples every {hop} leave samples out; a stream takes every one")
        self._graph, self._hop = graph, hop
        self._state: dict[str, Any] = graph.blank
        self._trace = _Past(graph.window, graph.trace_each, 1)
        self._map = _Past(graph.steps, graph.map_each, graph.stride)

    def run(self, windows: Windows) -> Outputs:
        """What the windowed graph gives for the same windows. They come in order, and none may be left out."""
        edges = sorted({0, *np.flatnonzero(windows.fresh).tolist(), len(windows)})
        parts = [part for start, stop in pairwise(edges) for part in self._row(windows.x[start:stop], windows.fresh[start])]
        return parts[0] if len(parts) == 1 else Outputs.concatenate(parts)

    def _row(self, x: Float32, fresh: bool) -> list[Outputs]:
        """Windows (B, C, N) that follow each other without a gap, and the one before them unless they are fresh."""
        channels, window = x.shape[1:]
        news = x[:, :, window - self._hop :]
        if fresh:
            # What is carried is of no consequence once a whole window has gone by; blank, it is the same every time.
            self._state = self._graph.blank
            samples = np.concatenate([x[0], news[1:].transpose(1, 0, 2).reshape(channels, -1)], axis=1)
        else:
            samples = news.transpose(1, 0, 2).reshape(channels, -1)
        first = window - 1 if fresh else self._hop - 1  # the sample that completes the first of them
        parts = []
        for at in range(0, samples.shape[1], MOST):
            rows = slice(first - at if at <= first else (first - at) % self._hop, None, self._hop)
            found = self._call(samples[:, at : at + MOST], rows)
            if len(found):
                parts.append(found)
        return parts

    def _call(self, samples: Float32, rows: slice) -> Outputs:
        feeds = {"samples": np.ascontiguousarray(samples)[None], **self._state}
        embedding, residual, level, spectrum, trace, steps, *carried = self._graph.session.run(self._graph.outputs, feeds)
        self._state = dict(zip(self._graph.blank, carried, strict=True))
        return Outputs(
            embedding[rows],
            residual[rows],
            level[rows],
            spectrum[rows],
            self._trace.feed(trace[0], rows),
            self._map.feed(steps[0, :, 0], rows),
        )


class _Past:
    """Columns of the past, `pitch` samples apart, averaged `each` at a time: what windows share, and no window owns."""

    def __init__(self, count: int, each: int, pitch: int) -> None:
        self._each, self._pitch, self._columns = each, pitch, count // each
        self._span = (self._columns - 1) * each * pitch
        self._raw: Float32 | None = None
        self._means: Float32
        self._used = 0

    def feed(self, new: Float32, rows: slice) -> Float32:
        """New columns (F, n) → (B, F, M) for those of them that are `rows`, oldest first. A view where nothing is averaged."""
        size, n = new.shape
        if self._raw is None:
            self._raw = np.zeros((size, (self._each - 1) * self._pitch), np.float32)
            self._means = np.zeros((size, self._span), np.float32)
            self._used = self._span
        if self._each > 1:
            raw = np.concatenate([self._raw, new], axis=1)
            self._raw = raw[:, n:]
            new = raw[:, :n].copy()
            for i in range(1, self._each):
                new += raw[:, i * self._pitch : i * self._pitch + n]
            new *= np.float32(1 / self._each)
        if self._used + n > self._means.shape[1]:
            # Replaced and not written over: what was handed out still looks at the old one.
            means = np.empty((size, 4 * self._span + 8 * MOST), np.float32)
            means[:, : self._span] = self._means[:, self._used - self._span : self._used]
            self._means, self._used = means, self._span
        self._means[:, self._used : self._used + n] = new
        start, _, hop = rows.indices(n)
        count = max(0, -(-(n - start) // hop))
        row, column = self._means.strides
        found: Float32 = np.ndarray(
            (count, size, self._columns),
            np.float32,
            self._means,
            (self._used + start - self._span) * column if count else 0,
            (hop * column, row, self._each * self._pitch * column),
        )
        self._used += n
        return found


def open_stream(model: bytes) -> StreamGraph:
    """For the bytes of `stream.onnx`, whose SHA-256 the caller has checked. Raises `BundleError`."""
    return StreamGraph(model)
