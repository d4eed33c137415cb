"""What compression gained and what it cost, as one page that needs nothing else. Every figure of quantize.json is in it."""

from collections.abc import Sequence
from html import escape

import numpy as np

from edge.signal import Float32
from quantize.cost import TOGETHER
from quantize.parity import Matrix, Parity, Row, Scores
from quantize.report import Compression, Drawn, Quality
from trainer.frame import Card, Cell, behind, cards, plot, table, whole
from trainer.svg import Axis, Chart

BINS = 40
CALLED = {"float32": "float", "int8": "int8"}
GROUPS = {"normal": "normal", "anomalous": "with a fault put in", "stress": "from a sensor in trouble"}


def render(found: Compression, drawn: Drawn) -> str:
    sections = [
        ("ships", "What ships, and why", _ships(found)),
        ("costs", "What a window costs", _costs(found)),
        ("finds", "Does it still find what it found?", _finds(found, drawn)),
        ("trained", "Beside what was trained", _trained(found)),
        ("float", "int8 beside float", _beside_float(found)),
        ("pruning", "What was taken away first", _pruning(found)),
        ("refused", "What was refused, and why", _refused(found)),
        ("about", "About this report", _about(found)),
    ]
    return whole(
        f"amiss: {found.name}, compressed",
        f"{found.name}: how it became small",
        _summary(found),
        cards(_cards(found)),
        sections,
    )


def _summary(found: Compression) -> str:
    result = found.quantized
    board = f"Made for {escape(result.target)}. " if result.target else ""
    if result.precision == "int8":
        return f"{board}The model ships in int8: 8-bit whole numbers in place of 32-bit fractions."
    return f"{board}The model ships in float, with numbers as it was trained with: {escape(result.reason)}."


def _cards(found: Compression) -> list[Card]:
    result, parity = found.quantized, found.quantized.parity
    shipped = [one for one in found.costs if one.precision == result.precision]
    whole_model = next((one for one in found.costs if one.precision == "float32"), None)
    first = next(iter(shipped), None)
    known = [
        (
            "Size of what ships",
            _kb(result.model_bytes),
            f"All models in it. The bundle around it, with scorer, calibration and self-test: {_kb(result.bundle_bytes)}.",
        )
    ]
    if first and whole_model and first is not whole_model:
        smaller = whole_model.bytes / max(first.bytes, 1)
        known.append(("Smaller than float", f"{smaller:.1f} times", f"{_kb(first.bytes)} instead of {_kb(whole_model.bytes)}."))
    if first and whole_model:
        beside = f" In float: {whole_model.one_us:.0f} µs." if first is not whole_model else ""
        text = f"The median under {first.runtime}, on one thread of the machine that made it.{beside}"
        known.append(("Time for one window", f"{first.one_us:.0f} µs", text))
    if parity:
        text = f"Of {parity.windows} windows, half of them with a fault put in, int8 and float call the same ones strange."
        known.append(("Same verdicts", _share(1 - parity.flips), text))
    best = _learned(found, result.precision)
    if best:
        scorer, auroc = best
        text = (
            f"In so many of 100 cases a window with a fault scores higher than one without, by {scorer}. "
            f"As trained: {_share(found.quantized.matrix.auroc[scorer])}. 50 would be chance."
        )
        known.append(("Faults told from normal", _share(auroc), text))
    before = f" Before pruning: {_thousands(result.pruned.before.macs)}." if result.pruned else ""
    known.append(("Multiplications a window", _thousands(found.macs), f"The model has {result.parameters} numbers.{before}"))
    return known


def _learned(found: Compression, precision: str) -> tuple[str, float] | None:
    """The scorer that hears the encoder stands last; another one may hear nothing that compression changed."""
    own = [one for one in found.quality if one.precision == precision]
    if not own:
        return None
    last = [one for one in own if one.runtime == own[0].runtime][-1]
    return last.scorer, last.auroc


# What ships, what it costs


