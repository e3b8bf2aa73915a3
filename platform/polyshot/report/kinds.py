"""What the report of each kind of run says: of train, search, meta, transfer and affinity.

Called by `polyshot report` and at the end of the verbs. It reads what the run's folder holds and computes nothing anew.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any, cast

import pandas as pd

from polyshot.errors import RunError
from polyshot.report import charts
from polyshot.report.page import TONES, Badge, Block, Cell, Code, Grid, Page, Section, Table, Text, Tone
from polyshot.report.recorded import RecordedRun
from polyshot.report.words import (
    by_verdict,
    counted,
    interval,
    listed,
    number,
    percent,
    sharing_verdict,
    short_names,
    tone_of,
)
from polyshot.study.transfer import SCRATCH, SEARCHED

META_LEARNED = "meta-learnt"
_FEW = 12  # parameters that are drawn one by one


def page_of(run: RecordedRun) -> Page:
    """The report of a run that has ended.

    Raises:
        RunError: when there is none of its kind, or it has not ended.
    """
    kinds: dict[str, Callable[[RecordedRun], Page]] = {
        "train": _train,
        "search": _search,
        "meta": _meta,
        "transfer": _transfer,
        "affinity": _affinity,
    }
    if run.verb not in kinds:
        raise RunError(f"{run.folder}: there is no report of {run.verb}, only of {listed(kinds)}; name such a run")
    return kinds[run.verb](run)


def _page(
    run: RecordedRun, verdict: str, tone: str, lead: list[str], facts: list[tuple[str, str]], sections: list[Section]
) -> Page:
    study = run.study
    about = [("tasks", str(len(study.tasks))), *facts]
    about += [("seed", str(study.seed)), ("started", run.started), ("Polyshot", version("polyshot"))]
    kicker = f"polyshot {run.verb} · study {study.name} · run {run.folder.name}"
    return Page(
        f"{study.name} {run.folder.name}: {verdict}", kicker, verdict, cast(Tone, tone), lead, about,
        [*sections, _again(run)],
    )  # fmt: skip


# --- train -----------------------------------------------------------------------------------------------------------


def _train(run: RecordedRun) -> Page:
    metrics, found = run.table("metrics.json"), run.values("improvement.json")
    sections = [Section("Tasks", list(_tasks(metrics))), Section("Learning curves", _curves(run.table("curves.json")))]
    facts = [("seeds", str(found["seeds"]))] if found["seeds"] > 1 else []
    return _page(run, *_shared(run, metrics, found), facts, sections)


def _shared(run: RecordedRun, metrics: pd.DataFrame, found: dict[str, Any]) -> tuple[str, str, list[str]]:
    """The verdict on learning together, its tone, and the sentences that it needs."""
    if "improvement" not in metrics:
        return "The tasks were learnt together, and not compared with learning each alone.", "neutral", []
    verdicts = by_verdict(metrics)
    group = run.study.data.group
    over = f"{found['seeds']} seeds" if found["seeds"] > 1 else f"test groups of '{group}'" if group else "test rows"
    ends = interval(found["low"], found["high"])
    within = f" (95 % interval {ends}, over {over})" if ends != "–" else ""
    lead = [f"Mean improvement over learning each task alone, on test: Δm = {percent(found['improvement'])}{within}."]
    if noise := verdicts.get("within noise"):
        lead.append(f"Within noise: {listed(noise)}.")
    if unknown := verdicts.get("unknown"):
        lead.append(f"Too few test rows to tell: {listed(unknown)}.")
    return sharing_verdict(verdicts), tone_of(verdicts.get("helped", []), verdicts.get("hurt", [])), lead


_MODELS = {
    "single_task": "alone",
    "single_task_tuned": "alone, tuned",
    "multi_task": "together",
}


def _tasks(metrics: pd.DataFrame) -> Iterator[Block]:
    if "improvement" in metrics:
        yield charts.improvements(metrics)
    models = [name for name in _MODELS if name in metrics]
    for split in ("test", "validation"):
        rows = []
        for row in metrics[metrics["split"] == split].to_dict(orient="records"):
            cells: list[Cell] = [row["task"], row["metric"], *(row[name] for name in models)]
            if "improvement" in row:
                cells.append(percent(row["improvement"]))
            if "verdict" in row:
                cells += [interval(row["low"], row["high"]), Badge(row["verdict"], TONES[row["verdict"]])]
            rows.append(cells)
        head = ["task", "metric", *(_MODELS[name] for name in models)]
        head += ["improvement"] * ("improvement" in metrics) + ["95 % interval", "verdict"] * ("verdict" in metrics)
        yield Table(f"Each task on {split}", head, rows)


def _curves(curves: pd.DataFrame, by: str = "epoch") -> list[Block]:
    return [Grid(charts.learning_curves(curves, by))]


# --- search ----------------------------------------------------------------------------------------------------------


def _search(run: RecordedRun) -> Page:
    metrics, found = run.table("metrics.json"), run.values("improvement.json")
    verdict, tone, lead = _shared(run, metrics, found)
    lead.append(
        "The single tasks were trained with the best trial's settings, too, so that tuning is not sold as sharing."
    )
    confirmed = run.table("confirmation.json") if run.has("confirmation.json") else None
    sections = [Section("Tasks", list(_tasks(metrics))), *_trials(run, confirmed)]
    if confirmed is not None:
        sections.insert(2, _confirmed(confirmed))
    return _page(run, verdict, tone, lead, _trial_facts(run), sections)


def _confirmed(table: pd.DataFrame) -> Section:
    """The best trials and the study's own values with new seeds (see `searching.confirmation`)."""
    rows = []
    for row in table.to_dict(orient="records"):
        is_default = row["candidate"] == "default"
        cells: list[Cell] = ["the study's own values" if is_default else f"trial {row['candidate']}", row["objective"]]
        cells += [row["validation"], row["test"]]
        if is_default or "verdict" not in row:
            cells += [None, None, Badge("the yardstick", "neutral")]
        else:
            ends = interval(row["low"], row["high"], float)
            cells += [row["difference"], ends, Badge(row["verdict"], TONES[row["verdict"]])]
        rows.append(cells)
    caption = f"Means over {counted(int(table['seeds'].iloc[0]), 'new seed')}; differences on test, positive: better"
    head = ["", "objective", "validation", "test", "difference", "95 % interval", "verdict"]
    return Section("Was it luck?", [Table(caption, head, rows)])


