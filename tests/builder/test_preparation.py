"""What a build starts from: device, network and who is trained on what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from builder.config import BuildConfig, make_config
from builder.data import Dataset, from_arrays, from_frame, prepare
from builder.network import MLP
from builder.preparation import assign_members, choose_device, make_factory, make_module, standardized
from model_store.errors import ConfigError
from tests.builder.tables import frame
from tests.networks import cnn, pretrained_batch_norm

ROWS = 60


def config(task: str = "regression", **values: Any) -> BuildConfig:
    data = {"target": "y", "task": task, **values.pop("data", {})}
    return make_config({"name": "a", "data": data, **values})


def table(task: str = "regression") -> Dataset:
    """Two columns, and a target of numbers or of three classes."""
    raw = frame(ROWS, b=np.arange(ROWS) % 7)
    if task == "classification":
        raw["y"] = np.arange(ROWS) % 3
    options = config(task).data
    return prepare(from_frame(raw, options), options, True, 0)


def images(classes: int = 3, shape: tuple[int, ...] = (1, 10, 10)) -> Dataset:
    options = config("classification").data
    x = np.random.default_rng(0).normal(size=(ROWS, *shape))
    return prepare(from_arrays(x, np.arange(ROWS) % classes, options), options, True, 0)


def forward(module: nn.Module, dataset: Dataset) -> Tensor:
    with torch.no_grad():
        out: Tensor = module.eval()(torch.from_numpy(dataset.x))
    return out


def sizes(module: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(p.shape) for p in module.parameters()]


# ---- device


@pytest.mark.parametrize(("asked", "there", "expected"), [
    ("cpu", True, "cpu"), ("cpu", False, "cpu"), ("cuda", True, "cuda"), ("auto", True, "cuda"), ("auto", False, "cpu"),
])  # fmt: skip
def test_the_device(monkeypatch: pytest.MonkeyPatch, asked: str, there: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert choose_device(config(device=asked)).type == expected


def test_a_missing_cuda_device_names_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="use --device cpu") as caught:
        choose_device(config(device="cuda"))
    assert (caught.value.field, caught.value.got) == ("--device", "cuda")


# ---- encoding


@pytest.mark.parametrize(
    ("weights", "asked", "expected"),
    [
        (None, None, True),
        ("map.safetensors", None, False),
        (None, False, False),
        ("map.safetensors", True, True),
    ],
)
def test_numbers_stay_as_they_are_for_given_weights(weights: str | None, asked: bool | None, expected: bool) -> None:
    assert standardized(config(network={"weights": weights}, data={"standardize": asked})) is expected


# ---- factory


@pytest.mark.parametrize(("task", "outputs"), [("regression", 1), ("classification", 3)])
def test_a_table_gets_an_mlp_with_the_outputs_it_needs(task: str, outputs: int) -> None:
    dataset = table(task)
    module = make_factory(config(task, network={"hidden": [7, 5], "activation": "silu"}), dataset)()
    assert isinstance(module, MLP)
    assert sizes(module) == [(7, 2), (7,), (5, 7), (5,), (outputs, 5), (outputs,)]
    assert sum(isinstance(m, nn.SiLU) for m in module) == 2
    assert forward(module, dataset).shape == (ROWS, outputs)


def test_images_are_flattened_before_the_mlp() -> None:
    dataset = images(shape=(2, 3, 4))
    module = make_factory(config("classification", network={"hidden": [6]}), dataset)()
    assert sizes(module) == [(6, 24), (6,), (3, 6), (3,)]
    assert forward(module, dataset).shape == (ROWS, 3)


def test_a_factory_makes_a_fresh_network_each_time() -> None:
    factory = make_factory(config(), table())
    assert not torch.equal(next(factory().parameters()), next(factory().parameters()))


def test_a_named_factory_is_imported() -> None:
    dataset = images()
    module = make_factory(config("classification", network={"factory": "tests.networks:cnn"}), dataset)()
    assert sizes(module) == sizes(cnn())
    with pytest.raises(ConfigError, match=r"tests\.networks:nothing cannot be imported"):
        make_factory(config("classification", network={"factory": "tests.networks:nothing"}), dataset)


# ---- module


def test_the_first_weights_are_the_seeds() -> None:
    dataset = table()
    factory = make_factory(config(), dataset)

    def weights(seed: int) -> Tensor:
        return next(make_module(config(seed=seed), dataset, factory).parameters()).detach()

    torch.manual_seed(11)
    first, state = weights(4), torch.random.get_rng_state()
    torch.manual_seed(12)
    assert torch.equal(weights(4), first)
    assert not torch.equal(weights(5), first)
    # The caller's own random numbers go on as if nothing had been drawn.
    torch.manual_seed(11)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_given_weights_are_loaded(tmp_path: Path) -> None:
    dataset, given = images(), cnn()
    save_file(given.state_dict(), tmp_path / "map.safetensors")
    options = config("classification", network={"weights": tmp_path / "map.safetensors"})
    assert torch.equal(forward(make_module(options, dataset, cnn), dataset), forward(given, dataset))


def test_given_weights_bring_the_statistics_of_batch_norm(tmp_path: Path) -> None:
    dataset, given = images(shape=(2, 8, 8)), pretrained_batch_norm()
    with pytest.raises(ConfigError, match=r"norm1 is batch normalisation.*--weights"):
        make_module(config("classification"), dataset, pretrained_batch_norm)
    save_file(given.state_dict(), tmp_path / "map.safetensors")
    options = config("classification", network={"weights": tmp_path / "map.safetensors"})
    found = make_module(options, dataset, pretrained_batch_norm)
    assert torch.equal(forward(found, dataset), forward(given, dataset))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "cannot be read"),
        (MLP(2, [4], 1), "size mismatch"),
        (MLP(2, [], 1), "Missing key"),
        (MLP(2, [5, 5], 1), "Unexpected key"),
    ],
    ids=["no file", "width", "fewer layers", "more layers"],
)
def test_given_weights_of_another_network_are_refused(tmp_path: Path, given: nn.Module | None, message: str) -> None:
    if given is not None:
        save_file(given.state_dict(), tmp_path / "map.safetensors")
    options = config(network={"hidden": [5], "weights": tmp_path / "map.safetensors"})
    dataset = table()
    with pytest.raises(ConfigError, match=message) as caught:
        make_module(options, dataset, make_factory(options, dataset))
    assert caught.value.field == "weights"


class Checked(nn.Module):
    """Checks its input itself, as careful modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        assert x.ndim == 4, "images, please"
        out: Tensor = self.linear(x)
        return out


