"""Newton-Schulz as a list of tasks on a few square matrices, which one loop works through."""

from collections.abc import Iterable
from typing import NamedTuple

from optkit.kernels.blocks import LANES
from optkit.linalg.coefficients import Row
from optkit.linalg.resets import segments

# Kinds of task. S are the square matrices that are kept, X the matrix itself.
GRAM = 0  # S[to] = X X^T
PRODUCT = 1  # S[to] = alpha S[left] S[right] + beta S[addend] + gamma I, which is symmetric
APPLY = 2  # X = alpha S[left] X + beta X


class Task(NamedTuple):
    """One operation on whole matrices."""

    kind: int
    to: int = 0
    left: int = 0
    right: int = 0
    addend: int = 0
    alpha: float = 1.0
    beta: float = 0.0
    gamma: float = 0.0


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
    """Steps on ``R = X X^T`` and the factor Q of all of them; then ``X <- Q X``.

    1. of the first row ``Q = a I + b R + c R^2``, ``R <- Q (R Q)``; 2. of each other row
    ``Z = b R + c R^2``, ``Q <- Q Z + a Q``, ``Y = R Z + a R``, ``R <- Z Y + a Y``; of the last row
    no R.
    """
    if len(rows) < 2:
        return standard_tasks(rows)
    r, z, q, free = range(4)
    tasks = [Task(GRAM, to=r)]
    for i, (a, b, c) in enumerate(rows):
        if i == 0:
            tasks += [
                Task(PRODUCT, q, r, r, r, c, b, a),
                Task(PRODUCT, free, r, q, r),
                Task(PRODUCT, r, q, free, free),
            ]
            continue
        tasks += [Task(PRODUCT, z, r, r, r, c, b), Task(PRODUCT, free, q, z, q, 1.0, a)]
        q, free = free, q
        if i + 1 < len(rows):
            tasks.append(Task(PRODUCT, free, r, z, r, 1.0, a))
            tasks.append(Task(PRODUCT, r, z, free, free, 1.0, a))
    return [*tasks, Task(APPLY, left=q)]


def scale_powers(tasks: Iterable[Task]) -> list[tuple[int, int]]:
    """Returns with which powers of s alpha and beta are multiplied, if X is s times what is held.

    So a matrix need not be divided by its norm before its first product: s is known after that.
    Its Gram matrix is held without s, too; what is made of it is held as it is.

    Example:
      >>> scale_powers(standard_tasks([(1.0, 1.0, 1.0)] * 2))
      [(0, 0), (4, 2), (1, 1), (0, 0), (0, 0), (0, 0)]
    """
    own, held, out = 1, dict[int, int](), []
    for task in tasks:
        if task.kind == GRAM:
            held[task.to] = 2 * own
            out.append((0, 0))
        elif task.kind == PRODUCT:
            out.append((held[task.left] + held[task.right], held[task.addend]))
            held[task.to] = 0
        else:
            out.append((held[task.left] + own, own))
            own = 0
    return out


def multiplications(m: int, n: int, tasks: Iterable[Task], rows: int) -> int:
    """Returns the multiplications with addition of the kernel that keeps a matrix on the chip.

    Args:
      m: rows of the matrix, a multiple of the tile.
      n: columns.
      tasks: what the kernel does.
      rows: of a tile of the squares.
    """
    tiles = m // rows
    on = rows * rows if rows == LANES else rows * rows * 3 // 4
    half = tiles * (tiles - 1) // 2 * rows * rows + tiles * on
    each = {GRAM: half * n, PRODUCT: half * m, APPLY: m * m * n}
    return sum(each[task.kind] for task in tasks)


def slots(tasks: Iterable[Task]) -> int:
    """Returns how many square matrices are kept."""
    return 1 + max(max(task[1:5]) for task in tasks)
