"""The tasks by name: their settings before anything is imported, and the task itself when a command runs. No torch.

A built-in task is a folder `unet/tasks/<name>/` and no line elsewhere. The folder is found by its `task.py`:

    __init__.py   empty
    settings.py   the class `Settings(TaskSettings)`, with `name: ClassVar[str] = "<name>"`: the name of the folder
    task.py       the class of the task, with `Settings` of settings.py, and at the module's end `TASK = <the class>`

Neither module imports torch at its top. `settings_of` imports settings.py alone, `task_class` imports task.py.
"""

from __future__ import annotations

import functools
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING

from unet.config.resolve import default_task
from unet.config.task_settings import TaskSettings
from unet.config.values import import_class
from unet.errors import UsageError

if TYPE_CHECKING:
    from unet.config.schema import Config
    from unet.data.download.sources import Source
    from unet.tasks.base import Task

HINT = "Give --task package.module:Class, a subclass of unet.tasks.base.Task on the Python path."


def built_in() -> tuple[str, ...]:
    """The tasks of this package, the default task first, the others in the order of the alphabet."""
    names = (path.parent.name for path in Path(__file__).parent.glob("*/task.py"))
    return tuple(sorted(names, key=lambda name: (name != default_task(), name)))


BUILT_IN = built_in()


def planner() -> str:
    """The task whose settings follow from the data: what `plan` is for where no task is typed."""
    return next(name for name in BUILT_IN if settings_of(name).plans)


def downloads() -> tuple[str, ...]:
    """The tasks whose set is public: they say in `download.py` where it lies."""
    return tuple(name for name in BUILT_IN if (Path(__file__).parent / name / "download.py").exists())


def source_of(name: str) -> Source:
    """Where the set of a task lies. Raises UsageError for a task whose set is not public."""
    if name not in downloads():
        raise UsageError(f"There is no public set of {name!r} to load.", f"Sets: {', '.join(downloads())}.")
    found: Source = importlib.import_module(f"unet.tasks.{name}.download").SOURCE
    return found


@functools.cache
def settings_of(name: str) -> type[TaskSettings]:
    """The settings of a task: of a built-in one, or of `package.module:Class`. Raises UsageError."""
    if name in BUILT_IN:
        found: type[TaskSettings] = importlib.import_module(f"unet.tasks.{name}.settings").Settings
        return found
    if ":" in name:
        return task_class(name).Settings
    raise UsageError(f"Unknown task {name!r}.", f"Tasks: {', '.join(BUILT_IN)}; or your own: package.module:Class.")


def task_class(name: str) -> type[Task]:
    """The class of a task. Raises UsageError where a task of the user's own cannot be imported."""
    if name in BUILT_IN:
        found: type[Task] = importlib.import_module(f"unet.tasks.{name}.task").TASK
        return found
    from unet.tasks.base import Task

    own = import_class("--task", name, Task, HINT)
    require_complete(name, own)
    return own


def require_complete(name: str, own: type[Task]) -> None:
    """Raise UsageError for a task of the user's own that lacks an attribute which every task has, or takes the name of
    a built-in one: its weights, runs and caches would pass for that one's."""
    missing = [item for item in ("Settings", "metric", "layout") if not hasattr(own, item)]
    if missing or not (isinstance(own.Settings, type) and issubclass(own.Settings, TaskSettings)):
        words = f"has no {' and no '.join(missing)}" if missing else "has Settings that are no subclass of TaskSettings"
        raise UsageError(f"--task {name}: the class {words}.", "See docs/new-task.md for what a task must have.")
    known = getattr(own.Settings, "name", None)
    if not isinstance(known, str) or not re.fullmatch(r"[A-Za-z][\w-]{0,39}", known, re.ASCII) or known in BUILT_IN:
        raise UsageError(
            f"--task {name}: the name {known!r} in its Settings is not a name of its own, of letters, digits, _ and -.",
            f'Write name: ClassVar[str] = "mytask" there, a name other than {", ".join(BUILT_IN)}.',
        )
    if own.layout.task != known:
        raise UsageError(
            f"--task {name}: its layout is of task {own.layout.task!r}, and its Settings are of {known!r}.",
            "Give both the same name.",
        )


def task_flag(config: Config) -> list[str]:
    """--task as a command must name it: weights and files say a built-in task, a task of the user's own is typed."""
    name = config.general.task
    return [] if name in BUILT_IN else ["--task", name]


def create(config: Config) -> Task:
    """The task of these settings, which it holds."""
    return task_class(config.general.task)(config)
