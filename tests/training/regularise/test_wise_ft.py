"""WiSE-FT: the evaluated coefficients, the choice, the file; weight EMA and L2-SP against plain arithmetic."""

import json

import pytest
import torch

import mmtune
from mmtune.model.artifact import load
from mmtune.recipe.training_blocks import Interpolate
from mmtune.training.regularise.ema_l2sp import EmaL2SP
from mmtune.training.regularise.wise_ft import InterpolationPoint, choose
from mmtune.training.tuning.adapter_files import load_adapters
from tests.support import corpora


@pytest.mark.parametrize("how", ["full", "lora", "head"])
def test_a_run_with_retention_data_and_a_sweep(tmp_path, how):
    document = {
        "model": "tiny:clip",
        "data": {
            "train": corpora.packed(tmp_path),
            "val": corpora.packed(tmp_path, 12, 1),
            "retention": corpora.packed(tmp_path, 12, 2),
        },
        "tune": how,
        "interpolate": {"coefficients": [0, 0.5, 1], "keep": 0.9},
        "train": {"epochs": 2, "batch_size": 8, "lr": 1e-3, "precision": "fp32"},
        "run": {"dir": str(tmp_path / "run")},
    }
    out = mmtune.train(document, quiet=True)
    sweep = json.loads((tmp_path / "run" / "interpolation.json").read_text())
    assert [p["coefficient"] for p in sweep["points"]] == [0, 0.5, 1] and sweep["chosen"] == out["coefficient"]
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum("val retention metric" in r and "val metric" in r for r in lines) == 2
    tuned, base = load(out["artifact"]), load("tiny:clip")
    assert tuned.fingerprint == sweep["fingerprint"] == out["fingerprint"]
    val = mmtune.evaluate(base, document["data"]["val"])
    both = [val.metric("map", d) for d in ("image->text", "text->image")]
    assert sweep["points"][0]["domain"] == pytest.approx(sum(both) / 2, abs=1e-6)
    if how == "lora":
        got, want = load_adapters(tmp_path / "run" / "adapters"), dict(tuned.named_parameters())
        assert all(torch.allclose(p, want[n], atol=1e-6) for n, p in got.named_parameters())


def test_the_choice():
    points = [
        InterpolationPoint(0.0, 0.2, 0.8, {}),
        InterpolationPoint(0.5, 0.6, 0.79, {}),
        InterpolationPoint(1.0, 0.7, 0.5, {}),
    ]
    assert choose(points, Interpolate())[0].coefficient == 0.5
    assert choose(points, Interpolate(retention_weight=0))[0].coefficient == 1.0
    assert choose(points, Interpolate(keep=0.98))[0].coefficient == 0.5
    assert choose(points, Interpolate(keep=0.999))[0].coefficient == 0.0
    # the base model is the measure, also where it cannot be chosen: nothing keeps 0.98 of 0.9
    without = [InterpolationPoint(0.0, 0.2, 0.9, {}), *points[1:]]
    assert choose(without, Interpolate(coefficients=[0.5, 1.0], keep=0.98))[0].coefficient == 0.5
    assert "domain + " in choose(without, Interpolate(coefficients=[0.5, 1.0], keep=0.98))[1]
    assert choose(without, Interpolate(coefficients=[0.5, 1.0], keep=0.5))[0].coefficient == 1.0


def test_ema_and_l2sp_against_plain_arithmetic():
    p = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    ema_l2sp, mean, start = EmaL2SP([p], 0.5, 0.1), torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0])
    for step in range(1, 6):
        with torch.no_grad():
            p += step
        want = p.detach() + 0.1 * 0.1 * (start - p.detach())
        ema_l2sp.update(0.1)
        d = min(0.5, (1 + step) / (10 + step))
        mean = d * mean + (1 - d) * want
        torch.testing.assert_close(p.detach(), want)
    with ema_l2sp.ema_weights():
        torch.testing.assert_close(p.detach(), mean)
    torch.testing.assert_close(p.detach(), want)
