"""Runs as figures: the curves' data for :class:`inspector.widgets.LossChart`, and static HTML for everything else.
Whatever a person or a model wrote is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from inspector.figures.charts import table
from inspector.figures.clip import MatrixHead, name_texts, show_matrix
from inspector.row.numbers import say
from inspector.runs.discretion import hide_paths
from inspector.runs.jobs import JobState
from inspector.runs.metrics import StagePlan, say_room
from inspector.runs.progress import Progress
from model.hub import HubCheckpoint
from model.memory import format_bytes
from model.training.data.data_report import DataReport
from model.training.data.ledger import Entry, Ledger, read_stage_ledgers
from model.training.events import ModuleSize
from model.training.first_batch import BatchRow
from model.training.memory_estimate import MemoryEstimate

MEMORY_NAMES = {
    "program": "program",
    "weights": "weights",
    "kept": "last good weights",
    "optimizer": "AdamW's moments",
    "gradients": "gradients",
    "activations": "activations",
    "features": "features kept of images",
}
LATELY = 10
"""Steps whose mean loss is said beside the last one's."""
MAX_POINTS = 1500
"""A curve that is sent whole is thinned to about so many points; those that follow come one by one."""
PART_NAMES = {"vision_encoder": "image encoder", "MP": "projector", "decoder": "language model", "text": "text tower"}
STATUS_WORDS = {
    "queued": "waiting",
    "starting": "starting",
    "running": "running",
    "pausing": "pausing after this step",
    "paused": "paused",
    "stopping": "stopping, keeping the weights",
    "stopped": "stopped, weights kept",
    "done": "done",
    "failed": "failed",
    "interrupted": "broken off",
}


