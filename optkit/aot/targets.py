"""Accelerators that need not be there: a topology's name becomes devices to compile for."""

import difflib
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from optkit.aot.chips import CHIPS, H100, Chip
from optkit.aot.schedules import compiler_flags

# Read when a compiler is first used. For TPUs: the first lets several processes use it at once on a
# machine without a TPU; the others keep it from asking for a device (TPU_ACCELERATOR_TYPE names any
# kind, the topology decides). For GPUs: libraries that only running needs may be missing.
_ENVIRONMENT = {
    "tpu": {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    },
    "cuda": {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
}
_NAME = re.compile(r"(?:(?P<slices>\d+)x(?=[a-z]))?(?P<chip>[a-z]\w*)(?::(?P<shape>[\dx]+))?")
_EXTRA = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_plugins.xla_cuda12", "gpu")}


class UnavailableTarget(RuntimeError):
    """The compiler for an accelerator cannot be used here; the message says how to mend it."""


@dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
      name: as it was asked for, such as ``"2xv5e:4x4"``.
      chip: the kind of the devices, with its public numbers.
      shape: chips along each side of a slice; of GPUs, how many share a host.
      slices: how many slices, or hosts with GPUs.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def size(self) -> int:
        """How many devices there are; the compiler is not asked."""
        return self.slices * math.prod(self.shape) * self.chip.devices_per_chip

    @property
    def devices(self) -> list[Any]:
        """The devices, slice after slice; loads the compiler.

        Raises:
          UnavailableTarget: its extra is not installed, or another process keeps it locked.
        """
        return list(_devices(self.chip.name, self.shape, self.slices))

    def mesh(
        self,
        axes: Mapping[str, int] | Sequence[str] | str | None = None,
        *,
        axis_types: tuple[AxisType, ...] | None = None,
    ) -> Mesh:
        """Returns a mesh over all devices, in their order: a first axis goes over slices first.

        Args:
          axes: sizes by name, the product being the number of devices; one name or None
            (``"devices"``) for one axis.
          axis_types: as of ``jax.sharding.Mesh``; by default all Auto.

        Returns:
          The mesh.

        Raises:
          ValueError: the sizes do not multiply to the number of devices.
        """
        if axes is None or not isinstance(axes, Mapping):
            given = "devices" if axes is None else axes
            names = (given,) if isinstance(given, str) else tuple(given)
            if len(names) != 1:
                raise ValueError(f"axes has {len(names)} names and no sizes: pass {{name: size}}")
            axes = {names[0]: self.size}
        if math.prod(axes.values()) != self.size:
            raise ValueError(
                f"the mesh {dict(axes)} has {math.prod(axes.values())} places, and {self.name} has "
                f"{self.size} devices: the sizes have to multiply to that"
            )
        places = np.array(self.devices).reshape(tuple(axes.values()))
        return Mesh(places, tuple(axes), axis_types=axis_types or (AxisType.Auto,) * len(axes))


def find_target(name: str | Target) -> Target:
    """Returns the target that a topology's name stands for; no compiler is loaded.

    Args:
      name: ``KIND:SHAPE`` such as ``"v5e:4x4"``, ``"v5p:2x2x4"`` or ``"h100:8"``; ``NxKIND:SHAPE``
        for several slices or hosts, ``"2xv5e:4x4"``; a kind alone is its smallest whole host
        (one H100).

    Returns:
      The target.

    Raises:
      ValueError: there is no such kind or size; the message lists those that there are.

    Example:
      >>> target = find_target("2xv5e:4x4")
      >>> target.size, target.chip.links
      (32, ('ICI', 'DCN'))
    """
    if isinstance(name, Target):
        return name
    parts = _NAME.fullmatch(name)
    if parts is None or parts["chip"] not in CHIPS:
        raise ValueError(f"unknown topology {name!r}{_meant(name)}; known are {known_text()}")
    chip, slices = CHIPS[parts["chip"]], int(parts["slices"] or 1)
    default = "1" if chip.platform == "cuda" else next(x for x in chip.shapes if x[0] != "1")
    text = parts["shape"] or default
    sides = tuple(int(side) for side in text.split("x") if side)
    if slices < 1 or not _fits(chip, text, sides):
        raise ValueError(f"{chip.name} has no size {text!r} in {name!r}; known are {known_text()}")
    return Target(name, chip, sides, slices)


def _fits(chip: Chip, text: str, sides: tuple[int, ...]) -> bool:
    """Whether there is a slice of this size; whole hosts of TPUs are 2x2."""
    if text in chip.shapes:
        return True
    if chip.platform == "cuda":
        return len(sides) == 1 and 1 <= sides[0] <= chip.most_chips
    rank = chip.shapes[0].count("x") + 1
    whole = len(sides) == rank and all(side > 0 for side in sides)
    return whole and not any(side % 2 for side in sides[:2]) and math.prod(sides) <= chip.most_chips


def known_text() -> str:
    """Returns the known topologies in words."""
    kinds = "; ".join(f"{chip.name}:{{{', '.join(chip.shapes)}}}" for chip in CHIPS.values())
    return f"{kinds}; several slices or hosts as 2xv5e:4x4"


def _meant(name: str) -> str:
    kind = re.sub(r"^\d+x(?=[a-z])", "", name.lower()).split(":")[0]
    close = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


@functools.cache
def _devices(chip: str, shape: tuple[int, ...], slices: int) -> tuple[Any, ...]:
    """Asks the compiler for the devices of a topology."""
    kind = CHIPS[chip]
    require_compiler(kind.platform)
    options: dict[str, Any]
    if kind.platform == "cuda":
        name, options = chip, {"target_config": H100, "topology": f"1x{slices}x{shape[0]}"}
    else:
        name, options = f"{chip}:{'x'.join(map(str, shape))}", {}
        if slices > 1:
            options["num_slices"] = slices
        if math.prod(shape) == 1:
            options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        with _environment(kind.platform):
            found = topologies.get_topology_desc(name, kind.platform, **options)
    except NotImplementedError as error:
        raise UnavailableTarget(
            "JAX looked for GPUs before optkit could say that their compiler alone is wanted, and "
            "left it out: set JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 in the environment and start again"
        ) from error
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" not in str(error):
            raise
        raise UnavailableTarget(
            "another process holds the lock of the TPU's compiler, and this process asked for it "
            "before optkit could say that sharing is fine: set ALLOW_MULTIPLE_LIBTPU_LOAD=1 in the "
            "environment and start again, or end the other process"
        ) from error
    return tuple(sorted(found.devices, key=lambda device: getattr(device, "slice_index", 0) or 0))


def require_compiler(platform: str) -> None:
    """Raises if the compiler for a platform is not installed.

    Args:
      platform: ``"tpu"`` or ``"cuda"``.

    Raises:
      UnavailableTarget: with the command that installs it.
    """
    module, extra = _EXTRA[platform]
    if not _is_installed(module):
        kind = "TPU" if platform == "tpu" else "GPU"
        raise UnavailableTarget(
            f"the {kind} compiler is not installed ({module} is not found); no {kind} is needed "
            f"for it: pip install 'optkit[{extra}]'"
        )


def _is_installed(module: str) -> bool:
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return False
    return found is not None and found.origin is not None


@contextmanager
def _environment(platform: str) -> Iterator[None]:
    """Sets what a compiler reads when it is loaded, and takes it back."""
    wanted = {
        name: value for name, value in _ENVIRONMENT[platform].items() if name not in os.environ
    }
    if platform == "tpu" and (flags := compiler_flags()):
        wanted["LIBTPU_INIT_ARGS"] = flags
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


__all__ = ["Target", "UnavailableTarget", "find_target", "known_text", "require_compiler"]
