import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import gradpath as gp
from gradpath import perception
from gradpath.errors import InputError, LoadError

SMALL = [
    perception.ConvEncoder(16, 24, features=5, channels=(8, 16)),
    perception.ResNetEncoder(features=5, channels=(8, 16), blocks=(1, 1)),
    perception.VisionTransformer(16, 24, features=5, patch=8, size=16, depth=2, heads=2),
]


@pytest.mark.parametrize("encoder", SMALL, ids=lambda encoder: type(encoder).__name__)
def test_encoders_are_swapped_and_worlds_do_not_influence_each_other(encoder):
    torch.manual_seed(0)
    image = torch.rand(4, 3, 16, 24, requires_grad=True)
    feature = encoder.run({"image": image})["feature"]
    assert feature.shape == (4, 5)
    torch.testing.assert_close(
        encoder.run({"image": image[1:2]})["feature"], feature[1:2], rtol=1e-4, atol=1e-5
    )
    slope = torch.autograd.grad(feature[1].square().sum(), image)[0]
    assert slope[1].abs().sum() > 0 and slope[0].abs().sum() == 0
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in encoder.modules())
    encoder.eval()
    torch.testing.assert_close(encoder(image), feature)


@pytest.mark.parametrize("encoder", SMALL, ids=lambda encoder: type(encoder).__name__)
def test_encoders_are_saved_and_filled_from_a_file(encoder, tmp_path):
    gp.save(encoder, tmp_path / "run")
    again = gp.load(tmp_path / "run")
    image = torch.rand(2, 3, 16, 24)
    torch.testing.assert_close(again(image), encoder(image))
    file = tmp_path / "weights.safetensors"
    save_file({name: 0.5 * value for name, value in encoder.state_dict().items()}, file)
    perception.load_weights(again, file)
    assert not torch.allclose(again(image), encoder(image))
    state = encoder.state_dict()
    name = next(iter(state))
    for broken, message in (
        ({k: v for k, v in state.items() if k != name}, "got none"),
        ({**state, name: state[name].flatten()[:1].clone()}, "of another network"),
        ({**state, "extra": torch.zeros(1)}, 'holds "extra"'),
    ):
        save_file(broken, file)
        with pytest.raises(LoadError, match=message):
            perception.load_weights(again, file)
    file.write_bytes(b"broken")
    with pytest.raises(LoadError, match="cannot be read"):
        perception.load_weights(again, file)


def test_the_residual_network_has_the_size_of_resnet_18():
    encoder = perception.ResNetEncoder()
    count = sum(p.numel() for name, p in encoder.named_parameters() if not name.startswith("head"))
    assert count == 11_176_512  # He et al. 2016, without the last layer; group and batch norm have as many


@pytest.mark.parametrize(
    "encoder, options, steps",
    [
        ("ConvEncoder", {"channels": (8, 16)}, 60),
        ("VisionTransformer", {"patch": 4, "size": 32, "depth": 1}, 100),
    ],
)
def test_encoders_learn_where_a_dot_is(encoder, options, steps):
    torch.manual_seed(0)
    net = getattr(perception, encoder)(16, 16, channels_in=1, features=2, **options)
    place = torch.randint(0, 16, (100, 2))
    image = torch.zeros(100, 1, 16, 16)
    image[torch.arange(100), 0, place[:, 0], place[:, 1]] = 1.0
    target = place / 8.0 - 1.0
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(steps):
        loss = (net(image) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.3 * target.square().mean()


def test_memory_is_carried_and_remembers():
    torch.manual_seed(0)
    memory = perception.Memory(4, size=6)
    feature = torch.randn(3, 4)
    first = memory.run({"feature": feature, "memory": torch.zeros(3, 6)})
    second = memory.run({"feature": torch.zeros(3, 4), "memory": first["memory"]})
    other = memory.run({"feature": torch.zeros(3, 4), "memory": torch.zeros(3, 6)})
    assert second["feature"].shape == (3, 6)
    assert (second["feature"] - other["feature"]).abs().min() > 0
    rollout = gp.Rollout(gp.Pipeline(memory=memory), length=4, carry={"memory": "memory.memory"})
    assert rollout(feature=feature)["memory.memory"].shape == (4, 3, 6)


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="multiples of 8"):
        perception.ConvEncoder(channels=(12,))
    with pytest.raises(InputError, match="divide the image"):
        perception.VisionTransformer(48, 60)
    with pytest.raises(InputError, match="as many numbers of blocks"):
        perception.ResNetEncoder(blocks=(2, 2))
