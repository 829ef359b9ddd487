"""A twin trains the same weights, with gradients of its own."""

import torch
from torch import nn

from nplus.training.twin import Twin


def small():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.Linear(4, 7, bias=False))
    model[2].weight = model[0].weight  # tied
    model[1].bias.requires_grad_(False)
    model.register_buffer("scale", torch.tensor(2.0))
    return model.double()


def test_weights_are_shared_and_gradients_are_not():
    model = small()
    twin = Twin(model)
    for mine, other in zip(model.parameters(), twin.module.parameters(), strict=True):
        assert mine is not other
        assert mine.data_ptr() == other.data_ptr()
        assert mine.requires_grad == other.requires_grad
    assert twin.module.scale is model.scale
    assert twin.module[2].weight is twin.module[0].weight
    twin.module(torch.tensor([1, 2])).sum().backward()
    assert all(p.grad is None for p in model.parameters())


def test_both_see_a_step():
    model = small()
    twin = Twin(model)
    before = twin.module(torch.tensor([3])).detach()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(torch.tensor([3])).sum().backward()
    optimizer.step()
    after = twin.module(torch.tensor([3])).detach()
    assert not torch.allclose(before, after)
    assert torch.equal(after, model(torch.tensor([3])).detach())
    model.load_state_dict({name: torch.zeros_like(x) for name, x in model.state_dict().items()})
    assert not twin.module(torch.tensor([3])).any()


def test_gradients_are_given_and_dropped():
    model = small()
    inputs = torch.tensor([1, 5]), torch.tensor([2])
    (model(inputs[0]).square().sum() + model(inputs[1]).square().sum()).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    twin = Twin(model)
    for own in (True, False):  # with gradients of the original's, and without
        if own:
            model(inputs[0]).square().sum().backward()
        else:
            model.zero_grad()
            twin.module(inputs[0]).square().sum().backward()
        twin.module(inputs[1]).square().sum().backward()
        twin.give_gradients()
        for name, gradient in expected.items():
            found = dict(model.named_parameters())[name].grad
            torch.testing.assert_close(found, gradient, rtol=1e-12, atol=1e-12)
        assert all(p.grad is None for p in twin.module.parameters())
    twin.module(inputs[1]).sum().backward()
    twin.drop_gradients()
    assert all(p.grad is None for p in twin.module.parameters())
