import math

import pytest
import torch
from torch import nn

import gradpath as gp
from gradpath.conflicts import combine
from gradpath.meter import Meter

F64 = torch.float64


def two_losses(x):
    """The published toy of CAGrad: two valleys that meet in a line of optima below; (N, 2) to two of (N,)."""
    x1, x2 = x[:, 0], x[:, 1]
    upper, lower = (0.5 * x2).tanh().clamp_min(0), (-0.5 * x2).tanh().clamp_min(0)
    one = (0.5 * (-x1 - 7) + x2.tanh()).abs().clamp_min(5e-6).log() + 6
    two = (0.5 * (-x1 + 3) - x2.tanh() + 2).abs().clamp_min(5e-6).log() + 6
    bowl_one = ((7 - x1).square() + 0.1 * (x2 + 8).square()) / 10 - 20
    bowl_two = ((7 + x1).square() + 0.1 * (x2 + 8).square()) / 10 - 20
    return one * upper + bowl_one * lower, two * upper + bowl_two * lower


def descend(start, conflicts, iterations=2500):
    x = torch.tensor([start], dtype=F64, requires_grad=True)
    losses = gp.Losses(one=(1.0, lambda v: two_losses(v["x"])[0]), two=(1.0, lambda v: two_losses(v["x"])[1]))
    optimizer = torch.optim.Adam([x], lr=0.1)
    for _ in range(iterations):
        optimizer.zero_grad()
        losses({"x": x}).backward([x], conflicts)
        optimizer.step()
    return x.detach()[0]


@pytest.mark.parametrize("start", [(-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0)])
def test_cagrad_comes_to_the_optimum_of_the_mean_from_each_start(start):
    torch.testing.assert_close(
        descend(start, "cagrad"), torch.tensor([0.0, -8.3552], dtype=F64), atol=0.03, rtol=0
    )


def test_without_conflict_resolution_it_is_the_gradient_of_the_total():
    net = nn.Linear(3, 1).double()
    data = torch.randn(8, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    losses = gp.Losses(a=(2.0, lambda y: (y - 1).square(), "y"), b=(0.5, lambda y: y.abs(), "y"))
    losses({"y": net(data)}).total.backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    for _ in range(2):  # adds to what is there
        losses({"y": net(data)}).backward(net.parameters())
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_pcgrad_projects_each_gradient_off_the_others():
    one, two = torch.tensor([1.0, 0.0], dtype=F64), torch.tensor([-1.0, 1.0], dtype=F64)
    expected = (one - (one @ two) / (two @ two) * two) + (two - (one @ two) / (one @ one) * one)
    torch.testing.assert_close(combine(torch.stack([one, two]), "pcgrad"), expected)
    agreeing = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=F64)
    torch.testing.assert_close(combine(agreeing, "pcgrad"), agreeing.sum(0))
    three = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    orders = {tuple(combine(three, "pcgrad", order=torch.tensor(o)).tolist()) for o in ([0, 1, 2], [2, 1, 0])}
    assert len(orders) == 2


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("caution", [0.0, 0.4, 0.9])
def test_cagrad_is_the_best_direction_for_the_worst_loss(count, caution):
    """Against random directions of the same ball around the mean; none may serve the worst loss better."""
    generator = torch.Generator().manual_seed(count)
    gradients = torch.randn(count, 4, dtype=F64, generator=generator)
    mean = gradients.mean(0)
    ours = combine(gradients, "cagrad", caution=caution) * (1 + caution) / count
    radius = caution * mean.norm()
    assert (ours - mean).norm() == pytest.approx(float(radius), rel=1e-6, abs=1e-9)
    others = torch.randn(20_000, 4, dtype=F64, generator=generator)
    others = mean + radius * others / others.norm(dim=1, keepdim=True)
    best = (others @ gradients.T).amin(1).max()
    assert (gradients @ ours).min() >= best - 1e-4 * (1 + best.abs())
    if caution == 0.0:
        torch.testing.assert_close(ours, mean)


def test_opposite_and_zero_gradients_are_finite():
    for gradients in (torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.zeros(3, 2)):
        for choice in ("pcgrad", "cagrad"):
            assert combine(gradients, choice).isfinite().all()


def test_the_graph_is_kept_once_and_freed_at_the_end():
    x = torch.ones(3, requires_grad=True)
    values = gp.Losses(a=(1.0, lambda v: v["y"].sin()), b=(1.0, lambda v: v["y"].cos()))({"y": x * x})
    values.backward([x], "pcgrad")
    with pytest.raises(RuntimeError, match="second time"):
        values.total.backward()