class Bare(Checked):
    """Says nothing with it."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4:
            raise AssertionError
        return super().forward(x)


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        (lambda: nn.Linear(3, 1), "shapes cannot be multiplied"),
        (lambda: nn.Conv2d(1, 1, 3), "Expected"),
        (Checked, "images, please"),
        (Bare, "AssertionError"),
        (lambda: nn.Sequential(nn.Linear(2, 2), nn.Unflatten(1, (3, 1))), ""),
    ],
    ids=["columns", "dimensions", "its own check", "a bare check", "inside"],
)
def test_a_network_for_other_inputs_is_told_the_shape(factory: Any, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"does not take the data: .*{reason}") as caught:
        make_module(config(), table(), factory)
    assert caught.value.field == "network"
    assert caught.value.expected == "a network for inputs of shape (rows, 2)"


def test_a_network_for_other_images_is_told_the_shape() -> None:
    with pytest.raises(ConfigError, match="does not take the data") as caught:
        make_module(config("classification"), images(shape=(3, 10, 10)), cnn)
    assert caught.value.expected == "a network for inputs of shape (rows, 3, 10, 10)"


@pytest.mark.parametrize(
    ("task", "outputs", "expected"),
    [("regression", 2, "1 output(s): the mean"), ("classification", 4, "3 output(s): one a class")],
)
def test_a_network_with_other_outputs_is_told_how_many(task: str, outputs: int, expected: str) -> None:
    with pytest.raises(ConfigError, match="wrong number of outputs") as caught:
        make_module(config(task), table(task), lambda: nn.Linear(2, outputs))
    assert (caught.value.field, caught.value.expected, caught.value.got) == ("network", expected, str(outputs))


def test_a_network_of_one_logit_is_told_how_to_give_two() -> None:
    with pytest.raises(ConfigError, match=r"one logit z for 1, .*torch\.cat\(\[torch\.zeros_like\(z\), z\], 1\)"):
        make_module(config("classification"), images(2), lambda: nn.Sequential(nn.Flatten(), nn.Linear(100, 1)))


class Looks(nn.Module):
    """A network that looks up what it is given as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.codes = nn.Embedding(50, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.codes(x)[:, 0]
        return out


def test_what_does_not_take_the_data_is_shown() -> None:
    options = config(data={"standardize": False})
    with pytest.raises(ConfigError, match=r"\(test_preparation\.py, line \d+: out: Tensor = self\.codes.*x\.long\(\)"):
        make_module(options, table(), Looks)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 1).double(), r"weight holds torch\.float64, .* Return network\.float\(\)"),
        (lambda: nn.Linear(2, 1, device="meta"), "weight is on the device meta"),
        (lambda: nn.DataParallel(nn.Linear(2, 1)), "is a DataParallel, .* Return the module itself"),
    ],
)
def test_networks_that_no_build_computes_with_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make_module(config(), table(), make)
    assert caught.value.field == "network"


def test_batch_normalisation_may_be_frozen() -> None:
    module = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
    module[0].requires_grad_(False)
    assert make_module(config(), table(), lambda: module) is module
    with pytest.raises(ConfigError, match=r"0 is batch normalisation, .* freeze it by requires_grad_\(False\)"):
        make_module(config(), table(), lambda: nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)))


def test_a_network_with_a_flat_output_is_refused() -> None:
    with pytest.raises(ConfigError, match="one row of outputs for each input row"):
        make_module(config(), table(), lambda: nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)))


# ---- members


def members(options: BuildConfig, y: Tensor, module: nn.Module | None = None) -> Tensor:
    return assign_members(options, module or MLP(2, [4], 3), y)


