"""Its presence puts this folder on the import path, so that tests share `networks`."""

import pytest


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory):
    """Tests neither see nor change the user's measurements."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAQ_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        yield
