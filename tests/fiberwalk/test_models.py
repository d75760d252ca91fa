"""`fiberwalk models`, as a user meets it."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from fiberwalk.models import app
from fiberwalk.serve import serve
from model_store import Bundle, ConfigError, ModelStore
from model_store.manifest import Metrics
from tests import bundles


def run(store: ModelStore, *arguments: str, answer: str | None = None) -> Result:
    # A wide terminal, so that no cell is wrapped.
    return CliRunner(env={"COLUMNS": "240"}).invoke(app, [*arguments, "--store", str(store.root)], input=answer)


def refused(result: Result) -> str:
    """The one line that the user is told."""
    assert result.exit_code == 1
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


def damage(store: ModelStore, path: str) -> None:
    file = store.root / path
    file.write_bytes(file.read_bytes()[:-1])


# ---- list


def test_list(store: ModelStore) -> None:
    result = run(store, "list")
    assert result.exit_code == 0
    rows = [line for line in result.stdout.splitlines() if "@" in line]
    assert ["flowers@1" in rows[0], "prices@1" in rows[1], "prices@2" in rows[2]] == [True] * 3
    assert "champion" in rows[1]
    assert "champion" not in rows[2]
    assert "classification" in rows[0]
    assert "species" in rows[0]


def test_list_as_json(store: ModelStore) -> None:
    rows = json.loads(run(store, "list", "--json").stdout)
    assert [(r["name"], r["version"], r["aliases"], r["task"]) for r in rows] == [
        ("flowers", 1, [], "classification"),
        ("prices", 1, ["champion"], "regression"),
        ("prices", 2, [], "regression"),
    ]
    assert rows[0]["created"].startswith("2026-01-01")
    assert {r["error"] for r in rows} == {None}


def test_a_list_looks_at_each_version_a_few_times_however_many_there_are(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in range(3, 33):
        shutil.copytree(store.root / "prices" / "1", store.root / "prices" / str(version))
    asked, stamp = [], ModelStore.stamp

    def counted(models: ModelStore, name: str, version: int) -> object:
        asked.append(version)
        return stamp(models, name, version)

    monkeypatch.setattr(ModelStore, "stamp", counted)
    assert len(json.loads(run(store, "list", "--json").stdout)) == 33
    assert len(asked) <= 33 * 5


def test_list_shows_a_damaged_version_among_the_others(store: ModelStore) -> None:
    damage(store, "prices/1/manifest.json")
    result = run(store, "list", "--json")
    assert result.exit_code == 0
    errors = {f"{r['name']}@{r['version']}": r["error"] for r in json.loads(result.stdout)}
    assert "is not JSON" in errors["prices@1"]
    assert (errors["prices@2"], errors["flowers@1"]) == (None, None)
    text = run(store, "list").stdout
    assert "is not JSON" in text
    assert "[red]" not in text


def test_list_tells_broken_aliases_in_the_rows_of_their_model(store: ModelStore) -> None:
    (store.root / "prices" / "aliases.json").write_text("no json")
    result = run(store, "list", "--json")
    assert result.exit_code == 0
    rows = {f"{r['name']}@{r['version']}": r for r in json.loads(result.stdout)}
    assert list(rows) == ["flowers@1", "prices@1", "prices@2"]
    assert rows["flowers@1"]["error"] is None
    for reference in ("prices@1", "prices@2"):
        assert "prices/aliases.json is damaged" in rows[reference]["error"]
        assert (rows[reference]["aliases"], rows[reference]["task"]) == ([], "regression")
    assert run(store, "verify").exit_code == 0


def test_list_and_verify_name_what_has_no_manifest_or_cannot_be_read(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store.root / "prices" / "1" / "manifest.json").unlink()
    (store.root / "cars" / "4").mkdir(parents=True)
    (store.root / "flowers" / "2").symlink_to(store.root / "flowers" / "2")
    (store.root / "locked").mkdir()
    listed = Path.iterdir

    def iterdir(path: Path) -> object:
        if path.name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    rows = json.loads(run(store, "list", "--json").stdout)
    errors = {(r["name"], r["version"]): r["error"] for r in rows}
    assert "cars@4 has no manifest" in errors["cars", 4]
    assert "prices@1 has no manifest" in errors["prices", 1]
    assert "cannot be read" in errors["flowers", 2]
    assert "locked in the store cannot be read (Permission denied)" in errors["locked", None]
    assert [key for key, error in errors.items() if error is None] == [("flowers", 1), ("prices", 2)]
    assert "locked" in run(store, "list").stdout
    result = run(store, "verify")
    told = [line.partition(":")[0] for line in result.stderr.splitlines()]
    assert told == ["cars@4", "flowers@2", "locked", "prices@1", "4 of 6 did not verify."]


def test_an_empty_store_and_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no model yet" in run(ModelStore(tmp_path / "empty"), "list").stdout
    assert "holds no model yet" in run(ModelStore(tmp_path / "empty"), "verify").stdout
    assert json.loads(run(ModelStore(tmp_path / "empty"), "list", "--json").stdout) == []
    commands = (
        ["list"],
        ["show", "a"],
        ["verify"],
        ["alias", "a@1", "b"],
        ["copy", "a", "."],
        ["delete", "a@1", "--yes"],
    )
    for command in commands:
        assert "There is no store" in refused(run(ModelStore(tmp_path / "none"), *command))
    assert not (tmp_path / "none").exists()


def test_the_folder_of_a_model_is_no_store(store: ModelStore, tmp_path: Path) -> None:
    inner = ModelStore(store.root / "prices")
    for command in (["list"], ["verify"], ["copy", "prices", str(tmp_path)]):
        assert refused(run(inner, *command)).endswith("is the folder of one model; name the store that it lies in.")
    assert "is the folder of one model" in refused(run(store, "copy", "prices", str(inner.root)))
    with pytest.raises(ConfigError, match="is the folder of one model"):
        serve(store=inner.root, port=0)


def test_the_store_comes_from_the_environment_or_is_models_here(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = CliRunner(env={"FIBERWALK_STORE": str(store.root)}).invoke(app, ["list", "--json"])
    assert len(json.loads(result.stdout)) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FIBERWALK_STORE", raising=False)
    store.root.rename(tmp_path / "models")
    assert len(json.loads(CliRunner().invoke(app, ["list", "--json"]).stdout)) == 3


def test_in_a_pipe_no_line_is_wrapped(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    damage(store, "prices/1/manifest.json")
    text = CliRunner().invoke(app, ["list", "--store", str(store.root)]).stdout
    (line,) = (line for line in text.splitlines() if "prices@1" in line)
    assert "champion" in line and "is not JSON; publish the bundle again." in line


# ---- show


def test_show(store: ModelStore) -> None:
    text = run(store, "show", "prices").stdout
    for said in ("prices@1", "price (k€)", "champion", "area", "m²", "20 to 300", "Aachen, Bonn, Köln", "nll", "1.25"):
        assert said in text
    assert store.open("prices@1").digest in text
    assert "setosa, versicolor, virginica" in run(store, "show", "flowers").stdout


def test_show_a_model_of_arrays(store: ModelStore) -> None:
    bundles.image_classification().publish(store)
    assert "1 x 4 x 4" in run(store, "show", "digits@1").stdout


def test_show_as_json(store: ModelStore) -> None:
    content = json.loads(run(store, "show", "prices@champion", "--json").stdout)
    bundle = store.open("prices@1")
    assert content["manifest"] == json.loads(bundle.manifest.model_dump_json())
    assert (content["digest"], content["aliases"]) == (bundle.digest, ["champion"])


def test_json_stays_json_where_a_metric_is_infinite(store: ModelStore) -> None:
    parts = bundles.classification("flowers")
    metrics = [Metrics(predictor="map", split="test", rows=9, values={"nll": math.inf, "ece": math.nan})]
    bundles.Parts(parts.manifest.model_copy(update={"metrics": metrics}), parts.files).publish(store)

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content = json.loads(run(store, "show", "flowers@2", "--json").stdout, parse_constant=refuse)
    assert content["manifest"]["metrics"][0]["values"] == {"nll": None, "ece": None}
    assert "inf" in run(store, "show", "flowers@2").stdout


def test_markup_in_a_models_words_is_shown_as_it_is(store: ModelStore) -> None:
    bundles.numeric_regression("odd", columns=["[red]x[/red]", "[/]"]).publish(store)
    text = run(store, "show", "odd").stdout
    assert "[red]x[/red]" in text
    assert "[/]" in text


def test_show_an_unknown_model_version_or_name(store: ModelStore) -> None:
    assert refused(run(store, "show", "cars")) == "Error: There is no model 'cars'. Expected one of: flowers, prices."
    assert refused(run(store, "show", "prices@7")).endswith("Expected prices@ one of: 1, 2, champion.")
    assert "cannot be a model's name" in refused(run(store, "show", "../etc"))


# ---- verify


def test_verify_all(store: ModelStore) -> None:
    result = run(store, "verify")
    assert result.exit_code == 0
    assert [line.partition(", ")[0] for line in result.stdout.splitlines()] == [
        "flowers@1: ok",
        "prices@1: ok",
        "prices@2: ok",
    ]


def test_verify_reports_each_damaged_version_and_goes_on(store: ModelStore) -> None:
    damage(store, "prices/1/base.onnx")
    result = run(store, "verify")
    assert result.exit_code == 1
    assert [line.partition(", ")[0] for line in result.stdout.splitlines()] == ["flowers@1: ok", "prices@2: ok"]
    first, last = result.stderr.splitlines()
    assert first.startswith("prices@1: ")
    assert "another size than when it was published; publish the bundle again" in first
    assert last == "1 of 3 did not verify."
    assert run(store, "verify", "prices@2", "flowers").exit_code == 0
    assert run(store, "verify", "prices@champion").exit_code == 1


def claimed(store: ModelStore, size: int) -> None:
    """A manifest that says its card is of another size."""
    manifest = store.root / "prices" / "1" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["files"]["card.md"]["size"] = size
    manifest.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("size", "told"), [(10**30, "less than or equal to 1099511627776"), (2**40, "Expected 1099511627776 bytes.")]
)
def test_verify_goes_on_after_a_size_that_no_file_has(store: ModelStore, size: int, told: str) -> None:
    claimed(store, size)
    result = run(store, "verify")
    assert result.exit_code == 1
    assert [line.partition(", ")[0] for line in result.stdout.splitlines()] == ["flowers@1: ok", "prices@2: ok"]
    first, last = result.stderr.splitlines()
    assert first.startswith("prices@1: ") and told in first
    assert last == "1 of 3 did not verify."


def test_verify_goes_on_whatever_a_bundle_makes_a_library_raise(
    store: ModelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(bundle: Bundle) -> None:
        if bundle.name == "flowers":
            raise MemoryError

    monkeypatch.setattr(Bundle, "verify", failing)
    result = run(store, "verify")
    assert len(result.stdout.splitlines()) == 2
    assert "flowers@1: cannot be checked (MemoryError())" in result.stderr


def test_the_help_of_verify_promises_no_signature() -> None:
    told = " ".join(CliRunner(env={"COLUMNS": "240"}).invoke(app, ["verify", "--help"]).stdout.split())
    assert "finds accidents" in told and "no signature" in told


# ---- strange texts

PWNED = "\x1b]0;pwned\x07\x1b[2J\x9b31m"


def test_a_strange_bundles_words_command_no_terminal(store: ModelStore) -> None:
    bundles.numeric_regression("odd", columns=[f"Köln{PWNED}"]).publish(store)
    manifest = store.root / "odd" / "1" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["target"] |= {"name": f"target{PWNED}", "unit": PWNED}
    content["build"] |= {"warnings": [PWNED], "device": PWNED}
    content["network"]["description"] = content["inputs"]["columns"][0]["unit"] = PWNED
    content["metrics"][0]["values"] = {PWNED: 1.0}
    manifest.write_text(json.dumps(content))
    damaged = store.root / "flowers" / "1" / "manifest.json"
    damaged.write_text(json.dumps(json.loads(damaged.read_text()) | {PWNED: 1}))
    (store.root / "prices" / "aliases.json").write_text(json.dumps({PWNED: 1}))
    asked = ["list", "list --json", "verify", "show flowers", "show odd", "show odd --json", "show prices@1"]
    for command in [*asked, "show prices@9"]:
        output = run(store, *command.split()).output
        assert r"\u001b]0;pwned" in output, command
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", output), command
    assert "Köln" in run(store, "show", "odd").stdout
    assert json.loads(run(store, "show", "odd", "--json").stdout)["manifest"]["target"]["unit"] == PWNED