def _trial_facts(run: RecordedRun) -> list[tuple[str, str]]:
    trials = run.table("trials.json")
    facts = [("trials", str(len(trials)))]
    for state, words in (("stopped", "stopped early"), ("failed", "failed")):
        if count := int((trials["state"] == state).sum()):
            facts.append((words, str(count)))
    if "seconds" in run.state:
        facts.append(("time", f"{run.state['seconds'] / 60:.1f} minutes"))
    return facts


def _trials(run: RecordedRun, confirmed: pd.DataFrame | None = None) -> list[Section]:
    """What every search shows of its trials."""
    trials, about = run.table("trials.json"), run.values("search.json")
    objective, direction = about["objective"], about["direction"]
    # A space may draw the logarithm of a value.
    shares = {name.removeprefix("log2(").removesuffix(")"): share for name, share in about["importances"].items()}
    keys = charts.searched_keys(trials, objective)
    is_population = run.study.search.is_population
    valued = trials[trials[objective].notna()]
    # Of values that changed on the way, the last ones are no reason of what a trial reached.
    drawn = [key for key in keys if valued[key].astype(str).nunique() > 1 and not is_population]
    drawn = sorted(drawn, key=lambda key: -shares.get(key, 0.0))[:_FEW]
    best = trials.iloc[0]
    plain = run.study.flat()
    values = [[key, charts.said(best[key]), charts.said(plain.get(key))] for key in keys if pd.notna(best[key])]
    sections = [
        Section(
            "The best trial",
            [
                Text(
                    f"Trial {best['number']} reached {objective} = {number(best[objective])} on validation, "
                    f"the {'highest' if direction == 'maximize' else 'lowest'} of {counted(len(valued), 'trial')}."
                ),
                Table(
                    f"Its {'last ' * is_population}values beside the study's own",
                    ["key", "best trial", "study"],
                    values,
                    shown=40,
                ),
                *(_schedule(run, int(best["number"])) if run.has("schedules.json") else []),
            ],
        )
    ]
    blocks: list[Block] = [charts.search_history(trials, objective, direction, confirmed)]
    if drawn:
        blocks.append(charts.parallel_coordinates(trials, drawn, objective))
    sections.append(Section("Trials", [*blocks, _trials_table(trials, keys, objective)]))
    learned: list[Block] = []
    if shares:
        learned.append(charts.importances(shares))
    numeric = [key for key in drawn if charts.is_number(valued[key])]
    if shares and len(numeric) > 1:
        learned.append(charts.two_parameters(trials, numeric[0], numeric[1], objective))
    if drawn:
        learned.append(Text("Each parameter by itself: what trials with a value reached. The star is the best trial."))
        learned.append(Grid(charts.slices(trials, drawn, objective)))
    return [*sections, Section("What mattered", learned)] if learned else sections


