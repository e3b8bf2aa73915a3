"""A learner of pictures adapts to folders of files, and the model that it becomes predicts files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from polyshot.errors import DataError, RunError
from polyshot.meta.pictures import PictureModel
from polyshot.meta.saved import SavedLearner
from polyshot.study import Study
from polyshot.verbs.meta import meta_learn

SOURCE = """
import numpy as np

def patterns(count=30, each=6, seed=0):
    random = np.random.default_rng(seed)
    kinds = np.repeat(random.integers(0, 2, (count, 1, 8, 8)), each, 0) * 200
    return (kinds + random.integers(0, 56, kinds.shape)).astype(np.uint8), np.repeat(np.arange(count), each)
"""


def write_pictures(folder: Path, seed: int, shots: slice) -> None:
    """Three classes that nobody has seen, a folder for each."""
    scope: dict = {}
    exec(SOURCE, scope)  # noqa: S102 - as it stands above
    pictures, labels = scope["patterns"](3, 6, seed)
    for kind, name in enumerate(("cross", "moon", "star")):
        (folder / name).mkdir(parents=True)
        for number, picture in enumerate(pictures[labels == kind][shots]):
            Image.fromarray(picture[0]).save(folder / name / f"{number}.png")


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sources.py").write_text(SOURCE)
    (folder / "study.yaml").write_text(
        json.dumps(
            {
                "name": "patterns",
                "storage": str(folder / "runs"),
                "meta": {
                    "episodes": {"kind": "classes", "source": "sources:patterns", "ways": 4, "shots": 1, "query": 2},
                    "network": {"kind": "cnn4", "width": 8, "layers": 2},
                    "learner": {"kind": "protonet"},
                    "iterations": 60,
                    "validate_every": 30,
                    "validation_tasks": 20,
                    "test_tasks": 20,
                    "test_steps": 1,
                },
                "scale": {"device": "cpu"},
            }
        )
    )
    return meta_learn(Study.load(folder / "study.yaml"), baselines=False).folder


def test_folders_of_pictures_are_adapted_to_and_others_are_predicted(learnt: Path, tmp_path: Path, polyshot) -> None:
    write_pictures(tmp_path / "support", 7, slice(0, 2))
    write_pictures(tmp_path / "others", 7, slice(2, None))
    done = polyshot("adapt", learnt, "support")
    assert done.code == 0 and "adapted to 6 labelled pictures" in done.out, done.err
    done = polyshot("predict", learnt.parent / "adapt-1", "others", "--json")
    predicted = pd.DataFrame(done.json())
    assert len(predicted) == 12
    assert (predicted["class"] == [Path(path).parent.name for path in predicted["path"]]).mean() > 0.8
    names = ["probability_cross", "probability_moon", "probability_star"]
    np.testing.assert_allclose(predicted[names].sum(axis=1), 1, rtol=1e-5)
    # A table of paths, which start from its folder, is as good as the folder.
    (tmp_path / "lists").mkdir()
    listed = pd.DataFrame({"path": [str(Path("..") / path) for path in predicted["path"]]})
    listed.to_csv(tmp_path / "lists" / "others.csv", index=False)
    done = polyshot("predict", learnt.parent / "adapt-1", "lists/others.csv", "--json")
    pd.testing.assert_frame_equal(pd.DataFrame(done.json())[["class", *names]], predicted[["class", *names]])


def test_pictures_that_cannot_be_learnt_from_are_named(learnt: Path, tmp_path: Path) -> None:
    learner = SavedLearner.load(str(learnt / "learner"))  # as it is printed
    with pytest.raises(DataError, match="no folder of pictures"):
        PictureModel.adapt(learner, tmp_path)
    write_pictures(tmp_path, 7, slice(0, 1))
    Image.new("L", (9, 8)).save(tmp_path / "star" / "wide.png")
    with pytest.raises(DataError, match=r"star/wide.png: is 9×8 pixels and the learner was trained on 8×8"):
        PictureModel.adapt(learner, tmp_path)
    (tmp_path / "star" / "wide.png").write_text("no picture")
    with pytest.raises(DataError, match=r"star/wide.png: cannot be read as a picture"):
        PictureModel.adapt(learner, tmp_path)
    (tmp_path / "star" / "wide.png").unlink()
    model, count = PictureModel.adapt(learner, tmp_path)
    assert count == 3
    with pytest.raises(DataError, match="'path'"):
        model.predict(pd.DataFrame({"file": ["a.png"]}))
    learner.bytes = False
    with pytest.raises(RunError, match="pictures given as bytes"):
        PictureModel.adapt(learner, tmp_path)
