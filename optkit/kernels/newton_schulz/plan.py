"""Newton-Schulz as a list of tasks on a few square matrices, which one loop works through."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from optkit.kernels.blocks import LANES
from optkit.linalg.coefficients import Row
from optkit.linalg.resets import segments

# Kinds of task. S are the square matrices that are kept, X the matrix itself.
GRAM = 0  # S[to] = X X^T
PRODUCT = 1  # S[to] = alpha S[left] S[right] + beta S[addend], which is symmetric
SUM = 2  # S[to] = S[left] + beta I
APPLY = 3  # X = alpha S[left] X + beta X
KINDS = ("gram", "product", "sum", "apply")


class Task(NamedTuple):
    """One operation on whole matrices."""

    kind: int
    to: int = 0
    left: int = 0
    right: int = 0
    addend: int = 0
    alpha: float = 1.0
    beta: float = 0.0


def standard_tasks(rows: Iterable[Row]) -> list[Task]:
    """Returns the steps ``X <- a X + (b G + c G^2) X``, ``G = X X^T``."""
    tasks = []
    for a, b, c in rows:
        tasks.append(Task(GRAM, to=0))
        if c:
            tasks.append(Task(PRODUCT, 1, 0, 0, 0, c, b))
        tasks.append(Task(APPLY, left=1 if c else 0, alpha=1.0 if c else b, beta=a))
    return tasks


def gram_tasks(rows: tuple[Row, ...], resets: Iterable[int]) -> list[Task]:
    """Returns the steps of the Gram form: those between two resets act on X at once."""
    return [task for part in segments(rows, resets) for task in _segment(part)]


def _segment(rows: tuple[Row, ...]) -> list[Task]:
    """``R = X X^T``; for each row ``Z = b R + c R^2``, ``Q <- Q (a I + Z)``; then ``X <- Q X``."""
    if len(rows) < 2:
        return standard_tasks(rows)
    r, z, q, free = range(4)
    tasks = [Task(GRAM, to=r)]
    for i, (a, b, c) in enumerate(rows):
        tasks.append(Task(PRODUCT, z, r, r, r, c, b))
        if i == 0:
            tasks.append(Task(SUM, q, z, beta=a))
        else:
            tasks.append(Task(PRODUCT, free, q, z, q, 1.0, a))
            q, free = free, q
        if i + 1 < len(rows):
            tasks.append(Task(PRODUCT, free, r, z, r, 1.0, a))
            tasks.append(Task(PRODUCT, r, z, free, free, 1.0, a))
    return [*tasks, Task(APPLY, left=q)]


class Loop(NamedTuple):
    """A loop of the kernel that keeps a matrix on the chip, in the order of its program.

    Attributes:
      name: what it does.
      trips: how often it runs for one matrix.
      products: multiplications with addition of one trip.
    """

    name: str
    trips: int
    products: int = 0


def loops(m: int, n: int, tasks: Sequence[Task], rows: int, columns: int) -> list[Loop]:
    """Returns the innermost loops of the kernel, which a schedule shows once each.

    Args:
      m: rows of the matrix, a multiple of the tile.
      n: columns.
      tasks: what the kernel does.
      rows: of a tile of the squares.
      columns: of a panel of X.
    """
    count = Counter(task.kind for task in tasks)
    tiles, panels = m // rows, m // LANES
    square = rows * rows
    out = [Loop("norm", panels), Loop("norm of unusual units", 0), Loop("division", panels)]
    for kind, depth in ((GRAM, n), (PRODUCT, m)):
        below = Loop(f"{KINDS[kind]}, off", tiles * (tiles - 1) // 2 * count[kind], square * depth)
        half = square if rows == LANES else square * 3 // 4
        on = Loop(f"{KINDS[kind]}, on", tiles * count[kind], half * depth)
        out += [below, on] if tiles > 1 else [on]
    out.append(Loop(KINDS[SUM], panels * count[SUM]))
    out.append(Loop(KINDS[APPLY], n // columns * count[APPLY], m * m * columns))
    return out


def slots(tasks: Iterable[Task]) -> int:
    """Returns how many square matrices are kept."""
    return 1 + max(max(task[1:5]) for task in tasks)
