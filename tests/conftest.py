"""One thread for whatever the tests train: forked copies have no other, and bits are compared."""

import os

import pytest

os.environ["OMP_NUM_THREADS"] = "1"

# the tests that look at the pictures of a page; the others write pages by the hundred
LOOK = {"test_clusters", "test_commands", "test_explorer", "test_report"}
DOT = "data:image/png;base64,iVBORw0KGgo="


def dot(fig, dpi=110):
    return DOT


@pytest.fixture(autouse=True)
def dots_for_pictures(request, monkeypatch):
    "Pages are written with a dot for each picture where no test looks at them: a third of a run."
    if request.module.__name__.rpartition(".")[2] not in LOOK:
        for page in ("drawing", "report", "explorer"):
            monkeypatch.setattr(f"gmvae_nb.{page}.png", dot)