def _ships(found: Compression) -> list[str]:
    result = found.quantized
    facts: list[list[Cell]] = [
        ["bundle", result.bundle],
        ["digest (SHA-256)", result.digest],
        ["precision", result.precision],
        ["asked for (--precision)", found.asked],
        ["why", result.reason],
        ["board (--target)", result.target or "none in particular"],
        ["runtimes that can run it, the preferred one first", ", ".join(result.runtimes)],
        ["bytes of all models in the bundle", result.model_bytes],
        ["bytes of the bundle", result.bundle_bytes],
        ["parameters", result.parameters],
        ["multiplications of one window (MACs)", found.macs],
        ["windows that it was calibrated on", result.calibration_windows],
        ["largest difference between exported and trained", result.export_difference],
    ]
    kind = "kept" if result.precision == "int8" or found.asked == "float32" else "unknown"
    said = f"Ships in {CALLED.get(result.precision, result.precision)}: {result.reason}."
    return [
        "<p>A trained model calculates with 32-bit fractions. In int8 it takes less memory, and on many processors less time, "
        "but it is a little less exact. So int8 ships only when what it says stays the same.</p>",
        f'<p class="verdict {kind}">{escape(said)}</p>',
        table("The bundle", ["", "value"], facts),
    ]


def _costs(found: Compression) -> list[str]:
    result = found.quantized
    rows: list[list[Cell]] = [
        [
            _unbroken(f"{one.runtime} {one.precision}"),
            one.bytes,
            one.one_us,
            one.one_p99_us,
            one.batch_us,
            one.batch_p99_us,
            one.memory_mb,
        ]
        for one in found.costs
    ]
    ours = next((at for at, one in enumerate(found.costs) if one.precision == result.precision), -1)
    head = [
        "runtime, precision",
        "model, bytes",
        "1 window, µs",
        "99 % within, µs",
        f"{TOGETHER} windows, µs",
        "99 % within, µs",
        "memory, MB",
    ]
    lines = [
        "<p>Time of the model alone, on one thread of the machine that made it; a small board is several times slower, so read "
        "the ratios. Half of the times are below the first figure, 99 of 100 below the second, which says more about "
        f"what else the machine did than about the model. {TOGETHER} windows at once is what happens after an outage or with a "
        "small hop. Memory: a fresh process with Python, numpy, the runtime and the model.</p>",
        table("Size, time and memory", head, rows, ours=ours),
    ]
    if not result.instructions:
        return [*lines, f"<p>{escape(_not_counted(found))}</p>"]
    counted: list[list[Cell]] = [
        [runtime, one.processor, one.float32, one.int8] for runtime, one in result.instructions.items()
    ]
    caption = f"Instructions for one window on the processor of {result.target}, emulated"
    return [
        *lines,
        "<p>The board's own processor was emulated, and the instructions of one window were counted. Fewer is quicker, though "
        "not in proportion.</p>",
        table(caption, ["runtime", "processor", "float", "int8"], counted),
    ]


def _not_counted(found: Compression) -> str:
    return next((f"{note[0].upper()}{note[1:]}." for note in found.notes if note.startswith("instructions")), "")


# Quality


def _finds(found: Compression, drawn: Drawn) -> list[str]:
    result = found.quantized
    scorers = list(result.matrix.auroc)
    rows: list[list[Cell]] = [["as trained", None, *result.matrix.auroc.values()]]
    for row in result.matrix.rows:
        own = {one.scorer: one.auroc for one in found.quality if _of(one, row)}
        rows.append([_unbroken(row.name), row.bytes, *(own.get(scorer) for scorer in scorers)])
    lines = [
        "<p>Faults were put into windows of normal running that were held back from learning. AUROC: how often a window with a "
        "fault scores higher than one without; 1 is always, 0.5 is chance. Compare it down a column. It says whether "
        "compression lost something, not what the bundle will find on your machine: for that there is "
        "<code>amiss evaluate</code>.</p>",
        _about_scorers(scorers),
        table("AUROC of faults that were put in, by scorer", ["model", "bytes", *scorers], rows),
        "<h3>How the scores are spread</h3>",
        "<p>Filled: float. Lines: int8. Where a line follows the edge of its area, compression changed nothing. Right of the "
        "broken upright line a window counts as strange. The last step holds all that is stranger still.</p>"
        if len(drawn.scores) > 1
        else "<p>There is a float model only, so nothing lies beside it.</p>",
        '<div class="many">',
    ]
    lines += [plot(_spread(scorer, drawn), f"By {scorer}.") for scorer in scorers]
    figures: list[list[Cell]] = [
        [f"{one.scorer}, {one.precision}, {one.group}", one.low, one.middle, one.high, one.strange] for one in found.spreads
    ]
    head = ["scorer, precision, windows", "a tenth below", "half below", "a tenth above", "share strange"]
    return [*lines, "</div>", behind(table("Scores by scorer, precision and kind of window", head, figures))]


