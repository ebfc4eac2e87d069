"""One step of one window: what it moves, and what it must not."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from neuroflux_fl.errors import UsageError
from neuroflux_fl.local_step import OptimizerSettings, make_optimizer, similarity_loss, train_window

SETTINGS = OptimizerSettings(momentum=0.9, weight_decay=0.1)


def window() -> tuple[list[nn.Module], nn.Module]:
    torch.manual_seed(0)
    units: list[nn.Module] = [nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)), nn.Conv2d(4, 4, 3)]
    return units, nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def parameters(units: list[nn.Module], head: nn.Module) -> list[nn.Parameter]:
    return [p for module in (*units, head) for p in module.parameters()]


@pytest.mark.parametrize("similarity", [0.0, 2.0])
def test_steps_equal_a_plain_training_loop(similarity: float) -> None:
    units, head = window()
    body, classifier = nn.Sequential(*copy.deepcopy(units)), copy.deepcopy(head)
    plain = nn.Sequential(body, classifier)
    optimizer = make_optimizer(parameters(units, head), SETTINGS, 0.05)
    reference = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=0.1)
    for _ in range(4):
        inputs, labels = torch.randn(5, 1, 8, 8), torch.randint(0, 3, (5,))
        features = body(inputs)
        expected = nn.functional.cross_entropy(classifier(features), labels)
        (expected + similarity * similarity_loss(features, labels, 3)).backward()  # type: ignore[no-untyped-call]
        reference.step()
        reference.zero_grad()

        _, loss = train_window(units, head, optimizer, inputs, labels, similarity=similarity)

        torch.testing.assert_close(loss, expected.detach())
    for mine, theirs in zip(parameters(units, head), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_nothing_of_the_graph_survives_the_step() -> None:
    units, head = window()
    optimizer = make_optimizer(parameters(units, head), SETTINGS, 0.05)
    inputs = torch.randn(5, 1, 8, 8, requires_grad=True)

    outputs, loss = train_window(units, head, optimizer, inputs, torch.zeros(5, dtype=torch.long))

    assert not outputs.requires_grad
    assert not loss.requires_grad
    assert inputs.grad is None, "a gradient reached the window before"
    assert all(p.grad is None for p in parameters(units, head)), "gradients are dropped, not zeroed"


def test_momentum_and_weight_decay_move_only_what_has_a_gradient() -> None:
    units, head = window()
    every = parameters(units, head)
    optimizer = make_optimizer(every, SETTINGS, 0.05)
    labels = torch.zeros(5, dtype=torch.long)
    train_window(units, head, optimizer, torch.randn(5, 1, 8, 8), labels)  # gives every parameter a momentum
    frozen = units[0][0].weight  # type: ignore[index]
    frozen.requires_grad_(False)
    before, others = frozen.detach().clone(), head[1].weight.detach().clone()  # type: ignore[index]

    train_window(units, head, optimizer, torch.randn(5, 1, 8, 8), labels)

    assert torch.equal(frozen, before)
    assert not torch.equal(head[1].weight, others)  # type: ignore[index]


def test_similarity_loss_by_hand() -> None:
    labels = torch.tensor([0, 0, 1])
    alike = torch.tensor([[1.0, -1.0], [2.0, -2.0], [-3.0, 3.0]]).reshape(3, 2, 1, 1)

    assert similarity_loss(alike, labels, 2).item() == pytest.approx(0, abs=1e-6)
    # Differences of 1.5, 0.5 and 2, each twice among nine.
    assert similarity_loss(alike, torch.tensor([0, 1, 1]), 3).item() == pytest.approx(2 * (2.25 + 0.25 + 4) / 9)
    maps = torch.randn(3, 2, 4, 4)
    spread = similarity_loss(maps, labels, 2)
    torch.testing.assert_close(similarity_loss(maps.flip(2) + 5, labels, 2), spread)  # place and mean do not count
    large = maps.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    averaged = maps.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.testing.assert_close(similarity_loss(large, labels, 2), similarity_loss(averaged, labels, 2))


@pytest.mark.parametrize(
    "options", [{"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1.0}, {"similarity": -1.0}]
)
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=r"Momentum|Weight decay|Similarity"):
        OptimizerSettings(**options)
