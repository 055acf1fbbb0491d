"""GPUs and TPUs that this machine lacks, and for which XLA compiles ahead of time.

JAX's CUDA plugin compiles for a GPU from its description, with numbers from the
manufacturer's data sheet; libtpu knows the TPUs. Neither needs a device.
"""

import os
from typing import NamedTuple

import jax
from jax.experimental import topologies

from invariance_jax.runtime.devices import have_started, simulate

_FLAGS = ("--xla_gpu_autotune_level=0", "--xla_backend_optimization_level=0")
"""An absent GPU cannot time kernels for autotuning, and never runs the machine code."""

MEMORY_SHARES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""Names of the variable with JAX's share of the device memory; at most one is set."""

_NO_TPU = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no process has the TPU for itself
    "TPU_SKIP_MDS_QUERY": "1",  # nor is there a server that describes its host
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",  # of any type, or libtpu logs an error
    "TPU_WORKER_HOSTNAMES": "localhost",
}
"""Environment variables of libtpu on a machine without a TPU."""

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


class Gpu(NamedTuple):
    """Properties of a GPU; sizes in bytes, rates per second."""

    name: str  # as the manufacturer calls it
    capability: int  # major version of the CUDA compute capability
    cores: int  # streaming multiprocessors
    units: int  # float32 units per multiprocessor
    clock: float  # GHz
    shared_memory: int  # per multiprocessor
    shared_memory_of_block: int  # maximum of a thread block
    cache: int  # L2 cache
    memory: int  # device memory
    bandwidth: int  # of the device memory
    operations: float  # bfloat16 FLOP/s of matrix products; TF32 has half of them

    @property
    def usable(self) -> float:
        """Bytes of device memory that JAX allocates, by default three quarters."""
        given = map(os.environ.get, MEMORY_SHARES)
        return float(next(filter(None, given), "0.75")) * self.memory

    def seconds(self, flops: float, moved: int, kernels: int, precision: str) -> float:
        """Estimates the sum of the times for operations, memory traffic and launches.

        Convolutions reach about 42 % of the FLOP/s of the data sheet, and memory-bound
        kernels 75 % of its bandwidth. A kernel launch takes about 2 microseconds. XLA
        computes products in float32 as TF32.
        """
        rate = self.operations / (1 if precision == "bfloat16" else 2)
        return flops / (0.42 * rate) + moved / (0.75 * self.bandwidth) + 2e-6 * kernels


class Tpu(NamedTuple):
    """Properties of a TPU."""

    topology: str  # of eight chips: a machine of v5e or v6e, two machines of v5p
    usable: float  # bytes of device memory of a chip


_H200 = Gpu(
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

CARDS: dict[str, Gpu | Tpu] = {
    "a100": Gpu(
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
    "v5e": Tpu("v5e:2x4", 16 * 2**30),
    "v5p": Tpu("v5p:2x2x2", 95 * 2**30),
    "v6e": Tpu("v6e:2x4", 32 * 2**30),
}


def absent(name: str, count: int) -> tuple[jax.Device, ...]:
    """Returns `count` absent devices to compile for; simulates as many CPUs."""
    card, expected = CARDS[name], "1 to 8, the GPUs of a machine"
    is_possible = 0 < count <= 8
    if isinstance(card, Tpu):
        is_possible, expected = count in (1, 2, 4, 8), "1, 2, 4 or 8 TPUs"
    if not is_possible:
        raise ValueError(f"--check_devices is {count}; expected {expected}.")
    if have_started():
        raise ValueError(
            "this process has used its devices already; expected no use before "
            f"--check_target={name} is set up."
        )
    if isinstance(card, Tpu):
        for variable, value in _NO_TPU.items():
            os.environ.setdefault(variable, value)
        extra, wanted = "tpu", {"topology_name": card.topology, "platform": "tpu"}
    else:
        flags = os.environ.get("XLA_FLAGS", "").split()
        os.environ["XLA_FLAGS"] = " ".join([*_FLAGS, *flags])
        extra, wanted = "cuda12", {"topology_name": "absent", "platform": "cuda"}
        wanted["topology"] = f"1x1x{count}"
        wanted["target_config"] = _DESCRIPTION.format(**card._asdict())
    simulate(count)  # the first use of a device, which reads the flags
    try:
        topology = topologies.get_topology_desc(**wanted)
    except (NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"--check_target is {name!r}, and jax cannot compile for it ({error}); "
            f"expected its plugin: python -m pip install -e '.[{extra}]'."
        ) from error
    return tuple(topology.devices[:count])