def _about_scorers(scorers: Sequence[str]) -> str:
    if len(scorers) == 1:
        return f"<p>Scorer: {escape(scorers[0])}, the bundle's own. It hears what the encoder learned.</p>"
    return (
        f"<p>Two scorers judge: the bundle's own, {escape(scorers[0])}, which may hear little of the encoder, and "
        f"{escape(scorers[1])}, which hears what it learned, and so tells whether compression harmed it.</p>"
    )


def _of(one: Quality, row: Row) -> bool:
    return (one.runtime, one.precision) == (row.runtime, row.precision)


def _spread(scorer: str, drawn: Drawn) -> Chart:
    by_precision = {kind: by_scorer[scorer] for kind, by_scorer in drawn.scores.items()}
    low, high = _reach(list(by_precision.values()))
    edges = np.linspace(low, high, BINS + 1)
    shares = {
        (kind, group): np.histogram(np.clip(one.groups[group], low, high), edges)[0] / max(len(one.groups[group]), 1)
        for kind, one in by_precision.items()
        for group in ("normal", "anomalous")
    }
    top = 1.05 * max(float(values.max()) for values in shares.values())
    chart = Chart(
        f"Scores by {scorer}",
        "Normal windows and windows with a fault put in, float and int8. The table below has figures.",
        Axis("score: the higher, the stranger", low, high),
        Axis("share of the windows", 0.0, top),
        height=280,
        width=480,
    )
    for (kind, group), values in shares.items():
        xs, ys = np.repeat(edges, 2), np.concatenate([[0.0], np.repeat(values, 2), [0.0]])
        colour, key = ("a" if group == "normal" else "b"), f"{GROUPS[group]}, {CALLED[kind]}"
        if kind == "float32":
            chart.band(xs, np.zeros(len(xs)), ys, colour, key)
        else:
            chart.line(xs, ys, colour, key)
    for one in list(by_precision.values())[-1:]:
        if low < one.threshold < high:
            chart.line([one.threshold, one.threshold], [0.0, top], "limit", "strange from here on")
    return chart


def _reach(those: Sequence[Scores]) -> tuple[float, float]:
    """Lowest and highest score that is drawn: nearly all normal windows and most faulty ones. Some faults are so strange that
    beside them all others would be one line."""

    def quantile(group: str, q: float) -> list[float]:
        return [float(np.quantile(_finite(one.groups[group]), q)) for one in those]

    low = min(*quantile("normal", 0.0), *quantile("anomalous", 0.0))
    limits = [one.threshold for one in those if np.isfinite(one.threshold)]
    high = max(*quantile("normal", 0.99), *quantile("anomalous", 0.6), *limits)
    return low, high + max(0.25 * (high - low), 1e-6)


def _finite(values: Float32) -> Float32:
    return values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1, np.float32)


# Parity


