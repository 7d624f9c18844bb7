import pytest
import tiny_run


@pytest.fixture(scope="session")
def plan_dir(tmp_path_factory):
    """A plan of 400 rows of 32 tokens over two tiny tasks."""
    return tiny_run.make_plan(tmp_path_factory.mktemp("data"))
