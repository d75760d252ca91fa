"""The callable that makes a user's network, and its weights: what is taken and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from builder.own_network import checked_factory, import_factory, load_weights, refuse_untrained_batch_norm
from model_store.errors import ConfigError
from tests.networks import mlp


def test_untrained_batch_normalisation_is_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"1\.0 is batch normalisation.*GroupNorm.*--weights"):
        refuse_untrained_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2))))
    refuse_untrained_batch_norm(nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2)))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module `own_net` in the current folder."""
    (tmp_path / "own_net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Linear(3, 1)\n\ndef text():\n    return 'net'\n"
        "network = make()\n\ndef late():\n    from own_part import Part\n    return Part(3, 1)\n"
    )
    (tmp_path / "own_part.py").write_text("from torch.nn import Linear as Part\n")
    (tmp_path / "own_broken.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "own_typo.py").write_text("def make(:\n")
    (tmp_path / "own_script.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "own_net", raising=False)
    return tmp_path


def test_a_factory_is_found_in_the_current_folder(package: Path) -> None:
    before = list(sys.path)
    module = import_factory("own_net:make")()
    assert isinstance(module, nn.Linear) and sys.path == before
    assert Path(str(sys.modules["own_net"].__file__)).parent.resolve() == package.resolve()


@pytest.mark.usefixtures("package")
def test_a_factory_may_import_its_neighbours_when_it_is_called() -> None:
    before = list(sys.path)
    assert isinstance(import_factory("own_net:late")(), nn.Linear) and sys.path == before


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("own_net", "module:factory"),
        (":make", "module:factory"),
        ("own_net:", "module:factory"),
        ("no_such_net:make", "cannot be imported"),
        ("own_net:other", "cannot be imported"),
        ("own_broken:make", "a_package_that_is_not_there"),
        ("own_typo:make", "cannot be imported: SyntaxError"),
        ("own_script:make", "cannot be imported: SystemExit"),
        ("own_net:text", "must return a torch.nn.Module"),
        ("torch.nn:Linear", "makes no network: TypeError.*in_features"),
        ("own_net:__name__", "must be callable"),
        ("own_net:network", "is a network itself"),
    ],
)
def test_wrong_factories_are_refused(reference: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        import_factory(reference)()
    assert caught.value.field == "network"


def test_a_factory_makes_a_new_network_each_time() -> None:
    module = mlp()
    made, same = checked_factory(mlp, "network"), checked_factory(lambda: module, "network")
    assert made() is not made()
    assert same() is module
    with pytest.raises(ConfigError, match=r"network returns the same network each time, .* new one"):
        same()


def test_weights_are_loaded_in_place(tmp_path: Path) -> None:
    source, target = mlp(), mlp()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.net."])
def test_names_may_begin_with_where_the_network_was_a_part(tmp_path: Path, prefix: str) -> None:
    source, target = mlp(), mlp()
    save_file({prefix + n: t for n, t in source.state_dict().items()}, tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_a_network_may_be_the_one_part_of_another(tmp_path: Path) -> None:
    """Such as one that gives two logits for one."""
    source, target = mlp(), nn.ModuleDict({"net": mlp()})
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    load_weights(target, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_of_two_networks_in_one_file_none_is_picked(tmp_path: Path) -> None:
    both = {f"{owner}.{n}": t.clone() for owner in ("net", "average") for n, t in mlp().state_dict().items()}
    save_file(both, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"Unexpected key.*average\.0\.bias"):
        load_weights(mlp(), tmp_path / "w.safetensors")


def test_statistics_are_numbers_and_masks_may_be_infinite(tmp_path: Path) -> None:
    module = nn.BatchNorm1d(2)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    load_weights(module, tmp_path / "w.safetensors")
    save_file({**module.state_dict(), "running_var": torch.full((2,), torch.nan)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match="NaN or infinity in running_var"):
        load_weights(module, tmp_path / "w.safetensors")


def test_what_does_not_fit_is_told_in_short(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError, match=r"Missing key.* \.\.\. Unexpected key") as caught:
        load_weights(nn.Sequential(*(nn.Linear(2, 2) for _ in range(99))), tmp_path / "w.safetensors")
    assert len(caught.value.message) < 1000


class Tied(nn.Module):
    """Two layers of the same weights, (B, 3) -> (B, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(torch.tanh(self.a(x)))
        return out


@pytest.mark.parametrize("every_name", [False, True])
def test_tied_weights_are_loaded_as_they_are_saved(tmp_path: Path, every_name: bool) -> None:
    source, target = Tied(), Tied()
    if every_name:
        save_file({n: t.clone() for n, t in source.state_dict().items()}, tmp_path / "w.safetensors")
    else:
        save_model(source, str(tmp_path / "w.safetensors"))
    load_weights(target, tmp_path / "w.safetensors")
    assert target.b.weight is target.a.weight
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"not safetensors at all", "is no safetensors file"),
        ({"0.weight": torch.zeros(16, 5)}, "Missing key"),
        ({**mlp().state_dict(), "9.bias": torch.zeros(1)}, "Unexpected key"),
        ({**mlp().state_dict(), "0.weight": torch.zeros(2, 2)}, "size mismatch"),
        ({**mlp().state_dict(), "0.bias": torch.full((16,), torch.nan)}, r"NaN or infinity in 0\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused(
    tmp_path: Path, content: bytes | dict[str, Tensor] | None, message: str
) -> None:
    path = tmp_path / "w.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content, path)
    with pytest.raises(ConfigError, match=message) as caught:
        load_weights(mlp(), path)
    assert caught.value.field == "weights"
