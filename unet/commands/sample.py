"""sample: draws samples of a generative network."""

from __future__ import annotations

from pathlib import Path

from unet import files, host
from unet.commands import predict, predict_outputs, setup
from unet.config.resolve import Resolved
from unet.errors import UsageError
from unet.runtime.folders.output_folder import FREE, MANIFEST, OWN, UNFINISHED, Made, OutputFolder, digests
from unet.runtime.stop import interruptible


def run(resolved: Resolved, command: str) -> int:
    """Write --count samples and their picture into <output>/. A sample depends on the weights, the seed, its number and
    the temperature alone. Raises UsageError for files that are in the way."""
    from unet.data.io import outputs

    paths = setup.given_weights(resolved.config, "sample")
    if len(paths) > 1:
        raise UsageError(f"sample takes one network, not {len(paths)}.", "Type one --weights FILE.")
    context = setup.assemble(resolved.config, resolved.sources)
    resolved, _ = setup.apply_checkpoint_settings(resolved, paths, context.task.Settings.inference_settings)
    context = context.with_config(resolved.config)
    config, how = resolved.config, resolved.config.sample
    seed = resolved.drawn_seed()
    host.notice(f"The samples are drawn with --seed {seed}.")
    network = setup.trained_network(context, paths[0], resolved)
    predictor = setup.make_predictor(context, network, finite=True)
    drawn = context.task.sample(predictor, how.count, how.temperature, seed)
    out = OutputFolder(predict_outputs.absolute(Path(config.predict.output)))
    names = context.task.sample_files(out.path, how.count)
    with interruptible(), out.held(), setup.explaining_oom(context):
        out.read()
        require_free(out, list(names.values()), config.general.overwrite)
        settings = files.fingerprint({"seed": seed, "temperature": how.temperature, "count": how.count})
        made = Made("", "", predict.weights_digest(paths), settings)
        out.note(made, dict.fromkeys(names.values()))
        for output in host.progress(drawn, name="sample", unit="file", total=len(names)):
            outputs.write(names[output.name], output)
        out.note(made, digests(list(names.values())))
    host.notice(f"{config.predict.output}/: {host.counted(how.count, 'sample')} written")
    return 0


def require_free(out: OutputFolder, names: list[Path], overwrite: bool) -> None:
    """Raise UsageError where a file of another program, or samples that must not be replaced, are in the way."""
    states = {path: out.state(path) for path in names}
    foreign = [path for path, state in states.items() if state not in (FREE, OWN, UNFINISHED)]
    if foreign:
        raise UsageError(
            f"{foreign[0]} is there, and is not as {MANIFEST} tells that this program wrote it.",
            "Move it elsewhere, or name another --output.",
        )
    own = [path for path, state in states.items() if state == OWN]
    if own and not overwrite:
        raise UsageError(
            f"{own[0]} is there already.", "Replace the samples with --overwrite, or name another --output."
        )
