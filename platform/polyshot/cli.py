"""The command line: one verb, one public function, and how their results and faults are shown.

Nothing heavy is imported before a verb runs, so that `polyshot --help` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
import traceback
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from polyshot import completion, working_copy
from polyshot.errors import PolyshotError, Problem, StudyError, exit_code

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from polyshot.display import Display
    from polyshot.study import Study
    from polyshot.verbs.affinity import AffinityResult
    from polyshot.verbs.meta_search import MetaSearchResult
    from polyshot.verbs.search import SearchResult
    from polyshot.verbs.train import TrainResult
    from polyshot.verbs.transfer import TransferResult
    from polyshot.verbs.transfer_search import TransferSearchResult


class _Verbs(TyperGroup):
    """The verbs, listed under the headings of the documentation."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002 - called so
        shown = {name: verb for name, verb in self.commands.items() if not verb.hidden}
        widest = max(map(len, shown))
        for heading in HEADINGS:
            rows = [
                (name.ljust(widest), verb.get_short_help_str(formatter.width - widest - 6))
                for name, verb in shown.items()
                if getattr(verb, "rich_help_panel", None) == heading
            ]
            with formatter.section(heading):
                formatter.write_dl(rows)


START, TOGETHER, FEW, USE, LOOK, CLUSTER = HEADINGS = (
    "To begin with",
    "Tasks learnt together",
    "Few labels: meta-learning and transfer",
    "A trained model",
    "Runs",
    "On a cluster",
)

app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # the boxes of rich would double the time that --help takes
    help="Several related prediction tasks: train, search, meta-learn and transfer them on Ray, from one study file.",
)


def _runs(context: typer.Context, incomplete: str) -> list[str]:
    return completion.runs(incomplete, working_copy.folder_of(context.params.get("storage") or "polyshot-runs"))


StudyFile = Annotated[
    Path,
    typer.Argument(
        help="The study file (YAML).", metavar="STUDY", show_default=False, autocompletion=completion.study_files
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Another value for a key of the study, e.g. training.epochs=5.", metavar="KEY=VALUE"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output, for machines.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start anew instead of continuing an earlier run.")]
JobName = Annotated[str, typer.Argument(help="A job, as `polyshot jobs` names it.", metavar="JOB", show_default=False)]
Address = Annotated[
    str | None,
    typer.Option(help="The cluster's Jobs API, http://HOST:8265; else RAY_API_SERVER_ADDRESS, else this machine's."),
]


# --- verbs -----------------------------------------------------------------------------------------------------------