@pytest.mark.parametrize("conflicts", ["none", "pcgrad", "cagrad"])
def test_conflicts_need_the_memory_of_one_graph_and_of_a_gradient_per_loss(conflicts):
    """Activations far larger than the parameters, so that a second graph would show."""
    net = nn.Sequential(*[layer for _ in range(6) for layer in (nn.Linear(8, 8), nn.Tanh())])
    data = torch.randn(20_000, 8, generator=torch.Generator().manual_seed(0))
    losses = gp.Losses(
        a=(1.0, lambda y: (y - 1).square(), "y"),
        b=(1.0, lambda y: (y + 1).square(), "y"),
        c=(1.0, lambda y: y.cos(), "y"),
    )

    def peak(backward):
        net.zero_grad()
        with Meter() as meter:
            values = losses({"y": net(data).mean(-1)})
            graph = meter.live
            meter.peak = meter.live
            backward(values)
        return graph, meter.peak - graph

    graph, plain = peak(lambda values: values.total.backward())
    _, resolved = peak(lambda values: values.backward(net.parameters(), conflicts))
    size = sum(p.numel() * p.element_size() for p in net.parameters())
    assert graph > 100 * size
    assert resolved <= plain + 0.1 * graph + 20 * size


def test_refusals():
    x = torch.ones(3, requires_grad=True)
    values = gp.Losses(a=(1.0, lambda v: v["x"]))({"x": x})
    for options in ({"conflicts": "mgda"}, {"conflicts": "cagrad", "caution": -1.0}):
        with pytest.raises(gp.InputError, match="expected one of none, pcgrad, cagrad"):
            values.backward([x], **options)
    with pytest.raises(gp.InputError, match="is one detached"):
        gp.Losses(a=(1.0, lambda v: v["x"]))({"x": x.detach()}).backward([x])


def test_matrix_of_losses_by_stages():
    net = nn.ModuleDict({"encoder": nn.Linear(2, 2), "still": nn.ReLU(), "head": nn.Linear(2, 1)}).double()
    data = torch.randn(6, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    y = net["head"](net["still"](net["encoder"](data)))[:, 0]
    losses = gp.Losses(
        up=(1.0, lambda v: -v["y"]),
        down=(2.0, lambda v: v["y"]),
        bias=(1.0, lambda v: net["head"].bias.square()),
    )
    values = losses({"y": y})
    matrix = gp.loss_matrix(values, net)
    assert matrix.losses == ("up", "down", "bias") and matrix.stages == ("encoder", "head")
    torch.testing.assert_close(matrix.norms[1], 2 * matrix.norms[0])
    assert matrix.norms[2, 0] == 0 and matrix.cosines["encoder"][2, 0].isnan()
    assert matrix.conflicts()[:1][0][3] == pytest.approx(-1.0)
    assert {row[:3] for row in matrix.conflicts()} >= {("encoder", "up", "down"), ("head", "up", "down")}
    assert "encoder: up against down, cosine -1.00" in str(matrix)
    assert matrix.json()["cosines"]["encoder"][2][0] is None
    assert matrix.json()["norms"]["up"]["head"] == pytest.approx(float(matrix.norms[0, 1]))
    expected = torch.autograd.grad(values.weighted["down"], list(net["head"].parameters()))
    norm = math.sqrt(sum(float(g.square().sum()) for g in expected))
    assert float(matrix.norms[1, 1]) == pytest.approx(norm)
    with pytest.raises(gp.InputError, match="no stage has a parameter"):
        gp.loss_matrix(values, nn.ModuleDict({"still": nn.ReLU()}))


def test_matrix_of_a_pipeline():
    class Gain(gp.Stage):
        contract = gp.Contract(inputs={"x": "B 2"}, outputs={"y": "B 2"})

        def __init__(self):
            super().__init__()
            self.factor = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return self.factor * x

    pipeline = gp.Pipeline(
        first=Gain(), second=Gain(), wires={"second.x": "first.y"}, outputs=["first.y", "second.y"]
    )
    outputs = pipeline(x=torch.ones(3, 2))
    losses = gp.Losses(
        near=(1.0, lambda y: y.square().sum(-1), "first.y"), far=(1.0, lambda y: y.sum(-1), "second.y")
    )
    values = losses(outputs)
    matrix = gp.loss_matrix(values, pipeline)
    assert matrix.stages == ("first", "second")
    assert matrix.norms[0, 1] == 0 and (matrix.norms[1] > 0).all()


def test_schedules_auxiliary_losses_and_time_steps():
    y = torch.arange(6.0).reshape(3, 2)
    losses = gp.Losses(
        last=(2.0, lambda y: y, "state.y[-1]"),
        all=(gp.Ramp(1.0, 0.0, steps=4, begin=1), lambda y: y, "state.y"),
        shape=gp.auxiliary(0.5, lambda state: state["y"], "state[0]"),
    )
    seen = []
    for _ in range(7):
        seen.append(losses.weights()["all"])
        losses.step()
    assert seen == [1.0, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    losses.position = 3
    values = losses({"state": {"y": y}})
    assert values.item_dict() == {
        "total": 2 * 4.5 + 0.5 * 2.5 + 0.5 * 0.5,
        "last": 4.5,
        "all": 2.5,
        "shape": 0.5,
    }
    assert values.main.item() == 2 * 4.5 + 0.5 * 2.5
    assert values.table().splitlines()[3].endswith("auxiliary")
    with pytest.raises(gp.ContractError, match=r'attached to "y\[3\]", but "y" has no time step 3'):
        gp.Losses(a=(1.0, lambda y: y, "y[3]"))({"y": y})
    with pytest.raises(gp.InputError, match="at least one step"):
        gp.Ramp(0.0, 1.0, 0)
