"""benchmark: speed, memory and limits of the training step and of prediction with given settings; compared with a plain
loop and with other programs; over several settings, or on several processes."""

from __future__ import annotations

from unet import host
from unet.benchmarks import measure, results, scaling, sweep, table
from unet.commands import output, setup
from unet.config.check_paths import APPLYING, loads_data
from unet.config.resolve import Resolved
from unet.config.schema import unmeasured
from unet.devices import launchers, load
from unet.errors import UsageError


def run(resolved: Resolved, command: str) -> int:
    """Time the step with these settings and its opponents alternately, each in its own process; then what limits it.

    The plain loop is the task's network and loss in plain PyTorch: fp32, channels first, eager, torch's optimiser,
    without the process settings of this program. Rounds alternate, so a machine whose speed drifts slows all; ratios
    are what to quote. The first --benchmark-warmup steps (a round, where it is not typed) are left out. With --mode
    predict only the prediction is timed. With --sweep each combination of settings is measured like this in a process
    of its own; several processes (--devices, a launcher) give the rates on 1 to N of them.
    Writes benchmark.json where --run-name is given, and for --sweep and --profile in any case; also where it is stopped
    after a whole round, with the rounds that are measured.
    """
    if (several := resolved.config.train.accumulate) > 1:
        said = f"--accumulate {several} is for train: here every batch has an optimiser step."
        if resolved.sources["accumulate"].startswith("flag"):
            raise UsageError(said, "Leave it out.")
        host.notice(said)
    rank = launchers.find_rank(resolved.config.distributed, resolved.config.device.cuda_devices)
    for remark in unmeasured(resolved.config, resolved.sources, resolved.config.run.mode in APPLYING, rank.world > 1):
        if rank.rank == 0:
            host.notice(f"note: {remark}")
    measure.require_opponents(resolved.config)
    if resolved.config.measure.sweep:
        return sweep.run(resolved, command)
    if loads_data(resolved.config):
        resolved = setup.settled(resolved)
    config = resolved.config
    if rank.world > 1:
        return scaling.run(resolved, command)
    folder = results.folder_of(config)
    trace, stopped = results.draft_of(folder, config), None
    watch = load.Watch()
    try:
        try:
            result = measure.measured(resolved, str(trace or ""))
        except measure.Unfinished as error:
            stopped, result = error, error.result
        results.beside(result, [watch.span()])
        output.show(config, result, "" if config.output.json else table.text(result))
        if folder:
            results.keep(folder, resolved, command, result, trace)
    finally:
        if trace:
            trace.unlink(missing_ok=True)
    if stopped:
        raise stopped
    return 0
