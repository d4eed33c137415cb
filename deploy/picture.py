"""The pictures at the end of a demo: signal, score, threshold, what went wrong and what was told, on one time axis."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle import Bundle
from edge.pipeline import Verdicts
from edge.sensing.recordings import Recording
from edge.signal import Bool

_SIGNAL, _ALERT, _DONE, _TOLD = "#33608c", "#c4472c", "#8a97a8", "#d98a5b"


def draw(
    path: Path,
    recording: Recording,
    verdicts: Verdicts,
    bundle: Bundle,
    alerts: list[dict[str, Any]],
    onset_ns: int | None,
) -> None:
    """Write a PNG. `alerts` are the `anomaly_started` events as they came over MQTT."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    start_ns = int(recording.time_ns[0])

    def seconds(time_ns: Any) -> Any:
        return (np.asarray(time_ns) - start_ns) / 1e9

    blamed = [c["channel"] for c in alerts[0]["channels"]] if alerts else list(recording.channels)
    shown = blamed[:3]
    figure, axes = pyplot.subplots(
        len(shown) + 1, 1, figsize=(11, 2 + 1.7 * (len(shown) + 1)), sharex=True, constrained_layout=True
    )
    units = {channel.name: channel.unit for channel in bundle.manifest.channels}
    for axis, name in zip(axes, shown, strict=False):
        axis.plot(seconds(recording.time_ns), recording.x[recording.channels.index(name)], linewidth=0.6, color=_SIGNAL)
        axis.set_ylabel(f"{name}\n[{units.get(name) or '–'}]")
    score = axes[-1]
    score.plot(seconds(verdicts.end_ns), verdicts.score, linewidth=1.0, color="#222222", label="score")
    _threshold(score, bundle)
    score.set_xlabel("seconds")
    if recording.label is not None and recording.label.any():
        edges = np.flatnonzero(np.diff(np.concatenate([[0], recording.label, [0]])))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            for axis in axes:
                axis.axvspan(
                    seconds(recording.time_ns[begin]),
                    seconds(recording.time_ns[end - 1]),
                    color="#f3c6a5",
                    alpha=0.35,
                    linewidth=0,
                )
    for alert in alerts:
        for axis in axes:
            axis.axvline(seconds(alert["stream_ns"]), color=_ALERT, linewidth=1.4)
    for alert in alerts[:1]:
        score.annotate(
            f"alert: {', '.join(shown[:2])}\np {alert['p_value']:.2g}",
            (float(seconds(alert["stream_ns"])), 0.04),  # below the score, which is high here
            xycoords=("data", "axes fraction"),
            xytext=(6, 0),
            textcoords="offset points",
            color=_ALERT,
        )
    if onset_ns is not None:
        axes[0].annotate("fault begins", (float(seconds(onset_ns)), 1.02), xycoords=("data", "axes fraction"), fontsize=9)
    score.legend(loc="upper left", frameon=False)
    figure.suptitle(f"amiss · {bundle.manifest.name} · model {bundle.digest[:12]}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw_chaos(
    path: Path,
    recording: Recording,
    plugged: Bool,
    bundle: Bundle,
    *,
    states: list[tuple[float, dict[str, Any]]],
    lanes: Mapping[str, list[tuple[float, float]]],
    moments: list[tuple[float, str, str]],
) -> None:
    """Write a PNG. Seconds count from the first sample.

    `plugged` (n,): which samples went to a port; `states` as they came over MQTT; `lanes`: what lasted from when to when, by
    name, in the order of drawing; `moments`: when, type and reason of every event.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    seconds = (recording.time_ns - recording.time_ns[0]) / 1e9
    shown = recording.channels[:2]
    figure, axes = pyplot.subplots(
        len(shown) + 2,
        1,
        figsize=(14, 10),
        sharex=True,
        constrained_layout=True,
        gridspec_kw={"height_ratios": [1] * len(shown) + [1.4, 1.8]},
    )
    for axis, name in zip(axes, shown, strict=False):
        x = recording.x[recording.channels.index(name)]
        axis.plot(seconds, np.where(plugged, x, np.nan), linewidth=0.4, color=_SIGNAL)
        axis.set_ylabel(f"{name}\n[{recording.units.get(name) or '–'}]")
    score, lane = axes[-2:]
    line = _threshold(score, bundle)
    if states:
        when = np.array([at for at, _ in states])
        told = np.array([state["score"] for _, state in states])
        top = 4 * line  # a sensor that sticks is so much stranger that nothing else could be seen
        beyond = told > top
        score.plot(when[~beyond], told[~beyond], ".", markersize=4, color="#222222", label="score, over MQTT")
        score.plot(when[beyond], np.full(beyond.sum(), top), "^", markersize=4, color="#777777", label="beyond")
        score.set_ylim(min(-line, told.min()), 1.1 * top)
    score.legend(loc="upper right", frameon=False, ncols=3)
    for row, (name, spans) in enumerate(lanes.items()):
        colour = _TOLD if name.startswith("told") else _DONE
        lane.broken_barh([(begin, end - begin) for begin, end in spans], (row - 0.35, 0.7), color=colour, alpha=0.85)
    lane.set_yticks(range(len(lanes)), list(lanes))
    lane.set_ylim(len(lanes) - 0.5, -2.4)
    for number, (at_s, kind, reason) in enumerate(moments):
        colour = _ALERT if kind == "anomaly_started" else "#777777"
        for axis in axes:
            axis.axvline(at_s, color=colour, linewidth=0.9, linestyle="-" if kind == "anomaly_started" else ":")
        name = {"anomaly_started": "ALERT", "anomaly_ended": "over"}.get(kind, kind.replace("_", " "))
        label = f"{name} ({reason})" if reason else name
        lane.text(at_s, -2.2 + 0.5 * (number % 3), f" {label}", color=colour, fontsize=8, va="top")
    lane.set_xlabel("seconds")
    figure.suptitle(f"amiss · what went wrong, and what was told · model {bundle.digest[:12]}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _threshold(score: Any, bundle: Bundle) -> float:
    """The score that the threshold p-value stands for is a line that people can read off."""
    p_value = bundle.pipeline().policy.p_value
    at = bundle.head.calibrator.score_at(p_value)
    score.axhline(at, color=_ALERT, linestyle="--", linewidth=1, label=f"threshold, p = {p_value:.2g}")
    score.set_ylabel("score\n(higher is stranger)")
    return at
