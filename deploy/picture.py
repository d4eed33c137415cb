"""The picture at the end of a demo: signal, score, threshold and alert on one time axis."""

from pathlib import Path
from typing import Any

import numpy as np

from edge.bundle import Bundle
from edge.pipeline import Verdicts
from edge.sensing.recordings import Recording


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
        axis.plot(seconds(recording.time_ns), recording.x[recording.channels.index(name)], linewidth=0.6, color="#33608c")
        axis.set_ylabel(f"{name}\n[{units.get(name) or '–'}]")
    score = axes[-1]
    # The score that the threshold p-value stands for is a line that people can read off.
    score.plot(seconds(verdicts.end_ns), verdicts.score, linewidth=1.0, color="#222222", label="score")
    p_value = bundle.pipeline().policy.p_value
    threshold = bundle.head.calibrator.score_at(p_value)
    score.axhline(threshold, color="#c4472c", linestyle="--", linewidth=1, label=f"threshold, p = {p_value:.2g}")
    score.set_ylabel("score\n(higher is stranger)")
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
            axis.axvline(seconds(alert["stream_ns"]), color="#c4472c", linewidth=1.4)
    for alert in alerts[:1]:
        score.annotate(
            f"alert: {', '.join(shown[:2])}\np {alert['p_value']:.2g}",
            (float(seconds(alert["stream_ns"])), 0.04),  # below the score, which is high here
            xycoords=("data", "axes fraction"),
            xytext=(6, 0),
            textcoords="offset points",
            color="#c4472c",
        )
    if onset_ns is not None:
        axes[0].annotate("fault begins", (float(seconds(onset_ns)), 1.02), xycoords=("data", "axes fraction"), fontsize=9)
    score.legend(loc="upper left", frameon=False)
    figure.suptitle(f"amiss · {bundle.manifest.name} · model {bundle.digest[:12]}")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