def chart_payload(job: str, progress: Progress, train_from: int, held_from: int) -> dict[str, Any]:
    """What :class:`inspector.widgets.LossChart` appends: points from these places on; from 0 it begins anew."""
    train = progress.train[train_from:]
    if not train_from and len(train) > MAX_POINTS:
        stride = -(-len(train) // MAX_POINTS)
        train = (*train[:-1:stride], train[-1])
    total = progress.stages[-1].offset + progress.stages[-1].steps if progress.stages else 0
    return {
        "key": f"{job}:{progress.generation}",
        "fresh": not train_from and not held_from,
        "link": f"?job={job}",
        "total": total,
        "stages": [[part.name, part.offset, part.steps] for part in progress.stages],
        "train": [[step, _short(loss), _short(rate), _short(norm)] for step, loss, rate, norm in train],
        "held": [[step, _short(loss)] for step, loss in progress.held_out[held_from:]],
    }


def overlay_payload(runs: Sequence[tuple[str, Progress]]) -> dict[str, Any]:
    """Whole curves of several runs, each with its name."""
    drawn = []
    for name, progress in runs:
        curve = chart_payload("", progress, 0, 0)
        drawn.append({"name": name, "train": curve["train"], "held": curve["held"]})
    return {"key": "overlay", "fresh": True, "runs": drawn}


def _short(value: float | None) -> float | None:
    # NaN and infinity are no JSON.
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    return float(f"{value:.5g}")


def show_modules(sizes: Sequence[ModuleSize | dict[str, Any]]) -> str:
    """Per part: parameters, how many of them train, and a bar."""
    rows = []
    parts = [size if isinstance(size, dict) else vars(size) for size in sizes]
    top = max((part["parameters"] for part in parts), default=1) or 1
    for part in parts:
        all_, on = part["parameters"], part["trainable"]
        state = "frozen" if not on else "trains" if on == all_ else f"{on / all_:.1%} trains"
        module = str(part["module"])
        name = PART_NAMES.get(module, module)
        bar = (
            f'<td><span class="tr-bar" style="width:{100 * all_ / top:.1f}%"><i style="width:'
            f'{100 * on / all_ if all_ else 0:.1f}%"></i></span></td>'
        )
        rows.append([escape(name), f"<td class=num>{all_:,}</td>", f"<td class=num>{on:,}</td>", state, bar])
    trained = sum(part["trainable"] for part in parts)
    whole = sum(part["parameters"] for part in parts)
    return (
        table(["part", "parameters", "trained", "state", "filled: trained"], rows, "what trains")
        + f'<p class="vi-caption">{trained:,} of {whole:,} numbers will change; every other one stays bit for bit.</p>'
    )


def show_memory(memory: MemoryEstimate, most: int | None, *, least: bool = False) -> str:
    """What a run will take, by part, and whether it fits; ``least``: without what depends on the data."""
    parts = " · ".join(
        f"{name} {format_bytes(value)}" for key, name in MEMORY_NAMES.items() if (value := getattr(memory, key))
    )
    said = "at least" if least else "about"
    why = say_room(memory, most)
    refused = f'<p class="tr-error">This won\'t fit: {escape(why)}.</p>' if why else ""
    return (
        f'<p class="tr-memory"><b>Memory: {said} {format_bytes(memory.total)}</b> at the peak '
        f'<span class="vi-caption">({parts}; gradients and activations take turns)</span></p>{refused}'
    )


def show_fetch(parts: Sequence[tuple[HubCheckpoint, int]]) -> str:
    """What of a model's parts comes from the hub when the run starts."""
    if not parts:
        return ""
    listed = " · ".join(
        f"{escape(part.name)} {format_bytes(part.nbytes)}, {part.weights / 1e6:,.0f} million numbers in its files"
        for part, _ in parts
    )
    missing = sum(missing for _, missing in parts)
    said = f"{format_bytes(missing)} will be fetched from the hub" if missing else "Fetched from the hub already"
    return f'<p class="tr-memory"><b>{said}</b> <span class="vi-caption">({listed})</span></p>'


def show_plan(plan: StagePlan | None, most: int | None) -> str:
    """The memory of a run, and the beginning of its first batch as it will be drawn."""
    if plan is None:
        return ""
    return (
        f"{show_memory(plan.memory, most)}<details open><summary>The first batch, as the run will draw it "
        f"({len(plan.rows)} of its rows)</summary>{_show_rows(plan.rows)}</details>"
    )


def show_first_batch(stage: str, rows: Sequence[BatchRow]) -> str:
    """What a run kept of the batch with which a stage began."""
    if not rows:
        return ""
    return (
        f'<details class="tr-report"><summary>The first batch of “{escape(stage)}” ({len(rows)} of its rows)</summary>'
        f"{_show_rows(rows)}</details>"
    )


def _show_rows(rows: Sequence[BatchRow]) -> str:
    return "".join(
        '<div class="tr-row">'
        + "".join(f'<img src="{escape(image, quote=True)}" alt="image {n + 1}">' for n, image in enumerate(row.images))
        + f"<pre>{escape(row.text)}</pre></div>"
        for row in rows
    )


def show_reports(reports: Sequence[DataReport | dict[str, Any]]) -> str:
    """Counts, lengths, what will be dropped, the lint, and a few samples."""
    return "".join(_show_report(report) for report in reports)


def _show_report(report: DataReport | dict[str, Any]) -> str:
    if isinstance(report, dict):
        return f"<p><b>{escape(report['name'])}</b>: {report['examples']:,} pairs of a picture and its caption.</p>"
    facts = (
        f"<p>Of {report.measured:,} looked at, {report.usable:,} can be used ({report.turns:,} answers, "
        f"{report.images:,} images, {report.tokens:,} tokens, {report.trained_share:.0%} of them trained on).</p>"
    )
    top = max((part.count for part in report.token_histogram), default=1) or 1
    bars = "".join(
        f'<i style="height:{100 * part.count / top:.0f}%;max-width:48px" title="{part.start} to {part.stop - 1} '
        f'tokens: {part.count}"></i>'
        for part in report.token_histogram
    )
    histogram = ""
    if bars:
        low, high = report.token_histogram[0].start, report.token_histogram[-1].stop - 1
        histogram = (
            f'<figure class="tr-histogram"><div role="img" aria-label="{low} to {high} tokens">{bars}</div>'
            f"<figcaption><span>{low}</span><span>tokens per sample</span><span>{high}</span></figcaption></figure>"
        )
    notes = [
        f"<li><b>{escape(item.finding.severity)}</b> <code>{escape(item.finding.rule)}</code> "
        f"{escape(item.finding.sentence)} ({item.count}×, first {escape(item.where)})</li>"
        for item in report.lint
    ]
    account = _show_table(report.ledger)
    whole = not (notes or report.ledger.skipped or report.ledger.dropped or report.ledger.left_out)
    verdict = f'<ul class="vi-findings">{"".join(notes)}</ul>' if notes else ""
    verdict += '<p class="vi-good">✓ Nothing is dropped, and the label lint found nothing.</p>' if whole else ""
    looks = "".join(f"<pre>{escape(text)}</pre>" for text in report.text_of_looks[:2])
    samples = f"<details><summary>Two samples as the model will read them</summary>{looks}</details>" if looks else ""
    return f'<div class="tr-report">{account}{facts}{histogram}{verdict}{samples}</div>'


def show_status(state: JobState | None, progress: Progress, *, live: bool = True) -> str:
    """One line: what the job is doing, how far it is, how fast; or how it ended. Empty states teach."""
    if state is None:
        return (
            '<p class="vi-empty">No run is followed here. Press <b>Teach it a word</b>, or choose a way to begin and '
            "press <b>Start</b>: the run gets a process of its own and goes on when this page is closed.</p>"
        )
    word = STATUS_WORDS[state.status]
    parts = [f'<b class="tr-state tr-{state.status}">{word}</b>', escape(state.title)]
    if state.status == "queued":
        ahead = f"{state.position} before it" if state.position else "next"
        parts.append(f"{ahead} in the queue")
    last = progress.last_step
    done = 0.0
    if last is not None and progress.stages:
        total = progress.stages[-1].offset + progress.stages[-1].steps
        at = progress.stages[-1].offset + last["step"]
        done = at / total if total else 0.0
        parts.append(f"step {last['step']:,} of {last['steps']:,}")
        if len(progress.stages) > 1:
            parts.append(f"stage “{escape(str(last['stage']))}”")
        mean = _mean_loss(progress)
        parts.append(f"last loss {last['loss']:.3f}" + (f", mean of the last {mean[1]} {mean[0]:.3f}" if mean else ""))
        parts.append(f"|gradient| {last.get('gradient_norm', 0):.2f}")
        rates = ", ".join(
            f"{PART_NAMES.get(part, part)} {rate:.1e}" for part, rate in last.get("learning_rates", {}).items()
        )
        parts.append(f"rate {escape(rates)}")
        parts.append(f"{last.get('tokens_per_s', 0):,.0f} tokens/s")
        if state.status == "running":
            parts.append(f"{_duration(last.get('eta_s', 0))} to go")
        elif not state.live:
            parts.append(f"took {_duration(last.get('seconds', 0))}")
    if memory := _say_memory(state.run):
        parts.append(memory)
    prints = []
    if state.run.get("base_fingerprint"):
        prints.append(f"from <code>{escape(state.run['base_fingerprint'][:8])}</code>")
    if state.run.get("fingerprint"):
        prints.append(f"to <code>{escape(state.run['fingerprint'][:8])}</code>")
    if prints:
        parts.append("weights " + " ".join(prints))
    if state.status == "done":
        done = 1.0
    error = f'<p class="tr-error" role="alert">{escape(hide_paths(state.error))}</p>' if state.error else ""
    words = escape(hide_paths(state.output))
    output = (
        f"<details><summary>The process's last words</summary><pre>{words}</pre></details>"
        if state.output and state.output != state.error
        else ""
    )
    return (
        f'<div class="tr-status"><div class="tr-line">{" <span aria-hidden=true>·</span> ".join(parts)}</div>'
        f'<div class="tr-progress" role="progressbar" aria-label="steps done" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{100 * done:.0f}"><i style="width:{100 * done:.1f}%"></i></div>{error}{output}'
        f'<p class="vi-caption">This run has <a href="?job={escape(state.id)}">a link</a> that opens it on any '
        "machine; whoever has it can watch and steer.</p></div>"
    )


def _mean_loss(progress: Progress) -> tuple[float, int] | None:
    """The mean loss of the last steps of a stage, and how many these are; None without any."""
    first = progress.stages[-1].offset if progress.stages else 0
    losses = [loss for step, loss, *_ in progress.train[-LATELY:] if step > first and loss == loss]
    return (sum(losses) / len(losses), len(losses)) if losses else None


def _say_memory(run: Mapping[str, Any]) -> str:
    """What a run was to take, beside the most that it took; "" where it doesn't say."""
    memory = run.get("memory")
    if not isinstance(memory, Mapping) or not isinstance(peak := memory.get("peak"), int) or not peak:
        return ""
    stages = memory.get("stages")
    found = [stage.get("total") for stage in stages.values()] if isinstance(stages, Mapping) else []
    totals = [total for total in found if isinstance(total, int)]
    said = f" of {format_bytes(max(totals))} estimated" if totals else ""
    return f"memory {format_bytes(peak)}{said}"


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))
    if seconds < 90:
        return f"{seconds} s"
    return f"{seconds // 60} min {seconds % 60:02d} s" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def show_evaluation(progress: Progress) -> str:
    """The last evaluation: share right per family beside the one before, and sample answers."""
    if not progress.evaluations:
        return '<p class="vi-empty">At every evaluation the model\'s answers to held-out questions appear here.</p>'
    last = progress.evaluations[-1]
    if not last["accuracy"]:
        return (
            f'<p class="vi-caption">Step {last["at"]:,}: none of this data is held out, so there is no question that '
            "the run never saw.</p>"
        )
    stage = [one for one in progress.evaluations if one["stage"] == last["stage"]]
    before = stage[0]["accuracy"] if len(stage) > 1 else {}
    shares, moved = [], False
    for family in sorted(last["accuracy"], key=lambda family: (family != "all", family)):
        share = last["accuracy"][family]
        change = round(100 * (share - before.get(family, share)))
        moved = moved or bool(change)
        points = f" <small>({say(change, 0, sign=True)})</small>" if change else ""
        asked = last.get("counts", {}).get(family)
        of = f" of {asked:,}" if asked else ""
        shares.append(f"<li>{escape(family)} <b>{share:.0%}</b>{of}{points}</li>")
    rows = []
    if last.get("shares"):
        return _show_pairs(last, shares)
    for one in last.get("answers", ()):
        right = one["answered"].strip() == one["expected"].strip()
        mark = '<span class="tr-right">✓ right</span>' if right else '<span class="tr-wrong">✗ wrong</span>'
        rows.append([escape(one["question"]), f"<b>{escape(one['answered'])}</b>", escape(one["expected"]), mark])
    answers = table(["held-out question", "answer", "expected", "verdict"], rows, "sample answers") if rows else ""
    since = f"; in brackets, points since {_name_step(stage[0])}" if moved else ""
    return (
        f'<p class="vi-caption">Held-out data after step {last["at"]:,}: share answered right to the letter{since}.'
        f'</p><ul class="tr-shares">{"".join(shares)}</ul>{answers}'
    )


