"""Which program an operation becomes: plain JAX, or the kernel of the platform it runs on."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from optkit.linalg.implementation import Choice, Implementation, check_implementation

Kernel = Callable[..., Any]


class Unserved(ValueError):
    """What a kernel cannot do, with the numbers."""


def by_platform(
    operation: str, *arrays: jax.Array, tpu: Kernel | None = None, gpu: Kernel | None = None
) -> Any:
    """Calls the kernel of the platform that the program is lowered for.

    That may be another one than this process runs on: a program compiled for a topology on a
    machine without accelerators takes the accelerator's kernel.

    Args:
      operation: its name, for the message.
      *arrays: one or more; what the kernels are called with.
      tpu: the kernel for TPUs, a function of the arrays. What it refuses by ``Unserved`` is
        raised when the program is lowered for a TPU; at once, if no other kernel serves it.
      gpu: the kernel for NVIDIA's GPUs, likewise; it returns the same shapes and dtypes.

    Returns:
      What the kernels return.

    Raises:
      ValueError: no kernel serves these arrays.
      NotImplementedError: while lowering, where no kernel is for the platform, with the remedy.
    """
    # One function object each: traced once, though several branches need its types.
    kernels = {
        name: jax.jit(kernel)
        for name, kernel in (("tpu", tpu), ("cuda", gpu))
        if kernel is not None
    }
    has = " and ".join("TPUs" if name == "tpu" else "NVIDIA's GPUs" for name in kernels)

    def branch(first: str | None) -> Kernel:
        def run(x: jax.Array, *others: jax.Array) -> Any:
            text = f"{operation} has kernels for {has} only, not for {{platform}}"
            reason: Unserved | None = None
            for name in sorted(kernels, key=lambda name: name != first):
                asked = x if name == first else _REFUSE.bind(x, text=text)
                try:
                    return kernels[name](asked, *others)
                except Unserved as why:
                    reason, text = why, f"{operation}: {why}"
            raise reason if reason is not None else Unserved(f"{operation} has no kernel")

        return run

    named = {name: branch(name) for name in kernels}
    return jax.lax.platform_dependent(*arrays, default=branch(None), **named)


# Stands before a computation that a platform cannot do: the identity, until it is lowered.
_REFUSE = Primitive("refuse")
_REFUSE.def_abstract_eval(lambda x, text: x)
batching.defvectorized(_REFUSE)


def _raise_refusal(text: str, platform: str) -> Any:
    raise NotImplementedError(
        f"{text.replace('{platform}', platform)}; give implementation='xla', or 'interpret' to "
        "run the kernel slowly on any device"
    )


def _lower_refusal(context: Any, x: Any, *, text: str) -> Any:
    platforms = context.platforms or context.module_context.platforms
    return _raise_refusal(text, ", ".join(platforms))


_REFUSE.def_impl(lambda x, text: _raise_refusal(text, jax.default_backend()))
mlir.register_lowering(_REFUSE, _lower_refusal)

__all__ = ["Choice", "Implementation", "Unserved", "by_platform", "check_implementation"]
