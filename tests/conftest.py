"""How JAX and Hypothesis run under every test; the environment is set before JAX is imported."""

import collections
import functools
import gc
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEVICES_FLAG = "--xla_force_host_platform_device_count"


def _compiler_flags() -> dict[str, str]:
    """Flags that make compiling cheap, which is most of the tests' time."""
    flags = {DEVICES_FLAG: "8"}
    if tuple(int(part) for part in version("jaxlib").split(".")[:2]) < (0, 11):
        # The default emitters take twice as long as these; later versions have one kind only.
        flags["--xla_cpu_use_fusion_emitters"] = "false"
    if platform.machine() == "x86_64":
        # Without fused multiply-adds. Fusions repeat a sum in each of its readers, and a compiler
        # that does not optimize contracts some copies and others not: iterations then part.
        flags["--xla_cpu_max_isa"] = "AVX"
    return flags


def _prepare_environment() -> None:
    """Sets what JAX reads when it is imported, here and in the processes that tests start."""
    if "jax" in sys.modules:
        raise RuntimeError(
            "jax was imported before tests/conftest.py: its devices can't be set any more. "
            "Find the pytest plugin that imports it, and leave it out with `-p no:NAME`."
        )
    given = os.environ.get("XLA_FLAGS", "")
    ours = [f"{name}={value}" for name, value in _compiler_flags().items() if name not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *ours]).strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # Programs run once or twice on a handful of numbers: optimizing takes longer than it saves.
    # Processes that tests start have to get the same numbers, and inherit this.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    # Nobody reads where an operation was traced, and to write it down takes long.
    os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
    # Keep all programs, however small. Entries are keyed by program, flags and versions, so that
    # environments can share them.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


_prepare_environment()

import jax  # noqa: E402
import pytest  # noqa: E402
from hypothesis import HealthCheck, settings  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

# Silent rank promotion hides shape errors in update rules. Set here and not by the environment:
# processes that tests start run as a user's would.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Each program has an MLIR context of its own, which takes long to make beside compiling a single
# operation, and tests compile tens of thousands of those. They share one.
if hasattr(mlir, "make_ir_context"):
    mlir.make_ir_context = functools.cache(mlir.make_ir_context)
# JAX's caches hold very many objects that stay: to look through them for garbage takes long.
gc.set_threshold(200_000, 50, 50)

settings.register_profile(
    "quick",
    deadline=None,  # the first example compiles
    derandomize=True,
    print_blob=True,
    max_examples=15,
    # How long an example takes to build tells of the machine's load, not of the test.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough", settings.get_profile("quick"), derandomize=False, max_examples=300
)
settings.load_profile(os.environ.get("OPTKIT_HYPOTHESIS_PROFILE", "quick"))


# A process may hold 65530 maps of memory (Linux's default), an executable takes four or five, and
# beyond that compilation ends the process. To count them takes as long as some tests do.
MOST_MAPS, PROGRAMS_BETWEEN_COUNTS = 45_000, 1000
_since_count: collections.Counter[str] = collections.Counter()


def _note_compilation(event: str, *_: object, **__: object) -> None:
    _since_count[event] += 1


jax.monitoring.register_event_duration_secs_listener(_note_compilation)


def pytest_runtest_setup() -> None:
    """Forgets programs before there are too many."""
    if _since_count["/jax/core/compile/backend_compile_duration"] < PROGRAMS_BETWEEN_COUNTS:
        return
    _since_count.clear()
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


# Tests marked `sweep` cost most of the suite's time, and are of a kind that many others are of: a
# method of the catalogue, or other hyperparameters of one. Each run looks at every eighth, from
# this one on; `make test-sweep` at all.
TURNS = 8
TURN = os.environ.get("OPTKIT_SWEEP", "0")


def _has_its_turn(item: pytest.Item) -> bool:
    if TURN == "all" or item.get_closest_marker("sweep") is None:
        return True
    assert isinstance(item, pytest.Function), f"{item.nodeid} is not one of many"
    numbers = item.callspec.indices
    # Contracts of one method have their turn together: they share what is compiled.
    # Names that one mark gives values to have the same number.
    number = numbers["method"] if "method" in numbers else sum(set(numbers.values()))
    return number % TURNS == int(TURN) % TURNS


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what waits for its turn."""
    parts: dict[bool, list[pytest.Item]] = {False: [], True: []}
    for item in items:
        parts[_has_its_turn(item)].append(item)
    config.hook.pytest_deselected(items=parts[False])
    items[:] = parts[True]


@pytest.fixture
def optimizing() -> Iterator[None]:
    """As a user's programs are compiled, and kept nowhere: tests otherwise skip optimizations."""
    before = {
        "jax_disable_most_optimizations": jax.config.read("jax_disable_most_optimizations"),
        "jax_enable_compilation_cache": jax.config.jax_enable_compilation_cache,
    }
    for name in before:
        jax.config.update(name, False)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