def _name_step(evaluation: Mapping[str, Any]) -> str:
    return "before the first step" if not evaluation["step"] else f"step {evaluation['at']:,}"


def _show_pairs(last: dict[str, Any], shares: Sequence[str]) -> str:
    """A contrastive stage's held-out pairs: where they belong together the diagonal lights up."""
    matrix = tuple(map(tuple, last["shares"]))
    # Texts of uploads are taken out once the data are deleted; the numbers stay.
    names = tuple(one["expected"] for one in last["answers"])
    names = names if len(names) == len(matrix) else tuple(f"pair {n + 1}" for n in range(len(matrix)))
    head = MatrixHead(tuple(escape(name) for name in names), name_texts(names))
    own = range(len(matrix))
    right = sum(max(row) == row[n] for n, row in enumerate(matrix))
    return (
        f'<p class="vi-caption">Retrieval on held-out pairs after step {last["at"]:,}: each picture (row) '
        f"chooses among the captions (columns); {right} of {len(matrix)} choose their own, framed. “caption” is the "
        "share of all pictures whose nearest caption is their own, “phrase” of patches and phrases. To try it on your "
        "own images: “Use this model”, then "
        '<button type="button" class="tr-goto" data-goto="CLIP">the tab CLIP</button>.</p>'
        f'<ul class="tr-shares">{"".join(shares)}</ul>'
        f"{show_matrix('Softmax over each row: which caption?', matrix, head, own, shares=True)}"
    )