def _trained(found: Compression) -> list[str]:
    matrix, budget = found.quantized.matrix, found.budget
    scorers = list(matrix.auroc)
    over = matrix.failures(budget, found.quantized.precision)
    said = "Over what is allowed: " + "; ".join(over) if over else "Every model that ships is within what is allowed."
    return [
        "<p>Each model under each runtime that is installed, beside the model as it left training, on the same windows: "
        "normal ones, the same with a fault put in, and the same from a sensor in trouble (noise, a reading of 0, another "
        "gain, an absurd value). <b>Embedding error</b>: how far what the encoder makes of a window is off, as a share of what "
        "tells windows apart. <b>Rank correlation</b>: do both put the windows in the same order of strangeness? 1 is the same "
        "order. <b>Verdicts that differ</b>: share of the windows that one calls strange and the other does not.</p>",
        f'<p class="verdict {"broken" if over else "kept"}">{escape(said)}</p>',
        _allowed(found, matrix),
        *(_by(scorer, matrix) for scorer in scorers),
        table("Windows of each kind", ["kind", "windows"], list(matrix.windows.items())),
    ]


def _allowed(found: Compression, matrix: Matrix) -> str:
    """The budget, and how much of it is used."""
    budget, worst = found.budget, {}
    for precision in ("int8", "float32"):
        own = [row for row in matrix.rows if row.precision == precision]
        if own:
            worst[precision] = [
                max(row.embedding_error for row in own),
                min(value for row in own for value in row.rank_correlation.values()),
                max(value for row in own for cell in row.groups.values() for value in cell.flips.values()),
                max(value for row in own for value in row.auroc_loss.values()),
            ]
    named: list[list[Cell]] = [
        ["embedding error, at most", budget.embedding_error],
        ["rank correlation, at least", budget.rank_correlation],
        ["share of verdicts that differ, at most", budget.flips],
        ["AUROC lost, at most", budget.auroc_loss],
    ]
    rows = [[*row, *(values[at] for values in worst.values())] for at, row in enumerate(named)]
    parities = [one for one in (found.quantized.parity, *found.others.values()) if one is not None]
    slower = max((one.int8_us / max(one.float_us, 1e-9) for one in parities), default=None)
    more_us = max((one.int8_us - one.float_us for one in parities), default=None)
    only = [None] * (len(worst) - 1)
    rows += [
        ["time of int8 ÷ time of float, at most", budget.slower, slower, *only],
        ["… unless it is more by less than this, µs", budget.unnoticed_us, more_us, *only],
    ]
    head = ["", "allowed", *(f"{CALLED[kind]}, worst of all" for kind in worst)]
    return table("What is allowed ([budget] of the recipe), and what was found", head, rows)


def _by(scorer: str, matrix: Matrix) -> str:
    rows: list[list[Cell]] = []
    for row in matrix.rows:
        rows += [
            [_unbroken(f"{row.name}, {group}"), cell.embedding_error, cell.rank_correlation[scorer], cell.flips[scorer], None]
            for group, cell in row.groups.items()
        ]
        both = _unbroken(f"{row.name}, normal and anomalous")
        rows.append([both, row.embedding_error, row.rank_correlation[scorer], None, row.auroc_loss[scorer]])
    head = ["model, windows", "embedding error", "rank correlation", "verdicts that differ", "AUROC lost"]
    return table(f"By {scorer}; AUROC lost below 0: better than trained", head, rows)


def _beside_float(found: Compression) -> list[str]:
    first = found.quantized.parity
    if first is None:
        return ["<p>There is no int8 model to lay beside the float one: see what was refused.</p>"]
    columns: dict[str, Parity] = {found.quantized.matrix.rows[0].runtime: first, **found.others}
    rows: list[list[Cell]] = [
        [title, *(getattr(one, name) for one in columns.values())]
        for name, title in (
            ("windows", "windows, half of them with a fault put in"),
            ("embedding_error", "embedding error"),
            ("rank_correlation", "rank correlation of the scores"),
            ("flips", "share of verdicts that differ"),
            ("p_value", "strange is: p ≤"),
            ("float_us", "float, one window, µs"),
            ("int8_us", "int8, one window, µs"),
            ("float_p99_us", "float, 99 % within, µs"),
            ("int8_p99_us", "int8, 99 % within, µs"),
            ("float_bytes", "float, bytes"),
            ("int8_bytes", "int8, bytes"),
        )
    ]
    return [
        "<p>Here each model has a scorer and a calibration of its own, as when it ships alone, and the bundle's own scorer "
        "judges. These figures decide whether int8 ships.</p>",
        table("int8 beside float, by runtime", ["", *columns], rows),
    ]