CLASSES = torch.arange(101) % 10 // 7  # 71 of one class, 30 of the other


@pytest.mark.parametrize(
    ("anchors", "given", "count", "folds"),
    [(None, None, 20, 10), (None, 5, 10, 5), (2, None, 2, 2), (5, None, 5, 5), (10, 5, 10, 5), (6, 3, 6, 3)],
)
def test_folds_partition_the_rows(anchors: int | None, given: int | None, count: int, folds: int) -> None:
    found = members(config(map={"anchors": anchors, "folds": given}), torch.randn(101))
    assert found.dtype == torch.bool and found.shape == (count, 101)
    # In each round every row is left out by one anchor, and every anchor leaves out as many.
    for first in range(0, count, folds):
        part = ~found[first : first + folds]
        assert torch.equal(part.sum(0), torch.ones(101, dtype=torch.int64))
        assert int(part.sum(1).max() - part.sum(1).min()) <= 1


def test_a_second_round_has_other_folds() -> None:
    found = members(config(map={"folds": 5}), torch.randn(101))
    assert not any(torch.equal(one, other) for one in found[:5] for other in found[5:])
    # The first round is that of fewer anchors.
    assert torch.equal(found[:5], members(config(map={"anchors": 5}), torch.randn(101)))


def test_large_networks_have_fewer_anchors() -> None:
    assert len(members(config(), torch.randn(30), MLP(2, [10_000], 1))) == 10


def test_folds_hold_the_classes_in_equal_parts() -> None:
    found = members(config("classification"), CLASSES)
    for label, count in ((0, 71), (1, 30)):
        left_out = (~found & (label == CLASSES)).sum(1)
        assert int(left_out.sum()) == 2 * count and int(left_out.max() - left_out.min()) <= 1


def test_folds_are_the_seeds() -> None:
    y = torch.randn(101)
    assert torch.equal(members(config(seed=3), y), members(config(seed=3), y))
    assert not torch.equal(members(config(seed=3), y), members(config(seed=4), y))
    # Shuffled: neither blocks of neighbouring rows nor every fifth.
    first = (~members(config(), y)[0]).nonzero().squeeze(1)
    assert len(set((first[1:] - first[:-1]).tolist())) > 3


GIVEN = {"weights": "map.safetensors"}
HEAD = {"posterior": "2"}


@pytest.mark.parametrize("network", [GIVEN, HEAD, {**GIVEN, **HEAD}], ids=["given", "partly fixed", "both"])
@pytest.mark.parametrize(("holdout", "share"), [(0.2, 0.2), (0.1, 0.1), (0.3, 0.3), (0.75, 0.75)])
def test_given_or_partly_fixed_weights_get_one_anchor_and_a_holdout(
    network: dict[str, str], holdout: float, share: float
) -> None:
    options = config("classification", network=network, map={"holdout": holdout})
    found = members(options, CLASSES)
    assert found.shape == (1, 101)
    for label, count in ((0, 71), (1, 30)):
        assert abs(int((~found[0] & (label == CLASSES)).sum()) - share * count) <= 1


def test_one_anchor_may_be_asked_for() -> None:
    found = members(config(map={"anchors": 1}), torch.randn(100))
    assert found.shape == (1, 100) and int((~found).sum()) == 20


MANY = torch.arange(40_000) % 10


@pytest.mark.parametrize(
    ("options", "count"),
    [({}, 20), ({"served": 5}, 5), ({"anchors": 3}, 3), ({"anchors": 3, "served": 2}, 3), ({"anchors": 1}, 1)],
)
def test_all_anchors_of_very_many_rows_leave_out_the_same_tenth(options: dict[str, int], count: int) -> None:
    found = members(config("classification", map=options), MANY)
    assert found.shape == (count, 40_000) and torch.equal(found, found[:1].expand(count, -1))
    assert torch.equal(MANY[~found[0]].bincount(), torch.full((10,), 400))


def test_one_part_may_be_asked_for_or_folds_of_very_many_rows() -> None:
    few = members(config(map={"folds": 1, "holdout": 0.5}), torch.randn(100))
    assert few.shape == (20, 100) and bool((few.sum(1) == 50).all()) and torch.equal(few, few[:1].expand(20, -1))
    many = members(config("classification", map={"folds": 5}), MANY)
    assert many.shape == (10, 40_000) and bool(((~many).sum(0) == 2).all())
    # A regression's folds show what is to be known.
    assert bool(((~members(config(), torch.randn(40_000))).sum(0) == 2).all())


@pytest.mark.parametrize("network", [GIVEN, HEAD], ids=["given", "partly fixed"])
def test_more_anchors_than_one_are_refused_there(network: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="use one") as caught:
        members(config(network=network, map={"anchors": 2}), torch.randn(50))
    assert (caught.value.field, caught.value.expected, caught.value.got) == ("map.anchors", "1", "2")


def test_an_expression_for_every_parameter_still_cross_fits() -> None:
    assert len(members(config(network={"posterior": "0|2"}), torch.randn(50))) == 20
