"""A builder of TensorFlow Datasets is prepared where the readers of rows look for it."""

import tensorflow_datasets as tfds
from etils import epath

from optiml_jax.fetch.fetcher import Fetcher, FetchSettings
from optiml_jax.fetch.sources import Source
from tasks.files.rows import find_splits


class TinyFetched(tfds.core.GeneratorBasedBuilder):
    """Two rows, made here."""

    pkg_dir_path = epath.Path(__file__).parent  # this module is no package
    VERSION = tfds.core.Version("1.2.0")

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(2):
            yield i, {"text": f"row {i}"}


def test_a_builder_is_prepared_and_read(tmp_path):
    source = Source("t5", "tiny_fetched", "tfds", "t5", "tiny_fetched:1.2.0")
    missing = Source("t5", "no_such_builder", "tfds", "t5", "no_such_builder")
    fetcher = Fetcher(FetchSettings(tmp_path))
    failures = fetcher.run(fetcher.plan([source, missing]))
    assert "TFDS cannot prepare no_such_builder" in str(failures.pop("t5/no_such_builder"))
    assert not failures
    rows = find_splits(tmp_path / "t5/tiny_fetched")["train"].read()
    assert sorted(row["text"] for row in rows) == ["row 0", "row 1"]
    assert [step.state for step in fetcher.plan([source])] == ["there"]
