"""What the two shipped classifiers share: layers, half-precision weights, and a training loop.

The loop is written out here because a classifier needs none of common/training:
no noise, no average of weights, no checkpoints.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from common.errors import UserError, explain
from common.io.files import write_atomically
from common.io.progress import with_progress
from common.random import generator

WEIGHTS = Path(__file__).parent / "weights"
Net = TypeVar("Net", bound=nn.Module)


def load_weights(net: Net, path: Path, what: str, command: str) -> Net:
    """Load weights that `save_weights` wrote; returns the network, float32, in evaluation mode.

    what     "digit classifier", for messages
    command  the command that trains the network again
    """
    try:
        weights = load_file(path)
        net.load_state_dict({k: value.float() if value.is_floating_point() else value for k, value in weights.items()})
    except (OSError, SafetensorError, RuntimeError) as problem:
        raise UserError(
            f"the weights of the {what}, {path}, cannot be loaded ({explain(problem)}); "
            f"restore the file from the repository, or train it again: {command}"
        ) from problem
    return net.eval()


def save_weights(net: nn.Module, path: Path, **metadata: object) -> None:
    """Write the weights in half precision, with the metadata as texts."""
    weights = {k: value.half() if value.is_floating_point() else value for k, value in net.state_dict().items()}
    text = {"format": "pt"} | {name: str(value) for name, value in metadata.items()}
    write_atomically(path, lambda file: file.write(save(weights, metadata=text)))


def round_to_half(net: nn.Module) -> None:
    """Round the weights as `save_weights` will, so that the accuracy is measured on what is stored."""
    net.load_state_dict({k: value.half().to(value.dtype) for k, value in net.state_dict().items()})


def save_if_accurate(net: nn.Module, path: Path, accuracy: float, needed: float, command: str, seed: int) -> None:
    """Save the weights of a network whose accuracy on unseen images is high enough, with how they were made."""
    if accuracy < needed:
        raise UserError(
            f"the accuracy {accuracy:.2%} is below the {needed:.0%} that evaluations need, so the weights are not saved; give more --epochs"
        )
    save_weights(net, path, test_accuracy=accuracy, seed=seed, command=command, torch=torch.__version__)
    print(path)


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


def fit(
    make_net: Callable[[], Net],
    loss_of: Callable[[Net, Tensor, torch.Generator], Tensor],
    n: int,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    warmup: float,
) -> Net:
    """Train a network with AdamW and a one-cycle learning rate; returns it in evaluation mode.

    loss_of  (network, indices of a batch, random numbers) -> loss
    n        number of training images
    lr       peak learning rate, reached after the share `warmup` of all steps
    """
    torch.manual_seed(seed)
    net, steps = make_net(), epochs * (n // batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps, pct_start=warmup)
    rng = generator(seed)
    with with_progress("training", total=steps, unit="step") as bar:
        for _ in range(epochs):
            order = torch.randperm(n, generator=rng)
            for indices in order[: n // batch_size * batch_size].split(batch_size):
                loss = loss_of(net, indices, rng)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix({"loss": f"{float(loss.detach()):.4f}"}, refresh=False)
                bar.update()
    return net.eval()