# --- data ---


def show_ledger(run: Mapping[str, Any]) -> str:
    """What became of a run's data: one line for each table, and one for each reason. Nothing before they are read."""
    ledgers = read_stage_ledgers(run.get("ledger"))
    tables = [table for ledger in ledgers.values() for table in ledger.tables]
    if not tables:
        return ""
    lost = sum(entry.count for table in tables for entry in (*table.skipped, *table.dropped))
    read, held = sum(table.read for table in tables), sum(table.held_out for table in tables)
    kept = f"{lost:,} not used" if lost else "none dropped"
    parts = [_show_table(table) for ledger in ledgers.values() for table in ledger.tables]
    over = [entry for ledger in ledgers.values() for entry in ledger.passed_over]
    passed = "".join(f"<p><b>draws passed over</b> {entry.count:,}: {_say_entry(entry)}</p>" for entry in over)
    opened = " open" if lost or over else ""
    return (
        f'<details class="tr-report"{opened}><summary>The data: {read:,} read, {kept}, {held:,} held out</summary>'
        f"{''.join(parts)}{passed}</details>"
    )


def _show_table(table: Ledger) -> str:
    rows = [
        f"<li><b>{kind}</b> {entry.count:,} of {of:,}: {_say_entry(entry)}</li>"
        for kind, of, entries in (
            ("skipped", table.read, table.skipped),
            ("left out", table.read, table.left_out),
            ("dropped", table.looked_at, table.dropped),
            ("note", table.usable, table.notes),
        )
        for entry in entries
    ]
    listed = f'<ul class="vi-findings">{"".join(rows)}</ul>' if rows else ""
    return f"<p><b>{escape(hide_paths(table.name))}</b>: {table.numbers}.</p>{listed}"