def _schedule(run: RecordedRun, number: int) -> Iterator[Block]:
    """How the model of a population's trial came about."""
    schedules = run.table("schedules.json")
    own = schedules[schedules["number"] == number]
    keys = [str(name) for name in own.columns[3:]]
    rows: list[list[Cell]] = [
        [int(row["from_epoch"]), f"trial {row['trained_by']}", *(charts.said(row[key]) for key in keys)]
        for row in own.to_dict(orient="records")
    ]
    yield Table(
        "How its model came about: by whom it was trained, with which values",
        ["from epoch", "by", *short_names(keys)],
        rows,
    )


def _trials_table(trials: pd.DataFrame, keys: list[str], objective: str) -> Table:
    metrics = [str(name) for name in trials if "/" in str(name) and name != objective]
    words = {"finished": "good", "stopped": "neutral", "failed": "bad"}
    rows = []
    for trial in trials.to_dict(orient="records"):
        state = Badge(trial["state"], cast(Tone, words[trial["state"]]))
        values = [trial[key] if isinstance(trial[key], float | int) else charts.said(trial[key]) for key in keys]
        rows.append(
            [int(trial["number"]), state, trial[objective], int(trial["epochs"]), *values]
            + [trial[name] for name in metrics]
            + (["" if pd.isna(trial["copied"]) else str(trial["copied"])] if "copied" in trials else [])
            + ([str(trial["error"])] if trial.get("error") else [""] if "error" in trials else [])
        )
    head = ["trial", "state", objective, "epochs", *short_names(keys), *metrics]
    head += ["copied"] * ("copied" in trials)
    if "error" in trials and trials["error"].notna().any():
        head.append("error")
    else:
        rows = [row[: len(head)] for row in rows]
    return Table("Trials, the best first", head, rows, shown=10)


# --- meta ------------------------------------------------------------------------------------------------------------


def _meta(run: RecordedRun) -> Page:
    table, verdicts = run.table("adaptation.json"), run.table("verdicts.json")
    own = table[table["method"] == META_LEARNED]
    steps = min(getattr(run.study.meta.learner, "steps", 0), len(own) - 1)
    final = own.iloc[steps]
    reached = f"{final['metric']} {number(final['mean'])} ± {number(final['interval'])}"
    after = f"after {counted(steps, 'step')}" if len(own) > 1 else "without a step"
    lead = [f"On {run.study.meta.test_tasks} test tasks, {after}: {reached} (mean, 95 % interval)."]
    blocks: list[Block] = [charts.adaptation(table)]
    verdict, tone = f"The learner reaches {reached} on new tasks, {after}.", "neutral"
    if len(verdicts):
        low, high = (verdicts["difference"] + sign * verdicts["interval"] for sign in (-1, 1))
        better, worse = (verdicts.loc[rows, "method"].tolist() for rows in (low > 0, high < 0))
        verdict, tone = _meta_verdict(better, worse, verdicts["method"].tolist()), tone_of(better, worse)
        rows = [
            [row["method"], row["difference"], f"± {number(row['interval'])}", _badge(row["method"], better, worse)]
            for row in verdicts.to_dict(orient="records")
        ]
        caption = "Meta-learnt over each baseline, in the same episodes (positive: better)"
        blocks.append(Table(caption, ["baseline", "difference", "paired 95 %", "verdict"], rows))
    rows = [
        [row["method"], int(row["step"]), row["mean"], f"± {number(row['interval'])}", row["median"], row["diverged"]]
        for row in table.to_dict(orient="records")
    ]
    head = ["method", "step", f"{final['metric']}, mean", "95 %", "median", "diverged"]
    blocks.append(Table("Test tasks by step of adaptation", head, rows, shown=12))
    sections = [Section("New tasks", blocks)]
    facts = [("learner", run.study.meta.learner.kind), ("test tasks", str(run.study.meta.test_tasks))]
    if run.has("trials.json"):
        sections += _trials(run)
        facts += _trial_facts(run)
    sections.append(Section("Meta-training", _curves(run.table("curves.json"), "look at the validation tasks")))
    return _page(run, verdict, tone, lead, facts, sections)


