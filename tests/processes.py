"""Four processes that work together, for tests of what is split over processes."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

COUNT = 4
_groups: dict[int, dist.ProcessGroup] = {}


class Processes:
    """Runs a function in all of them at once; in each it gets the groups that the process is in, by their size."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["protein_lm.model.language_model"])
        self._pool = ProcessPoolExecutor(COUNT, mp_context=context)
        list(self._pool.map(_enter, [str(folder / "meeting")] * COUNT, range(COUNT)))

    def run(self, work: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What each process returned, in order."""
        results = self._pool.map(_work, [work] * COUNT, [arguments] * COUNT)
        return [result for _, result in sorted(results, key=lambda pair: pair[0])]

    def stop(self) -> None:
        """End the processes."""
        self._pool.shutdown()


def _enter(meeting: str, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=COUNT, timeout=timedelta(seconds=60)
    )
    pair, _ = dist.new_subgroups(2)
    _groups.update({2: pair, COUNT: dist.group.WORLD})


def _work(work: Callable[..., Any], arguments: tuple) -> tuple[int, Any]:
    dist.barrier()  # so that no process does the work of two
    return dist.get_rank(), work(_groups, *arguments)
