"""Embedding by a pool of workers: the same file as by one process, whatever was there already."""

import pyarrow.parquet as pq
import pytest
from curated import given

pytest.importorskip("ray")

from raysurl.curation import embedding
from raysurl.errors import InputError

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_two_workers_write_what_one_process_writes(mode, ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "PART", 10)
    asked = given(**{"data.mode": mode})
    alone, together = tmp_path / "alone.parquet", tmp_path / "together.parquet"
    embedding.write_embeddings(asked, alone)
    embedding.write_embeddings(asked, together, workers=2)
    one, two = pq.read_table(alone), pq.read_table(together)
    assert two.equals(one)
    assert two.schema.metadata == one.schema.metadata
    assert pq.read_metadata(together).num_row_groups == 3


def test_what_another_number_of_workers_left_is_taken_up(ray_session, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding, "PART", 10)
    asked = given(**{"data.mode": "resident"})
    alone, together = tmp_path / "alone.parquet", tmp_path / "together.parquet"
    embedding.write_embeddings(asked, alone)
    with monkeypatch.context() as patch:
        patch.setattr(embedding, "joined", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embedding.write_embeddings(asked, together, workers=1)
    monkeypatch.setattr(embedding, "embedded", None)  # nothing is embedded again
    embedding.write_embeddings(asked, together)
    assert pq.read_table(together).equals(pq.read_table(alone))


def test_more_workers_than_there_is_room_for_are_refused(ray_session, tmp_path):
    with pytest.raises(
        InputError, match=r"workers=3 take 1 CPU each and the cluster's 1 node\(s\) hold 2; use workers=2"
    ):
        embedding.write_embeddings(given(), tmp_path / "e.parquet", workers=3)
    assert list(tmp_path.iterdir()) == []