def _meta_verdict(better: list[str], worse: list[str], methods: list[str]) -> str:
    if len(better) == len(methods):
        return f"The meta-learnt start is better than {listed(methods)}."
    if better:
        rest = [method for method in methods if method not in better]
        others = f"{listed(worse)} is better" if worse else f"{listed(rest)} cannot be told from it"
        return f"The meta-learnt start is better than {listed(better)}; {others}."
    if worse:
        return f"The meta-learnt start is worse than {listed(worse)}."
    return "The meta-learnt start cannot be told from its baselines."


def _badge(name: str, better: list[str], worse: list[str]) -> Badge:
    if name in better:
        return Badge("better", "good")
    return Badge("worse", "bad") if name in worse else Badge("within noise", "neutral")


# --- transfer --------------------------------------------------------------------------------------------------------


def _transfer(run: RecordedRun) -> Page:
    table, choice = run.table("transfer.json"), run.values("choice.json")
    verdict, tone = _transfer_verdict(table)
    lead = [
        f"Recommended with {'all labels' if budget == 'all' else f'{budget} labels'}: {method}."
        for budget, method in choice["recommended"].items()
    ]
    if choice["method"] != list(choice["recommended"].values())[-1]:
        lead.append(f"The guard gives back {choice['method']}: no transferred model is better on validation.")
    sections = []
    for task, rows in table.groupby("task", sort=False):
        sections.append(Section(str(task), [charts.by_labels(str(task), rows, SCRATCH), _methods(rows)]))
    facts = [("methods", str(table["method"].nunique() - 1)), ("source", str(run.study.transfer.source))]
    if run.has("trials.json"):
        sections += _trials(run)
        facts += _trial_facts(run)
    return _page(run, verdict, tone, lead, facts, sections)


def _transfer_verdict(table: pd.DataFrame) -> tuple[str, str]:
    """In how many comparisons with training from scratch transfer helped, and where it hurt."""
    judged = table[table["method"] != SCRATCH]
    helped, hurt = (judged[judged["verdict"] == word] for word in ("helped", "hurt"))
    tone = tone_of(helped["method"].tolist(), hurt["method"].tolist())
    of = f"of {counted(len(judged), 'comparison')} with training from scratch"
    if len(helped) and len(hurt):
        return f"Transfer helped in {len(helped)} {of} and hurt in {len(hurt)}.", tone
    if len(helped):
        return f"Transfer helped in {len(helped)} {of}, and never hurt.", tone
    if len(hurt):
        return f"Transfer hurt in {len(hurt)} {of}, and never helped.", tone
    return "Transfer made no difference that can be told from noise.", tone


def _methods(rows: pd.DataFrame) -> Table:
    cells: list[list[Cell]] = []
    for row in rows.to_dict(orient="records"):
        is_scratch = row["method"] == SCRATCH
        sign = "> " if row["is_more"] else "< " if row["is_fewer"] else ""
        name = f"{row['method']} (found)" if row["method"] == SEARCHED else row["method"]
        cells.append(
            [
                name,
                int(row["labels"]),
                row["value"],
                interval(row["low"], row["high"], float),
                None if is_scratch else row["difference"],
                None if is_scratch else interval(row["difference_low"], row["difference_high"], float),
                Badge("the yardstick", "neutral") if is_scratch else Badge(row["verdict"], TONES[row["verdict"]]),
                None if is_scratch else f"{sign}{number(row['scratch_labels'])}",
                row["seconds"],
            ]
        )
    head = ["method", "labels", str(rows["metric"].iloc[0]), "95 % interval", "over scratch", "its interval", "verdict"]
    head += ["scratch needs labels", "seconds"]
    return Table("Methods beside training from scratch, on test", head, cells, shown=40)


# --- affinity --------------------------------------------------------------------------------------------------------

_MEASURES = {
    "gradients": "Mean cosine of the tasks' gradients",
    "lookahead": "Relative fall of a task's loss after a step on another",
    "pairwise": "Improvement over learning alone, when two tasks are learnt together",
}


