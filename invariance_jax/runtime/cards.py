"""GPUs that are not there: what XLA must know of one to compile for it ahead of time.

The numbers are those of the makers' data sheets. The CUDA plugin of jax compiles for a
card that it is told of; it finds none on this machine, and needs none.
"""

import os
from typing import NamedTuple

import jax
from jax.experimental import topologies

from invariance_jax.runtime.devices import have_started, simulate

_FLAGS = ("--xla_gpu_autotune_level=0", "--xla_backend_optimization_level=0")
"""Nothing can be timed on a card that is not there, and its machine code is not run."""

_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_memory}
  shared_memory_per_block_optin: {shared_memory_of_block}
  threads_per_core_limit: 2048  core_count: {cores}  fpus_per_core: {units}
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024  thread_dim_limit_y: 1024  thread_dim_limit_z: 64
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
  memory_bandwidth: {bandwidth}  device_memory_size: {memory}
  l2_cache_size: {cache}  clock_rate_ghz: {clock}
  cuda_compute_capability {{ major: {capability} }}
  device_vendor: "NVIDIA Corporation"  name: "{name}"  device_address_bits: 64
  driver_version: "12.9.0"  runtime_version: "12.9.0"
  compile_time_toolkit_version: "12.9.0"  dnn_version: "9.8.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
device_description_str: "{name}"
"""


class Card(NamedTuple):
    """What is known of a GPU; sizes in bytes, rates per second."""

    name: str  # the maker's
    capability: int  # the version of its instructions
    cores: int  # its multiprocessors
    units: int  # for float32, of a multiprocessor
    clock: float  # GHz
    shared_memory: int  # of a multiprocessor
    shared_memory_of_block: int  # of a block of threads, at most
    cache: int  # shared by all multiprocessors
    memory: int  # of the card
    bandwidth: int  # bytes that its memory moves
    operations: float  # of products in bfloat16; TF32, XLA's float32, has half the rate

    @property
    def usable(self) -> float:
        """Returns the bytes of its memory that jax takes, by default three quarters."""
        share = os.environ.get("XLA_CLIENT_MEM_FRACTION", "0.75")
        return float(share) * self.memory

    def seconds(self, flops: float, moved: int, kernels: int, precision: str) -> float:
        """Estimates the time of operations, of bytes moved and of starts, in turn.

        Of what the data sheet says, convolutions reach some 42 % and kernels that move
        data 75 %; to start one takes some 2 microseconds.
        """
        rate = self.operations / (1 if precision == "bfloat16" else 2)
        return flops / (0.42 * rate) + moved / (0.75 * self.bandwidth) + 2e-6 * kernels


_H200 = Card(
    name="NVIDIA H200",
    capability=9,
    cores=132,
    units=128,
    clock=1.98,
    shared_memory=233_472,
    shared_memory_of_block=232_448,
    cache=52_428_800,
    memory=151_397_597_184,
    bandwidth=4_800_000_000_000,
    operations=989e12,
)

CARDS = {
    "a100": Card(
        name="NVIDIA A100-SXM4-80GB",
        capability=8,
        cores=108,
        units=64,
        clock=1.41,
        shared_memory=167_936,
        shared_memory_of_block=166_912,
        cache=41_943_040,
        memory=84_974_239_744,
        bandwidth=2_039_000_000_000,
        operations=312e12,
    ),
    "h100": _H200._replace(
        name="NVIDIA H100 80GB HBM3",
        memory=84_942_979_072,
        bandwidth=3_352_320_000_000,
    ),
    "h200": _H200,
}


def absent(name: str, count: int) -> tuple[jax.Device, ...]:
    """Returns so many cards of a name, for which programs can be compiled only.

    As many CPU devices are simulated, for what is done besides.
    """
    if not 0 < count <= 8:
        raise ValueError(
            f"--check_devices is {count}; expected 1 to 8, the cards of a machine."
        )
    if have_started():
        raise ValueError(
            "this process has used its devices already; expected none before the "
            f"{name} of --check_target is described."
        )
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, *flags])
    simulate(count)  # the first use of a device, which reads the flags
    try:
        described = topologies.get_topology_desc(
            "absent",
            "cuda",
            topology=f"1x1x{count}",
            target_config=_DESCRIPTION.format(**CARDS[name]._asdict()),
        )
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"--check_target is {name!r}, and jax cannot compile for it ({error}); it "
            "needs its CUDA plugin: python -m pip install -e '.[cuda12]'."
        ) from error
    return tuple(described.devices)
