"""The sample files are read by what they are samples of, whole."""

from dataclasses import replace

import pytest

from inspector.runs.metrics import check_data, plan_stage
from inspector.runs.presets import PRESETS, UPLOAD, read_form, write_recipe
from inspector.runs.samples import COUNT, write_samples
from inspector.runs.uploads import take_in


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return {path.name: path for path in write_samples(tmp_path_factory.mktemp("samples"))}


@pytest.mark.parametrize("name", ["chat.zip", "llava.zip", "captions.zip", "rows.parquet"])
def test_every_sample_is_read_whole_with_its_images(samples, name, tmp_path, embedded):
    upload = take_in(samples[name], tmp_path)
    assert upload.source == name.partition(".")[0]
    assert upload.is_alone == (name == "rows.parquet")
    values = {"seed": 0, "base": "embedded", "path": str(upload.path), **PRESETS["instruction tuning"].values}
    form = read_form(**{**values, "data": UPLOAD, "source": upload.source, "batch_rows": 2})
    recipe = write_recipe(replace(form, images=str(upload.images)), "embedded", "t")
    (report,) = check_data(embedded, recipe)
    assert (report.usable, report.images, report.ledger.skipped) == (COUNT, COUNT, ())
    plan = plan_stage(embedded, recipe)
    assert [len(row.images) for row in plan.rows] == [1, 1]
