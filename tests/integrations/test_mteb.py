"""A model in mteb, and packed data as a task of mteb: the scores are those of `mmtune.evaluate`."""

import numpy as np
import pytest

import mmtune
from mmtune import modalities
from mmtune.errors import DataError
from tests.support import corpora

mteb = pytest.importorskip("mteb")


@pytest.mark.parametrize(("query", "candidate"), [("text", "image"), ("image", "text")])
def test_mteb_scores_a_model_on_packed_data_as_we_do(query, candidate, tmp_path):
    from mmtune.integrations.mteb import MtebEncoder, retrieval_task

    model = mmtune.load("tiny:clip@3", "cpu")
    data = corpora.packed(tmp_path, 24, 0, ("image", "text"))
    task = retrieval_task(data, "Squares", query, candidate)
    done = mteb.evaluate(MtebEncoder(model, "shop/tiny"), [task], cache=None, show_progress_bar=False)
    scores = done.task_results[0].scores["test"][0]
    ours = mmtune.evaluate(model, data).to_dict()["directions"][f"{query}->{candidate}"]["metrics"]
    assert scores["ndcg_at_10"] == pytest.approx(ours["ndcg@10"], abs=2e-3)
    assert scores["recall_at_10"] == pytest.approx(ours["recall@10"], abs=2e-3)


def test_a_task_without_relevant_candidates_is_refused(tmp_path):
    from mmtune.integrations.mteb import retrieval_task

    data = corpora.packed(tmp_path, 12, 0, ("image", "text"))
    with pytest.raises(DataError, match="no text has a relevant text"):  # equal captions are one item
        retrieval_task(data, "Squares", "text", "text")


def test_queries_get_the_query_prompt_and_several_modalities_their_mean():
    from mteb.types import PromptType

    from mmtune.integrations.mteb import MtebEncoder

    model = mmtune.load("tiny:clip", "cpu").with_prompts({"text": {"query": ["find {}"]}})
    encoder = MtebEncoder(model)
    common = {"task_metadata": None, "hf_split": "test", "hf_subset": "default"}
    texts = ["red", ""]
    queries = encoder.encode([{"text": texts}], prompt_type=PromptType.query, **common)
    np.testing.assert_allclose(queries, model.encode(text=["red", "."], role="query"), atol=1e-6)
    picture = modalities.get("image").examples()[0]
    both = encoder.encode([{"text": ["red"], "image": [picture]}], **common)
    mean = model.encode(text="red") + model.encode(image=picture)
    np.testing.assert_allclose(both[0], mean / np.linalg.norm(mean), atol=1e-6)
