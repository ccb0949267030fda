"""The type of matrix products: as set, or the faster one on this device."""

import time
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from protein_lm.choices import Precision
from protein_lm.errors import ConfigError

_SMALL, _MIDDLE, _LARGE = 128, 256, 512
"""Sizes of the square matrices that processors multiply. The first shows emulated bfloat16, in about 20 ms."""
_OF_ACCELERATORS = 4096
"""Size for other devices, where starting a small product takes longer than computing it."""
_SURELY_EMULATED = 1 / 4
"""Speed of bfloat16, relative to float32, below which it is surely emulated."""


class Choice(NamedTuple):
    """The type of a device's matrix products, and the reason."""

    precision: Precision
    """float32 or bfloat16."""
    reason: str
    """A line for the user; empty where there is nothing to say."""

    def context(self, device: str, *, keeps_copies: bool = True) -> AbstractContextManager[Any]:
        """Return a context in which products have this type; copies of weights for them are kept to its end, or not."""
        if self.precision is not Precision.BFLOAT16:
            return nullcontext()
        return torch.autocast(device, torch.bfloat16, cache_enabled=keeps_copies)


def choose(wanted: Precision, device: str) -> Choice:
    """Choose the precision.

    Args:
        wanted: a precision; auto is bfloat16 where its products are faster than those of float32, else float32.
        device: type of the device in torch: cpu, cuda, mps.

    Raises:
        ConfigError: bfloat16 is asked for, and the device cannot do it at all.
    """
    if wanted is Precision.FLOAT32:
        return Choice(wanted, "")
    speed = bfloat16_speed(device)
    if wanted is Precision.AUTO:
        chosen = Precision.BFLOAT16 if speed > 1 else Precision.FLOAT32
        return Choice(chosen, f"precision: {chosen.value}, by auto: on this {_name(device)} {_described(speed)}")
    if not speed:
        raise ConfigError(f"precision bfloat16: this {_name(device)} cannot multiply bfloat16; choose float32 or auto")
    slow = f"precision: bfloat16, as set, but on this {_name(device)} {_described(speed)}; auto would choose float32"
    return Choice(wanted, "" if speed > 1 else slow)


def describe(device: str) -> str:
    """Return a line for the user: the speed of bfloat16 on a device, and the choice of auto."""
    speed = bfloat16_speed(device)
    chosen = choose(Precision.AUTO, device).precision.value
    return f"precision: on this {_name(device)} {_described(speed)}; auto chooses {chosen}"


def _name(device: str) -> str:
    return {"cpu": "processor", "cuda": "GPU"}.get(device, device)


def _described(speed: float) -> str:
    if not speed:
        return "bfloat16 cannot be multiplied"
    factor = f"{max(speed, 1 / speed):,.{1 if 0.1 < speed < 10 else 0}f} times as"
    return f"products in bfloat16 are {factor} {'fast' if speed > 1 else 'slow'} as in float32"


@lru_cache
def bfloat16_speed(device: str) -> float:
    """Measure the speed of bfloat16 products on a device, relative to float32; 0 if it has none.

    Measured once per process: it depends on the processor, on its libraries and on their settings.
    """
    try:
        if device != "cpu":
            return _relative_speed(device, _OF_ACCELERATORS, repeats=3)
        if _relative_speed(device, _SMALL, repeats=2) < _SURELY_EMULATED:
            return _relative_speed(device, _MIDDLE, repeats=1)
        return _relative_speed(device, _LARGE, repeats=5)
    except (RuntimeError, TypeError):  # what backends raise for a type that they lack
        return 0.0


def _relative_speed(device: str, size: int, *, repeats: int) -> float:
    """Return the time of a float32 product over that of a bfloat16 product: the fastest of each, taken in turns."""
    float32 = torch.ones(size, size, device=device)
    operands = float32, float32.to(torch.bfloat16)
    fastest = [float("inf"), float("inf")]
    with torch.autocast(device, enabled=False), torch.inference_mode():
        for repeat in range(repeats + 1):
            for index, operand in enumerate(operands):
                _wait_for(device)
                start = time.perf_counter()
                torch.mm(operand, operand)
                _wait_for(device)
                if repeat:  # the first is a warm-up
                    fastest[index] = min(fastest[index], time.perf_counter() - start)
    return fastest[0] / fastest[1]


def _wait_for(device: str) -> None:
    if device != "cpu":
        torch.accelerator.synchronize()