def _say_entry(entry: Entry) -> str:
    return escape(hide_paths(str(entry)))


# --- history ---


def run_label(state: JobState) -> str:
    """How a run is called in lists; unique by its id's first letters."""
    return f"{state.title} · {state.id[:4]}"


def show_time(moment: float) -> str:
    """A moment in seconds since 1970; the page writes it in the zone of whoever reads it."""
    begun = datetime.fromtimestamp(moment, UTC)
    shown = begun.strftime("%d %b %H:%M")
    return f'<time datetime="{begun.isoformat(timespec="seconds")}">{shown} UTC</time>'


def show_history(runs: Sequence[tuple[JobState, Progress, Sequence[str]]]) -> str:
    """One row per run: how it ended, its losses, its settings."""
    if not runs:
        return '<p class="vi-empty">Your runs will be listed here, to be compared curve over curve.</p>'
    rows = []
    for state, progress, settings in runs:
        mean = _mean_loss(progress)
        train = f"{mean[0]:.3f}" if mean else "–"
        held = f"{progress.held_out[-1][1]:.3f}" if progress.held_out else "–"
        # A list that isn't drawn again before the run is over must not say what it is doing.
        word = "not over yet" if state.live else STATUS_WORDS[state.status]
        link = f'<a href="?job={escape(state.id)}">{escape(run_label(state))}</a><br>{show_time(state.created)}'
        # Wide enough for words: on a narrow screen the table scrolls in its frame.
        name = f'<th scope=row style="min-width:160px">{link}</th>'
        rows.append(
            [name, word, f"<td class=num>{train}</td>", f"<td class=num>{held}</td>", escape("; ".join(settings))]
        )
    return table(["run", "state", f"train loss, mean of {LATELY}", "held-out loss", "settings"], rows, "runs")