def _affinity(run: RecordedRun) -> Page:
    groups, how = run.table("groups.json"), run.values("affinity.json")
    matrix = pd.read_csv(run.folder / "affinity.csv", index_col=0)
    networks = groups["tasks"].tolist()
    if len(networks) == 1:
        verdict = f"Learn {listed(networks[0])} together, in one network."
    else:
        verdict = f"Learn them in {len(networks)} networks: {'; '.join(listed(tasks) for tasks in networks)}."
    names, values = [str(name) for name in matrix.columns], matrix.to_numpy(dtype=float)
    pairs = sorted(
        (float(values[row, column]), giver, taker)
        for row, giver in enumerate(names)
        for column, taker in enumerate(names)
        if row != column and not math.isnan(values[row, column])
    )
    lead = [f"What is measured: {_MEASURES[how['method']].lower()}."]
    if pairs and pairs[0][0] < pairs[-1][0]:
        (low, *least), (high, *most) = pairs[0], pairs[-1]
        lead.append(
            f"{most[0]} does most for {most[1]} ({number(high)}), {least[0]} least for {least[1]} ({number(low)})."
        )
    rows = [
        [
            str(place),
            listed(row["tasks"]),
            listed(row["serves"]),
            ", ".join(f"{value:+.3g}" for value in row["predicted"]),
        ]
        for place, row in enumerate(groups.to_dict(orient="records"), start=1)
    ]
    head = ["network", "learns", "predicts", "predicted affinity"]
    blocks: list[Block] = [charts.heat_map(matrix, _MEASURES[how["method"]]), _matrix(matrix, "Affinity")]
    sections = [
        Section("Proposed networks", [Table("Tasks by network, and what each predicted task is given", head, rows)]),
        Section("What tasks do for each other", blocks),
    ]
    if run.has("conflict.csv"):
        conflict = pd.read_csv(run.folder / "conflict.csv", index_col=0)
        shares = "Share of batches in which their gradients conflict"
        sections.append(
            Section("Conflicts", [charts.heat_map(conflict, shares, diverging=False), _matrix(conflict, shares)])
        )
    return _page(run, verdict, "neutral", lead, [("method", how["method"])], sections)


def _matrix(matrix: pd.DataFrame, caption: str) -> Table:
    rows: list[list[Cell]] = [
        [str(name), *(float(value) for value in row)] for name, row in zip(matrix.index, matrix.to_numpy(), strict=True)
    ]
    return Table(f"{caption}: row for column", ["", *map(str, matrix.columns)], rows)


# --- the end ---------------------------------------------------------------------------------------------------------


def _again(run: RecordedRun) -> Section:
    """The study, and the commands that run it again and use what came of it."""
    commands = [" ".join(["polyshot", run.verb, "study.yaml", *_options(run)])]
    folder = shlex.quote(str(run.folder.absolute()))
    if run.has("model"):
        commands.append(f"polyshot predict {folder} rows.csv")
    if run.has("learner"):
        commands.append(f"polyshot adapt {folder} support.csv")
    text = (run.folder / "study.yaml").read_text(encoding="utf-8")
    blocks: list[Block] = [
        Text("Save the study where its file was (its tables are found from there), and run the first command."),
        Code("Commands", "\n".join(commands)),
        Code("The study, with every default filled in", text, "study.yaml"),
    ]
    if run.has("best-study.yaml"):
        best = (run.folder / "best-study.yaml").read_text(encoding="utf-8")
        blocks.append(Code("The study with the best trial's values", best, "best-study.yaml"))
    return Section("Run it again", blocks)


def _options(run: RecordedRun) -> Iterator[str]:
    """Of the command line, beside the study."""
    if run.verb == "affinity":
        how = run.values("affinity.json")
        yield from ("--method", how["method"], "--networks", str(how["networks"]))
        return
    if run.verb == "train":
        if (seeds := run.values("improvement.json")["seeds"]) > 1:
            yield from ("--seeds", str(seeds))
        if "improvement" not in run.table("metrics.json"):
            yield "--no-baselines"
    if run.verb == "meta" and run.table("verdicts.json").empty:
        yield "--no-baselines"
    if run.verb in ("meta", "transfer") and run.has("trials.json"):
        yield "--search"
    yield "--fresh"
