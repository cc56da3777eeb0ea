"""A network that gives all voxels one label is told of where it is scored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from unet.commands.one_label import OneLabel, gathered, words
from unet.tasks.lgg.task import LGG

TRUTH = np.zeros((4, 10, 10), np.uint8)
TRUTH[1, :6, :5] = 1  # 7.5 %
WHOLE, NOTHING = np.ones_like(TRUTH), np.zeros_like(TRUTH)
MOSTLY = np.where(np.arange(400).reshape(4, 10, 10) < 385, 2, 0)
FEW = np.where(np.arange(400).reshape(4, 10, 10) == 105, 1, 0)
CELLS = np.where(np.arange(400).reshape(4, 10, 10) % 5 < 4, 1, 0)


def said(*cases: tuple[Any, Any]) -> str:
    found = OneLabel()
    for truth, prediction in cases:
        found.add(lambda truth=truth, prediction=prediction: {"truth": truth, "prediction": prediction})
    return words(gathered([(found.ruled_out, found.counts)]), ("organ", "tumour"))


@pytest.mark.parametrize(
    ("cases", "found"),
    [
        ([(TRUTH, WHOLE)] * 2, "marks 100 % of all voxels as organ, the masks 7.5 %"),
        ([(TRUTH, MOSTLY)], "marks 96.2 % of all voxels as tumour, the masks 0 %"),
        ([(TRUTH, NOTHING), (TRUTH, FEW)], "marks 0.125 % of all voxels, the masks 7.5 %"),
        ([(NOTHING, NOTHING), (TRUTH, NOTHING)], "marks 0 % of all voxels, the masks 7.5 %"),
        ([(CELLS, WHOLE)], "marks 100 % of all voxels as organ, the masks 80 %"),
        ([(TRUTH, TRUTH)], ""),
        ([(TRUTH, WHOLE), (TRUTH, TRUTH)], ""),
        ([(TRUTH, WHOLE), (TRUTH, NOTHING)], ""),
        ([(NOTHING, NOTHING)], ""),
        ([(WHOLE, WHOLE)], ""),
        ([(CELLS, CELLS)], ""),
        ([], ""),
    ],
)
def test_one_label_in_all_cases(cases: list[tuple[Any, Any]], found: str) -> None:
    assert found in said(*cases)
    assert bool(said(*cases)) is bool(found)


def test_a_case_of_another_process_counts() -> None:
    flat, other = OneLabel(), OneLabel()
    flat.add(lambda: {"truth": TRUTH, "prediction": WHOLE})
    other.add(lambda: {"truth": TRUTH, "prediction": TRUTH})
    mine, idle = (flat.ruled_out, flat.counts), (False, None)
    assert gathered([mine, idle, mine]) == flat.counts._replace(voxels=800, predicted=800, true=60)  # type: ignore[union-attr]
    assert gathered([mine, (other.ruled_out, other.counts)]) is None


def test_train_and_evaluate_tell_of_it(tiny: Any, cli: Any, phantoms: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = LGG.evaluate_case
    for replaced, remark in (("ones_like", "marks 100 % of all voxels as tumour"), ("array", "")):

        def scored(self: LGG, *given: Any, replaced: str = replaced, **how: Any) -> Any:
            numbers, arrays = own(self, *given, **how)
            return numbers, {**arrays, "prediction": getattr(np, replaced)(arrays["target"])}

        monkeypatch.setattr(LGG, "evaluate_case", scored)
        code, out, err = tiny("--run-name", "a", "--overwrite", "--epochs", 1)
        assert code == 0, err
        assert ("The network marks" in out) is bool(remark)
        assert remark in " ".join(out.split())
        given = ("evaluate", "--weights", "a.safetensors", "--run-name", "e", "--overwrite", "--json")
        code, out, err = cli(*given, "--data", phantoms, "--cache", "cache_16", "--device", "cpu")
        assert code == 0, err
        assert remark in json.loads(out).get("remark", "")
        assert ("remark" in json.loads(out)) is bool(remark)