# Pruning, refusals


def _pruning(found: Compression) -> list[str]:
    pruned = found.quantized.pruned
    if pruned is None:
        return [
            "<p>Nothing: the model has all the channels that it was trained with. <code>--prune macs=0.5</code> takes channels "
            "away until half of the multiplications are left, as long as quality lasts.</p>"
        ]
    curve = pruned.curve
    shares = [point.share for point in curve]
    edge = max(0.08 * (max(shares) - min(shares)), 1e-3)
    x = Axis(f"share of {pruned.target} that is left", min(shares) - edge, max(shares) + edge)
    charts = []
    for title, values, label in (
        ("The loss of what it was trained for", [point.loss for point in curve], "loss: lower is better"),
        ("Faults told from normal", [point.detection for point in curve], "AUROC: higher is better"),
    ):
        margin = max(0.15 * (max(values) - min(values)), 0.02 * abs(max(values)), 1e-6)
        y = Axis(label, min(values) - margin, max(values) + margin)
        chart = Chart(f"{title} against size", "Each dot is one cut; the table below has the figures.", x, y, 240, 480)
        chart.line(shares, values, "a", "after each cut", dots=True)
        ships = [(point.share, value) for at, (point, value) in enumerate(zip(curve, values, strict=True)) if at == pruned.kept]
        chart.dots([a for a, _ in ships], [b for _, b in ships], "c", "ships", 6)
        charts.append(plot(chart, f"{title}."))
    sizes: list[list[Cell]] = [
        ["multiplications of one window", pruned.before.macs, pruned.after.macs],
        ["parameters", pruned.before.parameters, pruned.after.parameters],
        ["one window, µs", pruned.before.latency_us, pruned.after.latency_us],
    ]
    rows: list[list[Cell]] = [
        [at, one.share, one.macs, one.parameters, one.loss_cut, one.loss, one.detection] for at, one in enumerate(curve)
    ]
    head = ["cut", "share left", "multiplications", "parameters", "loss, cut", "loss, recovered", "AUROC"]
    facts: list[list[Cell]] = [
        ["what was to shrink", pruned.target],
        ["share that was to be left", pruned.ratio],
        ["cut that ships; 0 is the whole model", pruned.kept],
        ["why it went no further", pruned.reason],
    ]
    return [
        "<p>Channels without which little is lost were taken away, a few at a time; after each cut what is left learned on. "
        "Faults are told here by what the encoder makes and nothing else, which is a harder test than the one above.</p>",
        '<div class="many">',
        *charts,
        "</div>",
        table("Pruning", ["", "value"], facts),
        table("Before and after", ["", "trained", "pruned"], sizes),
        table("Every cut", head, rows),
    ]


def _refused(found: Compression) -> list[str]:
    if not found.refused:
        return ["<p>Nothing was refused.</p>"]
    return [
        "<p>What is not as good as it has to be is not shipped.</p>",
        "<ul>",
        *(f"<li>{escape(one)}</li>" for one in found.refused),
        "</ul>",
    ]


def _about(found: Compression) -> list[str]:
    return [
        "<p>No label was read: faults were made and put into windows that were held back. Times are of the machine that made "
        "the bundle and of the moment; all else is the same each time.</p>",
        *(["<h3>Notes</h3>", "<ul>", *(f"<li>{escape(note)}</li>" for note in found.notes), "</ul>"] if found.notes else []),
        table("This report", ["", "value"], [["format of quantize.json", found.format]]),
        "<p>The same figures are in <code>quantize.json</code>.</p>",
    ]


def _unbroken(name: str) -> str:
    """In one piece: a column of figures may be narrow, the name of a row may not."""
    return name.replace(" ", "\u00a0")


def _kb(size: float) -> str:
    return f"{size / 1000:.0f} kB"


def _share(value: float) -> str:
    return f"{value * 100:.1f} %"


def _thousands(count: int) -> str:
    return f"{count / 1000:.0f} thousand"