@app.command(rich_help_panel=START)
def init(
    table: Annotated[str, typer.Argument(help="A CSV or Parquet file, or a folder of them.", show_default=False)],
    target: Annotated[
        list[str] | None, typer.Option("--target", help="A column to predict (may be repeated); else inferred.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where to write the study file.")] = Path("study.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a study file for a table: tasks and kinds inferred, commented."""
    from polyshot.verbs.init import init as write_study

    study = write_study(table, output, targets=target, force=force)
    tasks = ", ".join(f"{name} ({task.kind})" for name, task in study.tasks.items())
    typer.echo(f"Wrote {output}: {tasks}.")
    if len(study.tasks) == 1 and not target:
        typer.echo(f"One task was guessed. Several: polyshot init {table} --force --target COLUMN --target COLUMN")
    typer.echo(f"Next: polyshot check {output}, then polyshot train {output}")


@app.command(rich_help_panel=START)
def check(
    study_file: Annotated[
        Path | None,
        typer.Argument(
            help="The study file (YAML).", metavar="STUDY", show_default=False, autocompletion=completion.study_files
        ),
    ] = None,
    settings: Settings = None,
    schema: Annotated[
        bool, typer.Option("--schema", help="Print the JSON schema of study files, for editors.")
    ] = False,
    data: Annotated[bool, typer.Option("--data", help="Also read the table and check it against the study.")] = False,
) -> None:
    """Report every mistake of a study at once, and print it with all defaults filled in."""
    if schema:
        from polyshot.study import json_schema

        typer.echo(json.dumps(json_schema(), indent=2))
        return
    if study_file is None:
        raise StudyError([Problem("", "name the study file to check, or ask for --schema")])
    from polyshot.verbs.check import check as check_study

    study = _load(study_file, settings)
    words = check_study(study, with_data=data)
    typer.echo(study.to_yaml(), nl=False)
    for line in words:
        typer.echo(f"# {line}", err=True)


@app.command(rich_help_panel=TOGETHER)
def train(
    study_file: StudyFile,
    settings: Settings = None,
    baselines: Annotated[bool, typer.Option(help="Also train each task alone, for comparison.")] = True,
    seeds: Annotated[int, typer.Option(help="Train with so many seeds, and report means and intervals over them.")] = 1,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Train one multi-task model and single-task baselines; print the improvement per task."""
    study = _load(study_file, settings)
    with _at_work(study, "train") as display:
        from polyshot.verbs.train import train as run_train

        result = run_train(study, baselines=baselines, seeds=seeds, fresh=fresh, progress=display)
    if as_json:
        _print_json(
            {
                "improvement": result.improvement,
                "interval": list(result.interval),
                "hurt": result.hurt,
                "metrics": result.metrics.to_dict(orient="records"),
                "seeds": None if result.seeds is None else result.seeds.to_dict(orient="records"),
                "folder": str(result.folder),
                "mlflow_run_id": result.mlflow_id,
            }
        )
        return
    console = _console()
    _print_comparison(console, result.metrics)
    _print_verdict(console, study, result, seeds)
    _print_next(console, study, result.folder)


@app.command(rich_help_panel=TOGETHER)
def search(
    study_file: StudyFile,
    settings: Settings = None,
    trials: Annotated[int | None, typer.Option(help="Number of trials (search.trials).", min=1)] = None,
    minutes: Annotated[float | None, typer.Option(help="Time limit in minutes (search.minutes).")] = None,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Search task weights, architecture or anything else with Optuna on Ray Tune. The same command resumes."""
    budget = {"search.trials": trials, "search.minutes": minutes}
    study = _load(study_file, settings, {key: value for key, value in budget.items() if value is not None})
    with _at_work(study, "search") as display:
        from polyshot.verbs.search import search as run_search

        result = run_search(study, fresh=fresh, progress=display)
    if as_json:
        _print_json(
            {
                "improvement": result.improvement,
                "interval": list(result.interval),
                "hurt": result.hurt,
                "best_values": result.best_values,
                "best_trial": result.best_trial,
                "chosen": result.chosen,
                "confirmation": None if result.confirmation is None else result.confirmation.to_dict(orient="records"),
                "front": result.front["number"].tolist(),
                "metrics": result.metrics.to_dict(orient="records"),
                "trials": result.trials.to_dict(orient="records"),
                "folder": str(result.folder),
                "mlflow_run_id": result.mlflow_id,
            }
        )
        return
    console = _console()
    if "front" in result.trials:
        title = f"{len(result.front)} trials that no other one beats in all objectives (the Pareto front)"
        _print_table(console, result.front.drop(columns="front").dropna(axis=1, how="all"), title)
    else:
        _print_trials(console, result.trials)
    console.print(f"\nTrial {result.best_trial} was chosen: {result.chosen}.")
    for sentence in result.confirmed:
        console.print(f"{sentence[0].upper()}{sentence[1:]}.")
    console.print()
    _print_comparison(console, result.metrics)
    _print_verdict(console, study, result)
    _print_next(console, study, result.folder)


@app.command(rich_help_panel=TOGETHER)
def affinity(
    study_file: StudyFile,
    settings: Settings = None,
    method: Annotated[
        str,
        typer.Option(help="gradients or lookahead (one training), or pairwise (a training for every pair of tasks)."),
    ] = "gradients",
    networks: Annotated[int, typer.Option(help="At most so many networks, among which tasks are divided.")] = 2,
    as_json: AsJson = False,
) -> None:
    """Measure which tasks help each other; print the matrix and write the studies of the best groups."""
    study = _load(study_file, settings)
    with _at_work(study, "affinity") as display:
        from polyshot.verbs.affinity import affinity as run_affinity

        result = run_affinity(study, method, networks, progress=display)  # type: ignore[arg-type]  # it checks
    if as_json:
        _print_json(
            {
                "method": result.method,
                "affinity": result.matrix.to_dict(orient="index"),
                "conflict": None if result.conflicts is None else result.conflicts.to_dict(orient="index"),
                "groups": result.groups.to_dict(orient="records"),
                "studies": [str(path) for path in result.studies],
                "folder": str(result.folder),
                "mlflow_run_id": result.mlflow_id,
            }
        )
        return
    console = _console()
    # Printed as lines: a table breaks a title that is wider than itself.
    console.print("What learning a task (row) does for others (column):")
    _print_table(console, result.matrix.reset_index(names=""), "")
    if result.conflicts is not None:
        console.print("\nShare of batches in which their gradients conflict:")
        _print_table(console, result.conflicts.reset_index(names=""), "")
    _print_groups(console, study_file, result)


@app.command(rich_help_panel=FEW)
def meta(
    study_file: StudyFile,
    settings: Settings = None,
    search: Annotated[bool, typer.Option("--search", help="Search the spaces of the study's `search`.")] = False,
    baselines: Annotated[bool, typer.Option(help="Also judge what the learner has to beat.")] = True,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Meta-learn: learn from many tasks to adapt to a new one from a few rows; judged beside baselines."""
    study = _load(study_file, settings)
    found: MetaSearchResult | None = None
    with _at_work(study, "meta") as display:
        if search:
            from polyshot.verbs.meta_search import meta_search

            found = meta_search(study, baselines=baselines, fresh=fresh, progress=display)
            result = found.best
        else:
            from polyshot.verbs.meta import meta_learn

            result = meta_learn(study, baselines=baselines, fresh=fresh, progress=display)
    if as_json:
        _print_json(
            _searched(found)
            | {
                "table": result.table.to_dict(orient="records"),
                "verdicts": result.verdicts.to_dict(orient="records"),
                "folder": str(result.folder),
                "mlflow_run_id": result.mlflow_id,
            }
        )
        return
    console = _console()
    if found:
        _print_trials(console, found.trials)
    _print_table(console, result.table, f"{study.meta.test_tasks} test tasks, mean ± 95 %")
    console.print()
    if len(result.verdicts):
        _print_table(console, result.verdicts, "meta-learnt over each baseline (positive: better), mean ± paired 95 %")
    _print_report(console, result.folder)
    console.print(f"learner   {_near(result.folder) / 'learner'}")
    support = {"groups": "support.csv", "classes": "support/"}.get(study.meta.episodes.kind)
    in_python = "in Python: polyshot.meta.saved.SavedLearner.load(learner).adapt(x, y)"
    console.print(f"adapt     {f'polyshot adapt {_near(result.folder)} {support}' if support else in_python}")


@app.command(rich_help_panel=FEW)
def adapt(
    run: Annotated[
        str, typer.Argument(help="A meta-learning run's folder, or its study's file or name.", autocompletion=_runs)
    ],
    support: Annotated[
        str, typer.Argument(help="The new group's labelled rows (CSV or Parquet), or a folder of pictures by class.")
    ],
    steps: Annotated[int | None, typer.Option(help="Gradient steps; as in meta-training by default.", min=0)] = None,
    storage: Annotated[str, typer.Option(help="The folder of runs, or an object store's address.")] = "polyshot-runs",
) -> None:
    """Adapt a meta-learnt learner to a new task's labelled rows or pictures; saves a model that predicts."""
    from polyshot.verbs.adapt import adapt as run_adapt

    result = run_adapt(run, support, steps=steps, storage=storage)
    kind, place = ("pictures", "pictures/") if Path(support).is_dir() else ("rows", "rows.csv")
    typer.echo(f"adapted to {result.rows} labelled {kind}\npredict   polyshot predict {_near(result.folder)} {place}")


@app.command(rich_help_panel=FEW)
def transfer(
    study_file: StudyFile,
    settings: Settings = None,
    search: Annotated[bool, typer.Option("--search", help="Search the spaces of the study's `search` first.")] = False,
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Move what was learned elsewhere to this study's tasks by several methods; tell whether each helped or hurt."""
    study = _load(study_file, settings)
    found: TransferSearchResult | None = None
    with _at_work(study, "transfer") as display:
        if search:
            from polyshot.verbs.transfer_search import transfer_search

            found = transfer_search(study, fresh=fresh, progress=display)
            result = found.best
        else:
            from polyshot.verbs.transfer import transfer as run_transfer

            result = run_transfer(study, fresh=fresh, progress=display)
    if as_json:
        _print_json(
            _searched(found)
            | {
                "table": result.table.to_dict(orient="records"),
                "recommended": result.recommended,
                "method": result.method,
                "folder": str(result.folder),
                "mlflow_run_id": result.mlflow_id,
            }
        )
        return
    console = _console()
    if found:
        _print_trials(console, found.trials)
    _print_transfer(console, result)
    _print_next(console, study, result.folder)


@app.command(rich_help_panel=FEW)
def rank_sources(
    study_file: StudyFile,
    runs: Annotated[
        list[str], typer.Argument(help="Trained runs, or study files (from the study's folder).", autocompletion=_runs)
    ],
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Rank trained models by what they promise for this study's tasks, told without training."""
    study = _load(study_file, settings)
    with _at_work(study, "rank-sources") as display:
        from polyshot.verbs.transfer_sources import rank_sources as run_rank_sources

        table = run_rank_sources(study, runs, progress=display)
    if as_json:
        _print_json(table.to_dict(orient="records"))
        return
    console = _console()
    for task, rows in table.groupby("task", sort=False):
        _print_table(console, rows.drop(columns="task"), f"{task} (higher is better; the best LogME first)")


@app.command(rich_help_panel=FEW)
def features(
    run: Annotated[
        str, typer.Argument(help="A run's folder, a study's name or file, or an MLflow run id.", autocompletion=_runs)
    ],
    rows: Annotated[str, typer.Argument(help="A CSV or Parquet file of rows.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="A .parquet or .csv file.", show_default=False)],
    layer: Annotated[
        str, typer.Option(help="A module of the model, e.g. sharing.encoder.blocks.0; by default what the heads read.")
    ] = "representation",
    pca: Annotated[int | None, typer.Option(help="Keep so many principal components.", min=1)] = None,
    mutual_information: Annotated[
        int | None, typer.Option(help="Keep so many units, those that tell most about --target.", min=1)
    ] = None,
    target: Annotated[str | None, typer.Option(help="The column to tell about.")] = None,
    storage: Annotated[str, typer.Option(help="The folder of runs, or an object store's address.")] = "polyshot-runs",
) -> None:
    """Write what a trained model computes for rows in one of its layers."""
    from polyshot.verbs.features import features as run_features

    kept = {"pca": pca, "mutual_information": mutual_information, "target": target}
    table = run_features(run, rows, layer=layer, storage=storage, **kept)  # type: ignore[arg-type]
    _write_rows(table, output)


@app.command(rich_help_panel=USE)
def predict(
    run: Annotated[
        str, typer.Argument(help="A run's folder, a study's name or file, or an MLflow run id.", autocompletion=_runs)
    ],
    rows: Annotated[
        str, typer.Argument(help="A CSV or Parquet file of rows; or a folder of pictures.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .csv or .parquet file; else printed.")
    ] = None,
    storage: Annotated[str, typer.Option(help="The folder of runs, or an object store's address.")] = "polyshot-runs",
    as_json: AsJson = False,
) -> None:
    """Predict new rows with a trained model."""
    from polyshot.verbs.predict import predict as run_predict

    predicted = run_predict(run, rows, storage=storage)
    if output is not None:
        _write_rows(predicted, output)
    elif as_json:
        _print_json(predicted.to_dict(orient="records"))
    else:
        typer.echo(predicted.to_csv(index=False), nl=False)


@app.command(rich_help_panel=USE)
def serve(
    run: Annotated[
        str, typer.Argument(help="A run's folder, a study's name or file, or an MLflow run id.", autocompletion=_runs)
    ],
    host: Annotated[str, typer.Option(help="The address to listen on; by default this machine's own.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for any that is free.", min=0, max=65535)] = 8000,
    storage: Annotated[str, typer.Option(help="The folder of runs, or an object store's address.")] = "polyshot-runs",
) -> None:
    """Serve a trained model over HTTP: rows in, the predictions of all tasks out."""
    from polyshot.verbs.serve import serve as run_serve

    try:
        run_serve(run, host=host, port=port, storage=storage, tell=typer.echo)
    except KeyboardInterrupt:
        typer.echo("stopped", err=True)


@app.command(rich_help_panel=LOOK)
def compare(
    study_file: Annotated[
        str, typer.Argument(help="A study file or a study's name.", metavar="STUDY", autocompletion=_runs)
    ],
    storage: Annotated[str, typer.Option(help="The folder of runs, when a name is given.")] = "polyshot-runs",
    kind: Annotated[str | None, typer.Option(help="Only runs of this kind: train, search, trial, baseline.")] = None,
    limit: Annotated[int, typer.Option(help="Rows to print; 0 for all.", min=0)] = 30,
    as_json: AsJson = False,
) -> None:
    """Print the runs of a study as a table, the best first."""
    from polyshot.verbs.compare import compare as run_compare

    table = run_compare(study_file, storage=storage, kind=kind)
    if as_json:
        _print_json(table.to_dict(orient="records"))
        return
    _print_table(_console(), table.drop(columns="run_id").head(limit or len(table)), f"{len(table)} runs")


@app.command(rich_help_panel=LOOK)
def report(
    run: Annotated[
        str,
        typer.Argument(help="A run's folder, a study's name or file, or an MLflow run id.", autocompletion=_runs),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The HTML file; else report.html in the run's folder.")
    ] = None,
    storage: Annotated[str, typer.Option(help="The folder of runs, or an object store's address.")] = "polyshot-runs",
    show: Annotated[bool, typer.Option("--open", help="Also open it in the browser.")] = False,
) -> None:
    """Write a run's report: one HTML page with verdict, tables, plots, and how to run it again."""
    from polyshot.verbs.report import report as write_report

    path = write_report(run, storage=storage, output=output)
    typer.echo(_near(path))
    if show:
        typer.launch(path.resolve().as_uri())


@app.command(rich_help_panel=LOOK)
def ui(
    study_file: Annotated[
        Path | None,
        typer.Argument(
            help="A study file; else the local store.", metavar="STUDY", autocompletion=completion.study_files
        ),
    ] = None,
    storage: Annotated[str, typer.Option(help="The folder of runs, when no study is given.")] = "polyshot-runs",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 5000,
) -> None:
    """Open the MLflow UI on this machine (loopback only)."""
    from polyshot.study import Study
    from polyshot.verbs.ui import ui as run_ui

    run_ui(Study.load(study_file) if study_file else None, storage=storage, port=port)


@app.command(rich_help_panel=LOOK)
def sync(study_file: StudyFile) -> None:
    """Send to MLflow what could not be sent while its server was away."""
    from polyshot.study import Study
    from polyshot.tracking.sync import sync as run_sync

    typer.echo(run_sync(Study.load(study_file)))


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True}, rich_help_panel=CLUSTER)
def submit(
    context: typer.Context,
    verb: Annotated[str, typer.Argument(help="train, search, affinity, meta or transfer.", show_default=False)],
    study_file: StudyFile,
    address: Address = None,
    wait: Annotated[bool, typer.Option("--wait", help="Follow the job; end as it does, with its exit code.")] = False,
    with_data: Annotated[bool, typer.Option("--with-data", help="Upload tables beside the study file, too.")] = False,
    cpus: Annotated[float, typer.Option(help="CPUs for the job's own process; else it runs on the head.", min=0)] = 0,
    gpus: Annotated[float, typer.Option(help="GPUs for the job's own process.", min=0)] = 0,
) -> None:
    """Run a verb as a job on a Ray cluster; the verb's own options follow the study."""
    from polyshot.verbs import submit as on_cluster

    # The verb's options are looked at here: what it would refuse on the cluster is refused now.
    of_verb = typer.main.get_command(app).commands.get(verb)  # type: ignore[attr-defined]  # it is a group
    chosen = of_verb.make_context(verb, [str(study_file), *context.args]).params if of_verb else {}
    study = _load(study_file, chosen.get("settings"))
    job = on_cluster.submit(
        verb, study_file, context.args, study=study, address=address, with_data=with_data, cpus=cpus, gpus=gpus
    )
    typer.echo(job.id)
    if not study.tracking.uri and os.environ.get("MLFLOW_TRACKING_URI"):
        typer.echo("MLFLOW_TRACKING_URI is not sent along: the job records where the nodes' environment says", err=True)
    if wait:
        raise typer.Exit(_follow(job.id, address))
    at = f" --address {address}" if address else ""
    typer.echo(f"follow    polyshot logs {job.id} -f{at}\nstop      polyshot stop {job.id}{at}", err=True)


@app.command(rich_help_panel=CLUSTER)
def jobs(address: Address = None, as_json: AsJson = False) -> None:
    """List the jobs of a cluster, the newest first."""
    from polyshot.verbs.jobs import jobs as list_jobs

    table = list_jobs(address)
    if as_json:
        _print_json(table.to_dict(orient="records"))
        return
    _print_table(_console(), table, f"{len(table)} jobs")


@app.command(rich_help_panel=CLUSTER)
def status(job: JobName, address: Address = None) -> None:
    """Print how a job stands."""
    from polyshot.verbs.jobs import status as look

    found = look(job, address)
    ended = f", exit code {found.exit_code}" if found.exit_code is not None else ""
    typer.echo(f"{found.status}{ended}\n{found.command}" + (f"\n{found.message}" if found.message else ""))


@app.command(rich_help_panel=CLUSTER)
def logs(
    job: JobName,
    address: Address = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job ends, and end with its exit code.")
    ] = False,
) -> None:
    """Print what a job has printed."""
    if follow:
        raise typer.Exit(_follow(job, address))
    from polyshot.verbs.jobs import logs as read

    typer.echo(read(job, address), nl=False)


@app.command(rich_help_panel=LOOK)
def watch(
    run: Annotated[
        str,
        typer.Argument(
            help="A run's folder, a study's name or file, an MLflow run id; or a job of a cluster.",
            autocompletion=_runs,
        ),
    ],
    address: Address = None,
    storage: Annotated[str, typer.Option(help="The folder of runs, or an object store's address.")] = "polyshot-runs",
) -> None:
    """Watch a run of another process, or with --address a job, until it ends. Ctrl-C leaves it running."""
    if address is not None:
        raise typer.Exit(_follow(run, address))
    from polyshot.display import Display
    from polyshot.verbs.watch import watch as run_watch

    try:
        with Display(sys.stderr) as display:
            ended = run_watch(run, storage=storage, progress=display)
    except KeyboardInterrupt:
        typer.echo("the run goes on", err=True)
        raise typer.Exit(130) from None
    words = {
        "finished": "; polyshot report shows what came of it",
        "interrupted": "; the same command goes on from there",
    }
    typer.echo(f"{run}: {ended}{words.get(ended, '')}", err=True)
    if ended != "finished":
        raise typer.Exit(1)


@app.command(rich_help_panel=CLUSTER)
def stop(job: JobName, address: Address = None) -> None:
    """Ask a job to stop, as Ctrl-C would; the same command goes on from there."""
    from polyshot.verbs.jobs import stop as ask

    typer.echo("it stops" if ask(job, address) else "it had ended")


def _follow(job: str, address: str | None) -> int:
    """Show what the job prints until it ends; its exit code. Ctrl-C leaves the job running."""
    from polyshot.verbs.jobs import follow

    def write(text: str) -> None:
        typer.echo(text, nl=False)

    try:
        ended = follow(job, address, write=write)
    except KeyboardInterrupt:
        at = f" --address {address}" if address else ""
        typer.echo(
            f"\nthe job goes on; polyshot logs {job} -f{at} follows it, polyshot stop {job}{at} ends it", err=True
        )
        return 130
    typer.echo(f"{job}: {ended.status}, exit code {ended.exit_code} {ended.message}".rstrip(), err=True)
    return int(ended.exit_code or 0)


@app.command(rich_help_panel=START)
def demo(
    keep: Annotated[Path, typer.Option(help="The folder of its tables, studies and runs.", metavar="FOLDER")] = Path(
        "polyshot-demo"
    ),
) -> None:
    """Train, search, meta-learn and transfer on small real tables: what there is, in three minutes."""
    from polyshot.demo import STEPS, write_demo

    write_demo(keep)
    started, command = time.monotonic(), typer.main.get_command(app)
    typer.echo(f"Tables, study files and runs of this demo are in {keep}; each command is one of yours there:\n")
    typer.echo(f"$ cd {keep}")
    with chdir(keep):
        for step in STEPS:
            typer.echo(f"\n{_wrapped(step.question)}\n\n$ polyshot {' '.join(step.command)}")
            if code := command.main(list(step.command), prog_name="polyshot", standalone_mode=False):
                raise typer.Exit(code)
            typer.echo(f"\n{_wrapped(step.answer)}")
    reports = sorted(keep.glob("polyshot-runs/*/*/report.html"), key=lambda page: page.stat().st_mtime)
    typer.echo(f"\nThat took {time.monotonic() - started:.0f} seconds. Each run has a report, and is in MLflow:\n")
    for page in reports[-len(STEPS) :]:
        typer.echo(f"report    {page}")
    typer.echo(
        f"MLflow    polyshot ui --storage {keep / 'polyshot-runs'}, then open http://127.0.0.1:5000\n"
        f"go on     cd {keep}; change a study, and type a command again\n"
        "yours     polyshot init TABLE.csv"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 100, initial_indent="# ", subsequent_indent="# ")


@app.command(rich_help_panel=START)
def version() -> None:
    """Print the versions of Polyshot and of the libraries under it."""
    from importlib.metadata import version as version_of

    for package in ("polyshot", "ray", "torch", "optuna", "mlflow", "learn2learn"):
        typer.echo(f"{package} {version_of(package)}")


# --- the study -------------------------------------------------------------------------------------------------------


def _load(path: Path, settings: list[str] | None, values: dict[str, Any] | None = None) -> Study:
    """The study with the values that the command line sets."""
    from polyshot.study import Study
    from polyshot.study_file import parse_yaml

    study = Study.load(path)
    chosen = dict(values or {})
    for setting in settings or []:
        key, equals, text = setting.partition("=")
        if not equals:
            raise StudyError([Problem(f"--set {setting}", "must be of the form KEY=VALUE, e.g. training.epochs=5")])
        chosen[key] = parse_yaml(text, f"--set {key}")[0]
    return study.with_values(chosen) if chosen else study


# --- showing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _at_work(study: Study, verb: str) -> Iterator[Display]:
    """A progress display on the terminal, with the noise of libraries in a log file."""
    from polyshot.display import Display
    from polyshot.quiet import quiet

    log = study.storage_folder / "logs" / f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}.log"
    try:
        with quiet(log) as (_, errors), Display(errors) as display:
            try:
                yield display
            except Exception as error:
                traceback.print_exc()  # into the log
                error.log = log  # type: ignore[attr-defined]
                raise
    except KeyboardInterrupt as stopped:
        typer.echo("stopped; the same command goes on from here", err=True)
        _echo_notes(stopped)
        raise typer.Exit(130) from None


def _console() -> Console:
    from rich.console import Console

    # Wider than any terminal: a line that runs over reads better than columns that are squeezed to a letter.
    return Console(highlight=False, width=1000)


def _print_json(value: Any) -> None:
    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(entry) for key, entry in item.items()}
        if isinstance(item, list):
            return [plain(entry) for entry in item]
        if hasattr(item, "item"):
            item = item.item()
        # JSON has no NaN: what is undefined is null.
        return None if isinstance(item, float) and item != item else item

    typer.echo(json.dumps(plain(value), indent=2, default=str))


def _write_rows(table: pd.DataFrame, output: Path) -> None:
    if output.suffix == ".parquet":
        table.to_parquet(output)
    else:
        table.to_csv(output, index=False)
    typer.echo(f"Wrote {len(table)} rows to {output}", err=True)


def _print_table(console: Console, table: pd.DataFrame, title: str) -> None:
    from rich.table import Table

    from polyshot.report.words import short_names

    shown = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name, words in zip(table.columns, short_names(table.columns), strict=True):
        justify = "right" if table[name].dtype.kind in "if" else "left"
        shown.add_column(words, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for row in table.itertuples(index=False):
        shown.add_row(*(_word(value) for value in row))
    console.print(shown)


def _word(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.4g}"
    return "–" if value is None else str(value)


def _print_comparison(console: Console, metrics: pd.DataFrame) -> None:
    from polyshot.results import percent

    table = metrics.copy()
    for name in {"improvement", "low", "high"} & set(table):
        table[name] = [percent(value) for value in table[name]]
    _print_table(console, table.rename(columns=lambda name: name.replace("_", " ")), "")


def _print_verdict(console: Console, study: Study, result: TrainResult | SearchResult, seeds: int = 1) -> None:
    """Δm, and of each task whether learning together helped or hurt it, or cannot be told from the test rows."""
    from polyshot.results import verdict_words

    drawn = f"test groups of '{study.data.group}'" if study.data.group else "test rows"
    drawn = f"{seeds} seeds" if seeds > 1 else drawn
    for number, sentence in enumerate(verdict_words(result.metrics, result.improvement, result.interval, drawn)):
        console.print(sentence if number else f"\n{sentence}")


def _print_transfer(console: Console, result: TransferResult) -> None:
    """For each task, methods beside training from scratch at each budget; then what is recommended."""
    import pandas as pd

    from polyshot.study.transfer import SCRATCH

    for task, rows in result.table.groupby("task", sort=False):
        metric = rows["metric"].iloc[0]
        console.print(f"\n{task}: {metric} on test and its difference from scratch (positive: better), 95 % intervals")
        needed = rows["scratch_labels"].round().astype(int).astype(str)
        shown = pd.DataFrame(
            {
                "labels": rows["labels"],
                "method": rows["method"],
                metric: rows["value"],
                "interval": _intervals(rows["low"], rows["high"]),
                "difference": rows["difference"].map("{:+.4g}".format),
                "its interval": _intervals(rows["difference_low"], rows["difference_high"]),
                "verdict": rows["verdict"],
                "scratch needs": rows["is_more"].map({True: "> ", False: ""})
                + rows["is_fewer"].map({True: "< ", False: ""})
                + needed,
                "steps": rows["steps"].round().astype(int),
                "seconds": rows["seconds"].round(2),
            }
        )
        shown.loc[rows["method"] == SCRATCH, ["difference", "its interval", "scratch needs"]] = None
        _print_table(console, shown, "")
    console.print(
        "\nscratch needs: labels with which training from scratch gets as far; steps: until within 5 % of the end"
    )
    for budget, method in result.recommended.items():
        console.print(f"Recommended with {f'{budget} labels' if budget != 'all' else 'all labels'}: {method}.")
    if result.method != list(result.recommended.values())[-1]:
        console.print(f"The guard gives back {result.method}: no transferred model is better on validation.")


def _intervals(low: pd.Series, high: pd.Series) -> list[str | None]:
    return [None if a != a else f"{a:.4g} to {b:.4g}" for a, b in zip(low, high, strict=True)]


def _print_groups(console: Console, study_file: Path, result: AffinityResult) -> None:
    """The networks proposed, and the commands that train them."""
    import pandas as pd

    lists = result.groups[["tasks", "serves"]].map(", ".join)
    values = [", ".join(f"{value:+.3g}" for value in row) for row in result.groups["predicted"]]
    console.print("\nProposed networks, and what they are predicted to give the tasks they serve (0: as alone):")
    _print_table(console, pd.concat([lists, pd.Series(values, lists.index, name="predicted")], axis=1), "")
    _print_report(console, result.folder)
    for path in result.studies:
        console.print(f"train     polyshot train {_near(path)}")
    if result.is_partition and len(result.studies) > 1:
        groups = "[" + ", ".join(f"[{tasks}]" for tasks in lists["tasks"]) + "]"
        sharing = f"--set 'model.sharing={{kind: grouped, groups: {groups}}}'"
        console.print(f"or        polyshot train {study_file} {sharing}  (one model)", markup=False)


def _near(path: Path) -> Path:
    """The path as it is typed from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _searched(found: MetaSearchResult | TransferSearchResult | None) -> dict[str, Any]:
    """What `--json` says of the search, if there was one."""
    if found is None:
        return {}
    return {"best_values": found.best_values, "trials": found.trials.to_dict(orient="records")}


def _print_trials(console: Console, trials: pd.DataFrame) -> None:
    _print_table(console, trials.head(10).dropna(axis=1, how="all"), "best trials")


def _print_report(console: Console, folder: Path) -> None:
    console.print()
    if (folder / "report.html").exists():  # the log says why it could not be written
        console.print(f"report    {_near(folder) / 'report.html'}")


def _print_next(console: Console, study: Study, folder: Path) -> None:
    store = "" if study.storage == "polyshot-runs" else f" --storage {study.storage}"
    _print_report(console, folder)
    folder = _near(folder)
    console.print(f"model     {folder / 'model'}")
    console.print(f"predict   polyshot predict {folder} rows.csv")
    console.print(f"compare   polyshot compare {study.name}{store}, or polyshot ui{store} for MLflow")


# --- the entry -------------------------------------------------------------------------------------------------------


def main() -> None:
    """Run the command line; faults that the user can mend are one sentence each and exit code 2."""
    try:
        app()
    except StudyError as error:
        for problem in error.problems:
            typer.echo(f"error: {problem}", err=True)
        sys.exit(exit_code(error))
    except PolyshotError as error:
        typer.echo(f"error: {error}", err=True)
        _echo_notes(error)
        sys.exit(exit_code(error))
    except Exception as error:  # noqa: BLE001 - a fault of ours, whatever it is
        log = getattr(error, "log", None)
        if log is None:
            traceback.print_exc()
        typer.echo(f"This is a fault of Polyshot, not of your study: {type(error).__name__}: {error}", err=True)
        if log is not None:
            typer.echo(f"Details: {log}", err=True)
        sys.exit(exit_code(error))


def _echo_notes(error: BaseException) -> None:
    """What else is to be told of how a command ended."""
    for note in getattr(error, "__notes__", []):
        typer.echo(note, err=True)


if __name__ == "__main__":
    main()
