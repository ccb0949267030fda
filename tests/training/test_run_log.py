"""Rows are written whole, and none is lost."""

import errno
import os
from pathlib import Path

import pytest

from protein_lm.errors import OutputError
from protein_lm.training.run_log import METRICS, RunLog, read_metrics


def test_rows_that_a_full_disk_refuses_come_later(tmp_path, monkeypatch, capsys) -> None:
    full = True
    real_open = Path.open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, text):
            self.file.write(text[:5])  # a part of it gets through
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_on_a_full_disk(path, mode="r", **how):
        file = real_open(path, mode, **how)
        return Full(file) if full and mode == "a" else file

    with RunLog(tmp_path, num_steps=3, active=True) as log:
        log.row(step=1)
        monkeypatch.setattr(Path, "open", open_on_a_full_disk)
        log.row(step=2)
        assert (tmp_path / METRICS).read_text() == '{"step": 1}\n'
        full = False
        log.row(step=3)
        assert read_metrics(tmp_path) == [{"step": 1}, {"step": 2}, {"step": 3}]
    assert "the disk is full; free some space or write elsewhere; the run goes on" in capsys.readouterr().err
    full = True
    with pytest.raises(OutputError, match="the disk is full"), RunLog(tmp_path, num_steps=3, active=True) as log:
        log.row(step=4)  # never written: the end of the run says so


def test_a_row_that_was_cut_off_is_left_out(tmp_path) -> None:
    (tmp_path / METRICS).write_text('{"step": 1}\n{"step": 2')
    assert read_metrics(tmp_path) == [{"step": 1}]
    RunLog(tmp_path, num_steps=3, active=True).rewind(5)
    assert (tmp_path / METRICS).read_text() == '{"step": 1}\n'
