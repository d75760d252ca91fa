"""`fiberwalk models` where it changes a store: aliases, copies, deletion."""

from pathlib import Path

import pytest

from model_store import ModelStore
from tests import bundles
from tests.fiberwalk.test_models import damage, refused, run

# ---- alias


def test_alias_sets_moves_and_removes(store: ModelStore) -> None:
    told = "prices@champion means prices@2; before it meant prices@1.\n"
    assert run(store, "alias", "prices@2", "champion").stdout == told
    assert store.aliases("prices") == {"champion": 2}
    assert run(store, "alias", "prices@2", "champion").stdout == "prices@champion means prices@2.\n"
    assert run(store, "alias", "prices@champion", "stable").stdout == "prices@stable means prices@2.\n"
    assert store.aliases("prices") == {"champion": 2, "stable": 2}
    assert run(store, "alias", "prices", "champion", "--remove").exit_code == 0
    assert store.aliases("prices") == {"stable": 2}


def test_alias_warns_where_requests_may_not_fit_any_more(store: ModelStore) -> None:
    assert run(store, "alias", "prices@2", "champion").stderr == ""
    assert bundles.numeric_regression("prices", columns=["area", "rooms"]).publish(store).version == 3
    result = run(store, "alias", "prices@3", "champion")
    assert (result.exit_code, store.aliases("prices")) == (0, {"champion": 3})
    assert "Warning: prices@3 differs from prices@2. It predicts 'y' and not 'price'." in result.stderr
    assert "columns come in another order" in result.stderr


def test_alias_refuses(store: ModelStore) -> None:
    assert "Say which version" in refused(run(store, "alias", "prices", "champion"))
    assert "has no version" in refused(run(store, "alias", "prices@3", "champion"))
    assert "cannot be an alias" in refused(run(store, "alias", "prices@1", "2"))
    assert "has no alias 'stable'" in refused(run(store, "alias", "prices", "stable", "--remove"))
    assert store.aliases("prices") == {"champion": 1}


@pytest.mark.parametrize("file", ["base.onnx", "manifest.json"])
def test_no_alias_means_what_does_not_verify_unless_forced(store: ModelStore, file: str) -> None:
    damage(store, f"prices/2/{file}")
    line = refused(run(store, "alias", "prices@2", "champion"))
    assert line.startswith("Error: No alias may mean what does not verify, unless with --force. ")
    assert "publish the bundle again" in line
    assert store.aliases("prices") == {"champion": 1}
    assert run(store, "alias", "prices@2", "champion", "--force").exit_code == 0
    assert store.aliases("prices") == {"champion": 2}


# ---- copy


def test_copy_into_another_store(store: ModelStore, tmp_path: Path) -> None:
    other = tmp_path / "production"
    assert "There is no folder" in refused(run(store, "copy", "prices", str(other)))
    other.mkdir()
    told = f"prices@2 is in '{other}' as prices@2; there prices means it.\n"
    for _ in range(2):
        assert run(store, "copy", "prices@2", str(other)).stdout == told
    assert run(store, "copy", "prices", str(other)).stdout == f"prices@1 is in '{other}' as prices@1.\n"
    copied = ModelStore(other)
    assert (copied.versions("prices"), copied.aliases("prices")) == ([1, 2], {})
    bundles.classification("flowers", seed=3).publish(copied)
    assert "copy it with --renumber, as flowers@2" in refused(run(store, "copy", "flowers", str(other)))
    told = f"flowers@1 is in '{other}' as flowers@2; there flowers means it.\n"
    assert run(store, "copy", "flowers", str(other), "--renumber").stdout == told
    assert run(ModelStore(other), "verify").exit_code == 0


def test_no_copy_of_what_does_not_verify(store: ModelStore, tmp_path: Path) -> None:
    damage(store, "prices/1/base.onnx")
    assert "publish the bundle again" in refused(run(store, "copy", "prices", str(tmp_path)))
    assert ModelStore(tmp_path).versions("prices") == []


# ---- delete


def test_delete_asks(store: ModelStore) -> None:
    result = run(store, "delete", "prices@2", answer="n\n")
    assert result.exit_code == 1
    assert "Delete prices@2 for good?" in result.stdout
    assert store.versions("prices") == [1, 2]
    assert run(store, "delete", "prices@2", answer="y\n").exit_code == 0
    assert store.versions("prices") == [1]


def test_delete_without_asking(store: ModelStore) -> None:
    assert run(store, "delete", "prices@2", "--yes").stdout == "prices@2 is deleted.\n"
    assert store.versions("prices") == [1]


def test_delete_several(store: ModelStore) -> None:
    assert "has no version" in refused(run(store, "delete", "prices@2", "prices@9", "--yes"))
    assert store.versions("prices") == [1, 2]
    result = run(store, "delete", "prices@2", "flowers@1", "prices@2", answer="y\n")
    assert "Delete prices@2, flowers@1 for good?" in result.stdout
    assert result.stdout.endswith("prices@2 is deleted.\nflowers@1 is deleted.\n")
    assert (store.versions("prices"), store.versions("flowers")) == ([1], [])


def test_delete_says_how_to_delete_where_nobody_answers(store: ModelStore) -> None:
    result = run(store, "delete", "prices@2", answer="")
    assert (result.exit_code, store.versions("prices")) == (1, [1, 2])
    assert "--yes deletes without asking" in result.stderr


def test_delete_refuses(store: ModelStore) -> None:
    assert "Say which version" in refused(run(store, "delete", "flowers", "--yes"))
    assert "is what champion means; move the alias" in refused(run(store, "delete", "prices@1", "--yes"))
    assert "has no version" in refused(run(store, "delete", "prices@9"))  # said without asking first
    assert store.versions("prices") == [1, 2]
