"""Trackers get the numbers of metrics.jsonl, go on with a resumed run, and never take a run down with them."""

import warnings

import pytest
from accelerate import tracking

from protein_lm.choices import TrackerName
from protein_lm.errors import ConfigError
from protein_lm.training.language_modelling import LanguageModelling
from protein_lm.training.loop import Trainer
from protein_lm.training.run_log import RunLog, read_metrics
from tests.conftest import small_recipe


def test_accelerate_knows_every_tracker() -> None:
    assert {name.value for name in TrackerName} == set(tracking.LOGGER_TYPE_TO_CLASS)


def test_a_missing_package_is_told_before_the_run(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(
        ConfigError, match=r"training\.trackers: wandb is not installed; run pip install wandb, or leave"
    ):
        Trainer(LanguageModelling(small_recipe(trackers=["wandb"]), corpus), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_the_numbers_of_a_resumed_run_once(corpus, tmp_path) -> None:
    pytest.importorskip("tensorboard")
    recipe = small_recipe(num_steps=60, checkpoint_every=20, validate_every=20, trackers=["tensorboard"])
    run = tmp_path / "run"
    broken = Trainer(LanguageModelling(recipe, corpus), run)
    step = broken._step

    class Stopped(Exception):
        pass

    def stop_at_45(batches):
        if broken.progress.step == 45:
            raise Stopped
        return step(batches)

    broken._step = stop_at_45  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        broken.fit()
    resumed = Trainer(LanguageModelling(recipe, corpus), run, resume=True)
    assert resumed.progress.step == 40
    resumed.fit()
    tracked, rows = scalars(run / "tensorboard"), read_metrics(run)
    for split in ("train", "valid"):
        expected = [(each["step"], pytest.approx(each["loss_nats"])) for each in rows if each["split"] == split]
        assert tracked[f"{split}/loss_nats"] == expected and len(expected) == 3
    assert {"train/gradient_norm", "train/learning_rate", "valid/perplexity"} <= tracked.keys()
    Trainer(
        LanguageModelling(small_recipe(num_steps=60, checkpoint_every=20, validate_every=20), corpus), run, resume=True
    )  # watched no more


class Failing:
    """A tracker whose server is away."""

    requires_logging_directory = False

    def __init__(self, *_: object, **__: object) -> None: ...

    def start(self) -> None:
        raise RuntimeError("no login")

    def log(self, *_: object) -> None:
        raise RuntimeError("no network")

    def finish(self) -> None:
        raise AssertionError("it was let go")


def test_a_tracker_that_does_not_start_leaves_no_run(corpus, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tracking, "_available_trackers", ["wandb"])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "wandb", Failing)
    trainer = Trainer(LanguageModelling(small_recipe(trackers=["wandb"]), corpus), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"training\.trackers: wandb does not start: no login"):
        trainer.fit()
    assert not (tmp_path / "run").exists()


def test_a_tracker_that_fails_later_is_let_go(tmp_path, capsys) -> None:
    values = {"loss_nats": 2.0, "perplexity": 7.4, "accuracy": 0.2, "tokens_per_second": 1.0, "num_skipped_steps": 0}
    with RunLog(tmp_path, step=0, num_steps=40, active=True, trackers=[Failing()]) as log:  # type: ignore[list-item]
        log.row(step=20, split="train", **values)
        log.row(step=40, split="train", **values)
    assert capsys.readouterr().err.count("Failing failed and gets nothing more: no network") == 1
    assert len(read_metrics(tmp_path)) == 2
