"""The report as one HTML page that needs nothing else: no script, no font, no picture from anywhere.

Every figure of report.json is in it, written by `figure`. It follows the reader's light or dark, and prints.
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from edge.signal import Bool, Float64
from trainer.contamination import Contamination
from trainer.evaluate import Evaluation, Judged
from trainer.frame import Card, Cell, behind, cards, figure, plot, table, whole
from trainer.metrics import episodes
from trainer.promise import Promise
from trainer.report import Comparison, Drawn, Examination, Finding, Map, Points
from trainer.stress import Attack, Blame, Curve
from trainer.svg import Axis, Chart

BINS = 500
"""A plot of a long recording shows the lowest and the highest value of so many stretches."""


def render(found: Examination, drawn: Drawn) -> str:
    sections = [
        ("found", "What was found, and when", _found(found, drawn)),
        ("figures", "The figures of each recording", _figures(found.evaluation)),
        ("beside", "Beside simple methods", _beside(found.comparison)),
        ("promise", "Does it keep its promise?", _promise(found.promise)),
        ("blame", "Does it blame the right channel?", _blame(found.blame, found.blamed_rightly)),
        ("stress", "What sensors go through", _stress(found.stress)),
        ("faults", "If some of the recordings had been faulty", _contamination(found.contamination)),
        ("attacks", "If somebody wanted to fool it", _attacks(found.adversarial)),
        ("map", "What the model sees", _map(found.map, drawn.points)),
        ("about", "About this report", _about(found)),
    ]
    return whole(
        f"amiss: {found.name}, evaluated", f"{found.name}: what it found", _summary(found), cards(_cards(found)), sections
    )


def _summary(found: Examination) -> str:
    e = found.evaluation
    labelled = [one for one in e.recordings if one.anomalous is not None]
    total, detected = sum(one.episodes for one in labelled), sum(one.detected for one in labelled)
    false = sum(one.false_alarms for one in labelled)
    parts = [f"{_count(len(e.recordings), 'recording')} with {_count(total, 'labelled episode')}: {detected} found"]
    if e.delay_s is not None:
        parts.append(f"typically {_duration(e.delay_s)} after {'it' if detected == 1 else 'they'} began")
    parts.append(f"{_count(false, 'false alarm')} in {_duration(e.normal_h * 3600)} of normal running")
    return f"{', '.join(parts)}."


def _cards(found: Examination) -> list[Card]:
    e, promise, comparison = found.evaluation, found.promise, found.comparison
    labelled = [one for one in e.recordings if one.anomalous is not None]
    total, detected = sum(one.episodes for one in labelled), sum(one.detected for one in labelled)
    delay = "none found" if e.delay_s is None else _duration(e.delay_s)
    found_cards = [
        ("Episodes found", f"{detected} of {total}", "Labelled episodes during which an alert was up."),
        ("Typical delay", delay, "From the first labelled row to the alert: the median over the recordings."),
    ]
    if e.false_alarms_per_day is None or e.false_alarms_per_day_95 is None:
        found_cards.append(("False alarms a day", figure(None), "Nothing in these recordings is labelled as normal."))
    else:
        low, high = e.false_alarms_per_day_95
        found_cards.append(
            (
                "False alarms a day",
                _rough(e.false_alarms_per_day),
                f"Of normal running. Only {_duration(e.normal_h * 3600)} of it were seen, so that anything from "
                f"{_rough(low)} to {_rough(high)} is possible (95 % confidence).",
            )
        )
    found_cards += [
        (
            "Amiss told from normal: AUROC",
            figure(e.auroc),
            f"{_of_hundred(e.auroc)} a labelled moment scores higher than a normal one; 50 would be chance.",
        ),
        (
            "Clean alarms: AUC-PR",
            figure(e.auc_pr),
            "Share of what is flagged that is labelled, on average while the threshold is lowered until all is found; "
            "1 is best.",
        ),
        (
            "The same, forgiving: VUS-PR",
            figure(e.vus_pr),
            "Labels may be a little early or late. Methods are compared by this figure.",
        ),
    ]
    if comparison:
        better = ", ".join(comparison.beaten_by)
        found_cards.append(
            (
                "Simpler methods ahead of it",
                str(len(comparison.beaten_by)),
                f"Better in VUS-PR: {better}." if better else "None is better in VUS-PR.",
            )
        )
    if promise:
        found_cards.append(
            (
                "Its promise is",
                {"kept": "kept", "broken": "broken", "unknown": "not yet known"}[promise.verdict],
                f"At most {_share(promise.threshold.promised)} of normal time was to count as strange; "
                f"{_share(promise.threshold.measured)} did.",
            )
        )
    if found.blame:
        blamed = "none noticed" if found.blamed_rightly is None else _share(found.blamed_rightly)
        found_cards.append(("Right channel blamed", blamed, "Of the faults put into a known channel that were noticed."))
    return found_cards


# What was found, and when


def _found(found: Examination, drawn: Drawn) -> list[str]:
    lines = [
        "<p>Each plot has time to the right and the score upwards: the higher, the stranger. Above the broken line a "
        "window counts "
        "as strange; an alert (triangle) follows when strange windows come in a row. Shaded: labelled as amiss.</p>"
    ]
    for one in drawn.judged:
        own = [finding for finding in found.findings if finding.recording == one.figures.name]
        lines += [f"<h3>{escape(one.figures.name)}</h3>", *_timeline(one, own, drawn)]
        if own:
            rows = [
                [
                    finding.began,
                    finding.began_s,
                    finding.raised_s,
                    finding.ended_s if finding.ended_s is not None else "still on at the end",
                    finding.p_value,
                    ", ".join(finding.channels),
                    finding.judged,
                ]
                for finding in own
            ]
            head = ["began", "began, s", "alert, s", "over, s", "p-value", "blamed, most first", "judged"]
            lines.append(table(f"Alerts in {one.figures.name}, in seconds from its start", head, rows))
        else:
            lines.append("<p>No alert.</p>")
    return lines


def _timeline(one: Judged, own: Sequence[Finding], drawn: Drawn) -> list[str]:
    recording, verdicts, name = one.recording, one.verdicts, one.figures.name
    time_s = (recording.time_ns - recording.time_ns[0]) / 1e9
    unit, per = _time_unit(float(time_s[-1]))
    x = Axis(f"{unit} from {_moment(int(recording.time_ns[0]))}", 0.0, max(float(time_s[-1]) / per, 1e-9))
    end_s = (verdicts.end_ns - recording.time_ns[0]) / 1e9
    score = np.where(np.isfinite(verdicts.score), verdicts.score, np.nan).astype(np.float64)
    threshold = drawn.bundle.head.calibrator.score_at(drawn.bundle.pipeline().policy.p_value)
    low, high = float(np.nanmin(score, initial=0.0)), float(np.nanmax(score, initial=max(threshold, 1.0)))
    y = Axis("score", low - 0.05 * (high - low), high + 0.05 * (high - low))
    labelled = _stretches(recording.label, time_s)
    marks = [finding.raised_s / per for finding in own]
    said = f"{_count(len(own), 'alert')}, {_count(len(labelled), 'labelled stretch', 'labelled stretches')}."
    upper = Chart(f"Score of {name} over time", said, x, y)
    gap_s = 1.5 * drawn.bundle.manifest.hop / drawn.bundle.manifest.rate_hz
    for a, b in labelled:
        upper.span(a / per, b / per, "label", "labelled as amiss")
    px, py = _thinned(end_s / per, score, np.diff(end_s, prepend=end_s[0]) > gap_s)
    upper.line(px, py, "thin", "score")
    upper.rule(threshold, "limit", "threshold")
    for mark in marks:
        upper.mark(mark, "bad", "alert")
    channel = next((finding.channels[0] for finding in own if finding.channels), recording.channels[0])
    at = recording.channels.index(channel)
    values = recording.x[at].astype(np.float64)
    bottom, top = float(np.nanmin(values)), float(np.nanmax(values))
    margin = max((top - bottom) * 0.05, abs(top) * 1e-6, 1e-9)
    measured_in = recording.units.get(channel) or next(
        (spec.unit for spec in drawn.bundle.manifest.channels if spec.name == channel), ""
    )
    y = Axis(f"{channel} [{measured_in}]" if measured_in else channel, bottom - margin, top + margin)
    why = "the channel with most of the blame in the first alert" if own else "the first channel"
    lower = Chart(f"{channel} in {name} over time", f"It is {why}.", x, y, height=170)
    for a, b in labelled:
        lower.span(a / per, b / per, "label")
    px, py = _thinned(time_s / per, values, np.zeros(len(values), bool))
    lower.line(px, py, "thin")
    for mark in marks:
        lower.mark(mark, "bad")
    return [plot(upper, ""), plot(lower, f"{channel}: {why}.")]


def _thinned(x: Float64, y: Float64, broken: Bool) -> tuple[Float64, Float64]:
    """Lowest and highest value of each of `BINS` stretches, in the order they came; NaN before what is `broken` off."""
    x, y = np.insert(x, np.flatnonzero(broken), np.nan), np.insert(y, np.flatnonzero(broken), np.nan)
    if len(x) <= 2 * BINS:
        return x, y
    keep: list[int] = []
    for part in np.array_split(np.arange(len(x)), BINS):
        known = part[np.isfinite(y[part])]
        if len(known):
            keep += sorted({int(known[y[known].argmin()]), int(known[y[known].argmax()])})
        if len(known) < len(part):
            keep.append(int(part[~np.isfinite(y[part])][0]))
    keep.sort()
    return x[keep], y[keep]


def _stretches(label: "np.ndarray | None", time_s: Float64) -> list[tuple[float, float]]:
    return [] if label is None else [(float(time_s[a]), float(time_s[b])) for a, b in episodes(label)]


# Figures


def _figures(e: Evaluation) -> list[str]:
    head = [
        "recording",
        "rows",
        "share labelled",
        "AUROC",
        "AUC-PR",
        "VUS-PR",
        "found",
        "episodes",
        "delay, s",
        "false alarms",
        "normal, s",
    ]
    rows: list[list[Cell]] = [
        [
            f.name,
            f.rows,
            f.anomalous,
            f.auroc,
            f.auc_pr,
            f.vus_pr,
            f.detected,
            f.episodes,
            f.delay_s,
            f.false_alarms,
            f.normal_s,
        ]
        for f in e.recordings
    ]
    rows.append(["mean", None, None, e.auroc, e.auc_pr, e.vus_pr, None, None, e.delay_s, None, None])
    return [
        "<p>One row for each recording. None of the figures is point-adjusted: a moment that was missed counts as missed, "
        "though "
        "its neighbour was found. Delay: the median over the episodes of a recording, and over the recordings.</p>",
        table("Figures of each recording, and their means", head, rows, ours=len(rows) - 1),
    ]


def _beside(found: Comparison | None) -> list[str]:
    if found is None:
        return ["<p>Not measured: see the notes at the end.</p>"]
    ours = found.methods[0]
    if found.beaten_by:
        said = (
            f"Better than this bundle, by VUS-PR: {', '.join(found.beaten_by)}. What is simpler and better should be preferred."
        )
    else:
        said = "By VUS-PR, the figure to compare by, none of them is better than this bundle."
    rows: list[list[Cell]] = [[one.name, one.auroc, one.auc_pr, one.vus_pr] for one in found.methods]
    head = ["method", "AUROC", "AUC-PR", "VUS-PR"]
    caption = f"Means over {_count(found.recordings, 'recording')}, every method judged on the same rows"
    return [
        "<p>A model has to be better than what takes five lines of code, and than its own network before it learned "
        "anything.</p>",
        f'<p class="verdict {"broken" if found.beaten_by else "kept"}">{escape(said)}</p>',
        table(caption, head, rows, ours=rows.index([ours.name, ours.auroc, ours.auc_pr, ours.vus_pr])),
    ]


# The promise


def _promise(p: Promise | None) -> list[str]:
    if p is None:
        return ["<p>Not measured: see the notes at the end.</p>"]
    t = p.threshold
    said = {
        "kept": f"Kept. It promised to count at most {_share(t.promised)} of normal time as strange, and counted "
        f"{_share(t.measured)}.",
        "broken": f"Broken. It promised to count at most {_share(t.promised)} of normal time as strange, and counted "
        f"{_share(t.measured)}, more than chance explains. Commission it on this machine (<code>amiss commission</code>), "
        "or train "
        "it on recordings of everything that is normal here.",
        "unknown": f"Too few data to tell. It promised to count at most {_share(t.promised)} of normal time as strange, "
        "and counted "
        f"{_share(t.measured)}; from {_share(t.low)} to {_share(t.high)} is possible.",
    }[p.verdict]
    if p.more_hours is not None:
        said += f" About {_duration(p.more_hours * 3600)} more of normal running are needed to tell."
    if p.calibration_more_hours is not None:
        said += (
            f" It was calibrated on only {p.calibration_windows} windows: before p = 0.001 can be promised at all, "
            f"{_duration(p.calibration_more_hours * 3600)} more of normal running must be held back when it is calibrated."
        )
    promised = [point.promised for point in p.curve]
    least = min(promised) / 2
    x, y = Axis("promised share (α)", min(promised), max(promised), log=True), Axis("measured share", least, 1.0, log=True)
    chart = Chart("Promised and measured share of strange windows", "Below the diagonal the promise is kept.", x, y, height=320)
    chart.band(promised, [q.low for q in p.curve], [q.high for q in p.curve], "a", "95 % confidence")
    chart.line([min(promised), max(promised)], [min(promised), max(promised)], "soft", "as promised")
    chart.line(promised, [q.measured if q.measured > 0 else math.nan for q in p.curve], "a", "measured", dots=True)
    curve: list[list[Cell]] = [[q.promised, q.measured, q.low, q.high] for q in p.curve]
    facts: list[list[Cell]] = [
        ["windows of normal running", p.windows],
        ["independent windows that they are worth", p.independent],
        ["hours", p.hours],
        ["promised at the threshold", t.promised],
        ["measured at the threshold", t.measured],
        ["… at least", t.low],
        ["… at most", t.high],
        ["more hours needed for a verdict", p.more_hours],
        ["windows that it was calibrated on", p.calibration_windows],
        ["more hours to calibrate on", p.calibration_more_hours],
        ["alerts", p.alerts],
        ["alerts a day", p.alerts_per_day],
        ["… at least", p.alerts_per_day_low],
        ["… at most", p.alerts_per_day_high],
    ]
    return [
        "<p>To each window the bundle gives a p-value: how rare a score as high as this is while the machine runs normally. "
        "Of normal running that it has not learned from, windows with p ≤ 0.01 may take at most a hundredth of the time, and "
        "so on for every share α. Neighbouring windows share samples and strange moments come in clusters, so the windows "
        "are worth fewer independent ones; the confidence counts those.</p>",
        f'<p class="verdict {p.verdict}">{said}</p>',
        plot(
            chart, "Below the diagonal: fewer false alarms than promised. The band above it altogether: the promise is broken."
        ),
        table(
            "Normal running that it has not learned from; between “at least” and “at most” with 95 % confidence",
            ["", "value"],
            facts,
        ),
        behind(table("The curve", ["promised", "measured", "at least", "at most"], curve)),
    ]


# Blame, stress, attacks


def _blame(found: Sequence[Blame], overall: float | None) -> list[str]:
    if not found:
        return ["<p>Not measured: see the notes at the end.</p>"]
    rows: list[list[Cell]] = [[one.fault.replace("_", " "), one.windows, one.noticed, one.right] for one in found]
    rows.append(["all", sum(one.windows for one in found), None, overall])
    return [
        "<p>A fault was put into one known channel of windows that were not strange before, the channels in turn. Of those "
        "that were noticed, in how many does that channel get most of the blame? What changes only how channels go together "
        "(warp, swap) has no single culprit, and is noticed seldom.</p>",
        table(
            "Faults in a known channel",
            ["fault", "windows", "share noticed", "of those blamed rightly"],
            rows,
            ours=len(rows) - 1,
        ),
    ]


def _stress(found: Sequence[Curve]) -> list[str]:
    if not found:
        return ["<p>Not measured: see the notes at the end.</p>"]
    lines = [
        "<p>Each trouble was put into normal windows and into labelled ones, weaker and stronger. <b>Alarm share</b>: "
        "normal windows "
        "with the trouble that count as strange. <b>Told apart</b>: does the trouble raise the score at all? 0.5 is "
        "unnoticed, 1 "
        "always noticed. <b>Still found</b>: are labelled anomalies still told from normal running, when both have the "
        "trouble? "
        "A curve that stays flat is a sensor problem that it bears. Strengths are not to scale.</p>",
        '<div class="many">',
    ]
    for curve in found:
        at = np.arange(len(curve.points), dtype=np.float64)
        x = Axis(curve.unit, 0.0, float(max(len(at) - 1, 1)), names=tuple(figure(point.strength) for point in curve.points))
        chart = Chart(f"Stress: {curve.name}", "The table below it has the figures.", x, Axis("share", 0.0, 1.0), 230, 480)
        for kind, name, values in (
            ("a", "alarm share", [point.alarm_share for point in curve.points]),
            ("b", "told apart", [point.told_apart for point in curve.points]),
            ("c", "still found", [point.still_found for point in curve.points]),
        ):
            if any(value is not None for value in values):
                chart.line(at, [math.nan if value is None else value for value in values], kind, name, dots=True)
        rows: list[list[Cell]] = [
            [point.strength, point.alarm_share, point.told_apart, point.still_found, point.scored] for point in curve.points
        ]
        head = ["strength", "alarm share", "told apart", "still found", "scored"]
        figures = table(f"{curve.name}: {curve.unit}", head, rows)
        lines += ["<div>", f"<h3>{curve.name}</h3>", plot(chart, ""), behind(figures), "</div>"]
    return [*lines, "</div>"]


def _contamination(found: Contamination | None) -> list[str]:
    if found is None:
        return ["<p>Not measured: it needs <code>--run</code>, and normal running; see the notes at the end.</p>"]
    ways = {"nothing trimmed": ("ac", [(one.share, one.plain) for one in found.points])}
    ways[f"{_share(found.trim)} trimmed"] = ("bd", [(one.share, one.trimmed) for one in found.points])
    known = [v for _, own in ways.values() for _, one in own for v in (one.injected, one.labelled) if v is not None]
    x = Axis("faulty windows among those that it is fitted to, %", 0.0, 100 * max(point.share for point in found.points))
    chart = Chart(
        "What faults among the recordings cost",
        "The table below it has the figures.",
        x,
        Axis("told from normal (AUROC)", min(0.5, math.floor(10 * min(known)) / 10), 1.0),
        300,
    )
    rows: list[list[Cell]] = []
    for how, (kinds, own) in ways.items():
        shares = [100 * share for share, _ in own]
        chart.line(shares, [one.injected for _, one in own], kinds[0], f"faults put in, {how}", dots=True)
        labelled = [math.nan if one.labelled is None else one.labelled for _, one in own]
        if not all(math.isnan(value) for value in labelled):
            chart.line(shares, labelled, kinds[1], f"labelled, {how}", dots=True)
        rows += [[how, share, one.left, one.injected, one.labelled, one.noticed] for share, one in own]
    first, some = found.points[0], found.points[min(1, len(found.points) - 1)]
    said = (
        f"Of the faults put in, {_share(first.plain.noticed)} are noticed when {_share(first.share)} of the recordings are "
        f"faulty, and {_share(some.plain.noticed)} when {_share(some.share)} are ({_share(some.trimmed.noticed)} trimmed)."
    )
    head = ["", "share faulty", "of those kept", "faults put in: AUROC", "labelled: AUROC", "faults noticed"]
    return [
        "<p>Who records for days cannot know that nothing was amiss. So faults of every kind were put into a share of the "
        "windows that this bundle was fitted to, and it was fitted again: to all of them, and to what is left when those that "
        "lie apart from the others are left out (<code>training.trim</code>). What was fitted is all that stands after the "
        "encoder; the encoder itself stayed as it is. Then it was asked to find other faults, and the labelled anomalies. "
        "Where the curve stays flat, strange still scores higher than normal. What calibrates holds as many faults and is "
        "never trimmed: they make faults ordinary, and fewer are noticed whatever the curve says.</p>",
        f'<p class="verdict">{escape(said)}</p>',
        plot(chart, "1 finds everything, 0.5 is chance. Means over three draws of which windows are faulty."),
        table(
            "Noticed: share of the faults put in that have p at or below the threshold of the alerts",
            head,
            rows,
        ),
    ]


def _attacks(found: Sequence[Attack]) -> list[str]:
    if not found:
        return ["<p>Not measured: it needs <code>--run</code>, and normal running.</p>"]
    lines = [
        "<p>Windows were changed on purpose, by at most so many spreads (how far a channel usually moves in a window), in the "
        "direction that changes the score most: in one step (FGSM) or in ten (PGD). The gradient is that of the float "
        "model; the "
        "int8 model was given the same windows. Random noise of the same size is the control.</p>",
        '<div class="many">',
    ]
    titles = {"raise": "Making normal windows alarm", "hide": "Hiding labelled anomalies"}
    kinds = {"random": "c", "FGSM": "b", "PGD": "a"}
    for aim, title in titles.items():
        for model in dict.fromkeys(one.model for one in found):
            own = [one for one in found if one.aim == aim and one.model == model]
            if not own:
                continue
            x = Axis("largest change of a sample, in spreads", 0.0, max(point.strength for point in own[0].points))
            chart = Chart(
                f"{title}, {model}", "The table below it has the figures.", x, Axis("share that alarms", 0.0, 1.0), 230, 480
            )
            for one in own:
                strengths, shares = [p.strength for p in one.points], [p.alarm_share for p in one.points]
                chart.line(strengths, shares, kinds[one.method], one.method, dots=True)
            rows: list[list[Cell]] = [[one.method, p.strength, p.alarm_share, p.told_apart] for one in own for p in one.points]
            figures = table(f"{title}, {model}", ["method", "strength", "alarm share", "told apart from normal"], rows)
            lines += ["<div>", f"<h3>{title}, {model}</h3>", plot(chart, ""), behind(figures), "</div>"]
    return [*lines, "</div>"]


def _map(found: Map | None, points: Points | None) -> list[str]:
    if found is None or points is None:
        return ["<p>Not measured: see the notes at the end.</p>"]
    both = np.concatenate([points.normal, points.anomalous]) if len(points.anomalous) else points.normal
    # One window far out would press all others into a dot; it lies on the edge instead.
    low, high = np.quantile(both, 0.01, axis=0), np.quantile(both, 0.99, axis=0)
    margin = 0.08 * np.maximum(high - low, 1e-6)
    axes = [Axis(f"direction {i + 1}", float((low - margin)[i]), float((high + margin)[i])) for i in (0, 1)]
    first = Chart("Map of windows by label", "Labelled windows beside normal ones.", axes[0], axes[1], 340, 480)
    first.dots(points.normal[:, 0], points.normal[:, 1], "faint", "normal", 2.5)
    if len(points.anomalous):
        first.dots(points.anomalous[:, 0], points.anomalous[:, 1], "strange", "labelled as amiss", 2.5)
    second = Chart("Map of normal windows by time", "The thirds of the recording.", axes[0], axes[1], 340, 480)
    for kind, key, part in zip(
        "acd", ("first third", "second third", "last third"), np.array_split(points.normal, 3), strict=True
    ):
        if len(part):
            second.dots(part[:, 0], part[:, 1], kind, key, 2.5)
    facts: list[list[Cell]] = [
        ["share of the spread of normal windows along direction 1", found.explained[0]],
        ["… along direction 2", found.explained[1]],
        ["normal windows", found.normal],
        ["labelled windows", found.anomalous],
    ]
    return [
        "<p>Each dot is a window, laid out as the model sees it, in the two directions in which normal windows differ "
        "most. Labelled "
        "windows away from the cloud are easy to find; inside it they may still differ in other directions. Thirds of the "
        "time that "
        "lie apart mean that normal itself wanders.</p>",
        '<div class="many">',
        plot(first, "Normal and labelled windows."),
        plot(second, "Normal windows only: does normal wander?"),
        "</div>",
        table("The map", ["", "value"], facts),
    ]


def _about(found: Examination) -> list[str]:
    e = found.evaluation
    low, high = e.false_alarms_per_day_95 or (None, None)
    facts: list[list[Cell]] = [
        ["bundle", f"{found.name} {found.version}"],
        ["digest (SHA-256)", e.bundle],
        ["precision", e.precision],
        ["channels", ", ".join(found.channels)],
        ["window, samples", found.window],
        ["hop, samples", found.hop],
        ["samples per second", found.rate_hz],
        ["threshold of the alerts, p ≤", e.p_value],
        ["hours of labelled normal running", e.normal_h],
        ["share of the labelled episodes that were found", e.event_recall],
        ["false alarms a day", e.false_alarms_per_day],
        ["false alarms a day, with 95 % confidence at least", low],
        ["… at most", high],
        ["windows for the curve of faulty recordings", found.contamination.windows if found.contamination else None],
        ["… of which were trimmed", found.contamination.trim if found.contamination else None],
        ["recordings compared with simple methods", found.comparison.recordings if found.comparison else None],
        ["format of report.json", found.format],
    ]
    notes = [f"<li>{escape(note)}</li>" for note in found.notes]
    return [
        "<p>What is measured is the bundle as it ships, through the code that runs on the device. Labels were used to "
        "judge it and "
        "for nothing else but telling normal rows where no normal recordings were given.</p>",
        table("The bundle", ["", "value"], facts),
        *(["<h3>Notes</h3>", "<ul>", *notes, "</ul>"] if notes else []),
        "<p>The same figures are in <code>report.json</code>.</p>",
    ]


# Pieces


def _count(n: int, one: str, many: str = "") -> str:
    return f"{n} {one if n == 1 else many or one + 's'}"


def _rough(value: float) -> str:
    return f"{float(f'{value:.3g}'):.10g}"


def _share(value: float) -> str:
    return f"{value * 100:.3g} %"


def _of_hundred(value: float | None) -> str:
    return "How often" if value is None else f"In {value * 100:.0f} of 100 cases"


def _time_unit(seconds: float) -> tuple[str, float]:
    for unit, per in (("days", 86400.0), ("hours", 3600.0), ("minutes", 60.0)):
        if seconds > 3 * per:
            return unit, per
    return "seconds", 1.0


def _duration(seconds: float) -> str:
    unit, per = _time_unit(seconds)
    return f"{seconds / per:.3g} {unit}"


def _moment(time_ns: int) -> str:
    from edge.sensing.recordings import format_time

    return f"{format_time(time_ns)[:19].replace('T', ' ')} UTC"
