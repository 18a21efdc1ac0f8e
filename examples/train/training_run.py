"""The folder of a training run: its log, its weights, and the state it goes on from after a kill.

log.jsonl: a row every SAVE_EVERY steps and one after each stage. state.pt: everything that the next step depends on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from vtn_export.model.schedule import Stage
from vtn_export.model.vtn import VTN

SAVE_EVERY = 100  # steps
WARM_UP = 100  # steps
Batch = TypeVar("Batch")


class Run:
    """A run in `out`, begun or gone on with. `stage`: the one that is next or under way; `step`: of it."""

    def __init__(self, out: Path, settings: Any) -> None:
        """settings: a dataclass; SystemExit where the folder has a run with others."""
        self.out = out
        self.stage, self.step = 0, 0
        self._settings = json.dumps(asdict(settings))
        self._state: dict[str, Any] | None = None
        out.mkdir(parents=True, exist_ok=True)
        path = out / "state.pt"
        if path.exists():
            self._state = torch.load(path, weights_only=True)
            if self._state["settings"] != self._settings:
                raise SystemExit(f"{path}: of a run with other settings; choose another --out or delete it")
            self.stage, self.step = self._state["stage"], self._state["step"]

    def restore(self, modules: dict[str, nn.Module]) -> None:
        """Weights as they were saved; nothing on a new run."""
        if self._state is not None:
            for name, module in modules.items():
                module.load_state_dict(self._state["modules"][name])

    def learn(
        self,
        part: str,
        stage: Stage,
        modules: dict[str, nn.Module],
        learned: Iterable[nn.Parameter],
        batches: Callable[[int], Iterator[Batch]],
        losses: Callable[[Batch], tuple[Tensor, dict[str, float]]],
    ) -> None:
        """The rest of a stage's steps: AdamW, a warm-up and a cosine to nothing.

        batches: from a step on. losses: what to minimise, and what to log, of a batch.
        """
        from rich.progress import Progress

        parameters = list(learned)
        optimizer = torch.optim.AdamW(parameters, lr=stage.learning_rate, weight_decay=0.02)
        if self._state is not None and self._state["optimizer"] is not None:
            optimizer.load_state_dict(self._state["optimizer"])
        self._state = None
        sums: dict[str, float] = {}
        began, seen = time.perf_counter(), self.step
        with Progress() as bar:
            task = bar.add_task(f"{part}: {stage.frames} frames", total=stage.steps, completed=self.step)
            for batch in batches(self.step):
                loss, row = losses(batch)
                for group in optimizer.param_groups:
                    group["lr"] = stage.learning_rate * _share(self.step, stage.steps)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                self.step += 1
                sums = {name: sums.get(name, 0.0) + value for name, value in row.items()}
                bar.update(task, completed=self.step)
                if self.step % SAVE_EVERY == 0 or self.step == stage.steps:
                    done = self.step - seen
                    means = {name: round(value / done, 5) for name, value in sums.items()}
                    seconds = round((time.perf_counter() - began) / done, 4)
                    self.log({"part": part, **asdict(stage), "step": self.step, **means, "seconds_a_step": seconds})
                    began, seen, sums = time.perf_counter(), self.step, {}
                    if self.step < stage.steps:
                        self._save(modules, optimizer)

    def finish(self, part: str, stage: Stage, modules: dict[str, nn.Module], heldout: dict[str, float]) -> None:
        """A stage is done, and what was measured after it; `modules` are what the next one begins with."""
        self.log({"part": part, **asdict(stage), "heldout": heldout})
        self.stage, self.step = self.stage + 1, 0
        self._save(modules, None)

    def log(self, row: dict[str, Any]) -> None:
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps(row) + "\n")

    def write_weights(self, model: VTN) -> None:
        from safetensors.torch import save_file

        path = self.out / "model.safetensors"
        temporary = path.with_name(f".{path.name}")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, temporary)
        temporary.replace(path)

    def _save(self, modules: dict[str, nn.Module], optimizer: torch.optim.Optimizer | None) -> None:
        path = self.out / "state.pt"
        temporary = path.with_suffix(".part")
        state = {
            "settings": self._settings, "stage": self.stage, "step": self.step,
            "modules": {name: module.state_dict() for name, module in modules.items()},
            "optimizer": optimizer.state_dict() if optimizer else None,
        }  # fmt: skip
        torch.save(state, temporary)
        temporary.replace(path)


def _share(step: int, steps: int) -> float:
    """Of a stage's learning rate."""
    warm = min(1.0, (step + 1) / min(WARM_UP, steps))
    return float(warm * (0.51 + 0.49 * np.cos(np.pi * step / steps)))
