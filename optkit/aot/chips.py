"""Chips that programs are compiled for, with the public numbers that lower bounds are made of."""

from dataclasses import dataclass

_GIB = 2**30
_POD_2D = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_POD_3D = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")


@dataclass(frozen=True)
class Chip:
    """A kind of accelerator: the numbers of its makers, for one device as JAX counts them.

    A chip of v4 and of tpu7x is two devices to the compiler, each with half of the chip's numbers.

    Attributes:
      name: as in a topology, such as ``"v5e"``.
      platform: ``"tpu"`` or ``"cuda"``.
      shapes: the sizes to choose from in examples and error messages.
      most_chips: chips of the largest slice.
      devices_per_chip: devices that the compiler sees for each.
      flops: multiplications and additions a second in bfloat16.
      memory_bytes: of the memory outside of the chip (HBM).
      memory_bandwidth: bytes a second to and from it.
      link_bandwidth: bytes a second that a device sends to the others of its slice or host.
      network_bandwidth: bytes a second that it sends to other slices or hosts; None if not public.
      links: what the two are called.
      source: where the numbers are published.
    """

    name: str
    platform: str
    shapes: tuple[str, ...]
    most_chips: int
    devices_per_chip: int
    flops: float
    memory_bytes: int
    memory_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float | None
    links: tuple[str, str]
    source: str


def _tpu(
    name: str,
    shapes: tuple[str, ...],
    most_chips: int,
    tflops: float,
    memory_gib: int,
    memory_gb_s: float,
    link_gb_s: float,
    network_gbit_s: float | None,
    devices: int = 1,
) -> Chip:
    """Makes a TPU from the numbers of a whole chip, in the units of Google's documentation."""
    return Chip(
        name=name,
        platform="tpu",
        shapes=shapes,
        most_chips=most_chips,
        devices_per_chip=devices,
        flops=tflops * 1e12 / devices,
        memory_bytes=memory_gib * _GIB // devices,
        memory_bandwidth=memory_gb_s * 1e9 / devices,
        link_bandwidth=link_gb_s * 1e9 / devices,
        network_bandwidth=None if network_gbit_s is None else network_gbit_s * 1e9 / 8 / devices,
        links=("ICI", "DCN"),
        source=f"docs.cloud.google.com/tpu/docs/{name}",
    )


# Links: what a chip sends, half of the bidirectional bandwidth of the documentation. The network's
# share of a chip is that of its pod divided by the pod's chips, or as given for a chip.
CHIPS = {
    chip.name: chip
    for chip in (
        _tpu("v4", _POD_3D, 4096, 275, 32, 1200, 300, None, devices=2),
        _tpu("v5e", _POD_2D, 256, 197, 16, 819, 200, 25),
        _tpu("v5p", _POD_3D, 8960, 459, 95, 2765, 600, 50),
        _tpu("v6e", _POD_2D, 256, 918, 32, 1638, 400, 100),
        _tpu("tpu7x", _POD_3D, 9216, 2307, 192, 7380, 600, 100, devices=2),
        Chip(
            name="h100",
            platform="cuda",
            shapes=("1", "2", "4", "8"),
            most_chips=8,
            devices_per_chip=1,
            flops=989e12,  # dense
            memory_bytes=80 * 10**9,
            memory_bandwidth=3350e9,
            link_bandwidth=450e9,
            network_bandwidth=50e9,  # one adapter of 400 Gbit/s a GPU, as in a DGX H100
            links=("NVLink", "network"),
            source="the data sheet of the H100 SXM",
        ),
    )
}

# What the GPU compiler asks a device for: the limits of compute capability 9.0 and of this card.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

__all__ = ["CHIPS", "H100", "Chip"]
