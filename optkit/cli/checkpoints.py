"""Checkpoints of a training run: whole or absent, and back in the structure they were saved in."""

import pathlib
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from optkit.cli.errors import CommandError, message_of

__all__ = ["KEEP", "Checkpoints"]

KEEP = 2


def _filled(leaf: Any) -> Any:
    """Gives a zero-size array one element, since the checkpoint format holds no empty arrays."""
    return jnp.zeros((1,), leaf.dtype) if leaf.size == 0 else leaf


def _place(path: tuple[Any, ...]) -> str:
    """Returns where a leaf is; saved NamedTuples are dicts, so kinds of keys do not count."""
    return "/".join(jax.tree_util.keystr((key,), simple=True) for key in path)


def _misfit(saved: Any, wanted: Any) -> str | None:
    """Returns what is wrong with the first array that was saved with another shape, or None."""
    shapes = {
        _place(path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(saved)
        if hasattr(leaf, "shape")
    }
    for path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        found = shapes.get(_place(path), leaf.shape)
        # Keys are kept as their words.
        if found != leaf.shape and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return f"{_place(path)} has shape {found}, needed is {leaf.shape}"
    return None


class Checkpoints:
    """The checkpoints in one directory.

    Each save is written beside its final place and renamed when complete, so that a process killed
    in the middle leaves the previous checkpoint as the newest one.

    Args:
      directory: where they live; made when missing.
      keep: how many of the newest stay.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as directory, Checkpoints(directory) as checkpoints:
      ...     checkpoints.save(3, {"w": jnp.ones(2)}, (), {"seed": 0})
      ...     checkpoints.latest(), checkpoints.record(3)
      (3, {'seed': 0})
    """

    def __init__(self, directory: pathlib.Path | str, keep: int = KEEP) -> None:
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        # Declaring the handlers lets a record be read before the shapes of the arrays are known.
        registry = ocp.DefaultCheckpointHandlerRegistry()
        registry.add("arrays", ocp.args.StandardSave)
        registry.add("arrays", ocp.args.StandardRestore)
        registry.add("record", ocp.args.JsonSave)
        registry.add("record", ocp.args.JsonRestore)
        path = pathlib.Path(directory).resolve()
        self._manager = ocp.CheckpointManager(path, options=options, handler_registry=registry)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Returns the steps of all whole checkpoints, the oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, params: Any, state: Any, record: dict[str, Any]) -> None:
        """Saves one step and return when it is on disk.

        Args:
          step: number of steps done.
          params: pytree of arrays.
          state: optimizer state, any pytree of arrays.
          record: JSON values that say what run this is.
        """
        arrays = {"params": params, "state": state, "step": np.asarray(step, np.int64)}
        args = ocp.args.Composite(
            arrays=ocp.args.StandardSave(jax.tree.map(_filled, arrays)),
            record=ocp.args.JsonSave(record),
        )
        self._manager.save(step, args=args, force=True)
        self._manager.wait_until_finished()

    def record(self, step: int) -> dict[str, Any]:
        """Returns the record that was saved with a step.

        Args:
          step: a step that was saved.

        Returns:
          The record.
        """
        args = ocp.args.Composite(record=ocp.args.JsonRestore())
        return self._manager.restore(step, args=args)["record"]

    def restore(self, step: int, abstract_params: Any, abstract_state: Any) -> tuple[Any, Any]:
        """Restores a step into the structure of the abstract trees.

        Args:
          step: a step that was saved.
          abstract_params: shapes and dtypes, as of ``jax.eval_shape(task.init, key)``.
          abstract_state: the same of ``jax.eval_shape(tx.init, abstract_params)``; NamedTuples and
            empty nodes come back as such.

        Returns:
          ``(state, params)``.

        Raises:
          CommandError: if the checkpoint has another structure or other shapes.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = {"params": abstract_params, "state": abstract_state}

        def target(leaf: Any) -> jax.ShapeDtypeStruct:
            shape = leaf.shape if leaf.size else (1,)
            return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=device)

        arrays = {**jax.tree.map(target, abstract), "step": np.asarray(0, np.int64)}
        args = ocp.args.Composite(arrays=ocp.args.StandardRestore(arrays))
        try:
            # Orbax would raise too, but in the middle of reading: what its other reads then
            # report, they report to an event loop that has gone.
            if misfit := _misfit(self._manager.item_metadata(step)["arrays"].tree, arrays):
                raise ValueError(misfit)
            found = self._manager.restore(step, args=args)["arrays"]
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(
                f"the checkpoint of step {step} does not fit this method and task "
                f"(was it written by another version?): {message_of(error)}"
            ) from error

        def emptied(like: Any, leaf: Any) -> Any:
            return leaf if like.size else jnp.zeros(like.shape, like.dtype)

        restored = {key: jax.tree.map(emptied, abstract[key], found[key]) for key in abstract}
        return restored["state"], restored["params"]
