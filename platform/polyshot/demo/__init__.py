"""What `polyshot demo` shows: four commands, the study files that they take, and what each of them tells.

The tables are scikit-learn's own, 442 patients with diabetes (Efron et al. 2004) and 1,797 written digits, which are
installed with it. Called by the command line, which runs the commands; nothing heavy is imported before tables are
written.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

STUDIES = ("blood.yaml", "digits.yaml", "progression.yaml")
MEASURED = 300  # patients in the table of blood values; the others are those whose disease is followed


@dataclass(frozen=True)
class Step:
    """A command, as typed after `polyshot`, with what it asks and how its answer is read."""

    command: tuple[str, ...]
    question: str
    answer: str


STEPS = (
    Step(
        ("train", "blood.yaml"),
        "Four blood values of 300 patients, predicted from age, sex, body mass and blood pressure by one network. Is "
        "that better than a network for each?",
        "single task is the baseline, learnt alone under the same budget. A task is helped or hurt where the interval "
        "of its improvement leaves out 0. With 45 test rows most are within noise, and are called that.",
    ),
    Step(
        ("search", "blood.yaml"),
        "Which task weights and which learning rate would be better? Optuna draws them, Ray runs the trials.",
        "The best trial was chosen on validation. It is compared with single tasks that were given its settings too, "
        "so that what tuning gave is not taken for what sharing gave.",
    ),
    Step(
        ("meta", "digits.yaml"),
        "Can a network learn to tell apart five shapes that it has never seen (digits, upright or turned), from one "
        "picture of each?",
        "Each row is a method in the same few-shot tasks. The verdicts are differences to each baseline. Where a "
        "simple method is as good, use that one.",
    ),
    Step(
        ("transfer", "progression.yaml"),
        "How the disease of 142 other patients went on is known for few. Does what the blood values taught help?",
        "Each method stands beside training from scratch on the same labels: helped, hurt or within noise by a paired "
        "test. 'scratch needs' is how many labels training from scratch would have taken to get as far.",
    ),
)


def write_demo(folder: Path) -> None:
    """Write the study files and tables into `folder`; what is there already stays as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in STUDIES:
        if not (folder / name).exists():
            (folder / name).write_text((files(__package__) / name).read_text(encoding="utf-8"), encoding="utf-8")
    if not ((folder / "blood.csv").exists() and (folder / "progression.csv").exists()):
        from polyshot.demo.tables import patients

        table = patients()
        table.iloc[:MEASURED].drop(columns="progression").to_csv(folder / "blood.csv", index=False)
        table.iloc[MEASURED:][["age", "sex", "bmi", "pressure", "progression"]].to_csv(
            folder / "progression.csv", index=False
        )
