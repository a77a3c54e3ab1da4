"""The table for embedding viewers has each value once, with the vectors of the model."""

import numpy as np
import pyarrow.parquet as pq
import pytest

import mmtune
from mmtune.errors import DataError
from mmtune.integrations.embedding_table import write_embedding_table
from tests.support import corpora


def test_every_value_is_a_row(tmp_path):
    data = mmtune.open_data(corpora.packed(tmp_path, 12, 0, ("image", "text")))
    model = mmtune.load("tiny:clip", "cpu")
    done = write_embedding_table(model, data, tmp_path / "table.parquet")
    table = pq.read_table(tmp_path / "table.parquet")
    assert done.rows == {"image": 12, "text": 12} and table.num_rows == 24 and table.column_names == done.columns
    rows = table.to_pylist()
    texts = [r for r in rows if r["modality"] == "text"]
    np.testing.assert_allclose([r["vector"] for r in texts], model.encode(text=[r["text"] for r in texts]), atol=1e-6)
    pictures = [r for r in rows if r["modality"] == "image"]
    assert all(r["image"]["bytes"] == data.read(i, "image") and r["text"] is None for i, r in enumerate(pictures))
    assert {r["shade"] for r in rows} == {"light", "dark"} and all(np.isfinite([r["x"], r["y"]]).all() for r in rows)
    vectors = np.array([r["vector"] for r in rows])
    own = np.array([[r["x"], r["y"]] for r in rows])
    first = np.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[1][:2] ** 2
    np.testing.assert_allclose((own**2).sum(0), first, rtol=1e-3)  # the variance along the first two components


def test_a_column_of_the_users_with_the_same_name_is_named(tmp_path):
    rows = [{"id": "a", "text": "red", "x": 1}, {"id": "b", "text": "blue", "x": 2}]
    with pytest.raises(DataError, match="the metadata column 'x'"):
        write_embedding_table("tiny:text", rows, tmp_path / "table.parquet")
    assert not (tmp_path / "table.parquet").exists()
