"""The key `compile`: G and the objectives through torch.compile, and their gradients checked against eager ones."""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from torch import nn

from distgan.errors import UsageError
from distgan.gan.step import GAN

T = TypeVar("T")


def compiler(deterministic: bool) -> Callable[[Any], Any]:
    """A function for `GAN.compile`: compiles each function once, whole, for the shapes that it meets."""
    import torch._dynamo
    import torch._inductor.config

    # penalties take gradients with respect to images inside of D's objective
    torch._dynamo.config.trace_autograd_ops = True
    torch._inductor.config.deterministic = deterministic

    @functools.cache
    def compile_once(function: Callable[..., T]) -> Callable[..., T]:
        name = "G" if isinstance(function, nn.Module) else function.__name__
        return readable(name, torch.compile(function, fullgraph=True, dynamic=False))

    return compile_once


def readable(name: str, compiled: Callable[..., T]) -> Callable[..., T]:
    """The same function, which raises UsageError in one line where torch cannot compile it."""
    from torch._dynamo.exc import TorchDynamoException

    def call(*arguments: Any) -> T:
        try:
            return compiled(*arguments)
        except TorchDynamoException as error:
            reason = " ".join(str(error).split("\n\n")[0].split())[:300]
            raise UsageError(f"compile: torch cannot compile {name}: {reason}; set compile to false") from error

    return call


def eager(gan: GAN) -> GAN:
    """The same GAN, not compiled."""
    return replace(gan, compile=lambda function: function)
