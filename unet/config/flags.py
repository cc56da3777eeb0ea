"""The flag table: every setting once, in groups; a command takes the groups that it needs. No torch.

Network, training and evaluation are in `flags_training`; the flags of one task alone in its folder.
"""

from __future__ import annotations

import dataclasses

from unet.config.options import option

DEVICES = ("auto", "cpu", "cuda", "hpu", "mlu")
LAYOUTS = ("auto", "NCHW", "NHWC", "NCDHW", "NDHWC")
MODES = ("train", "evaluate", "train_and_evaluate", "predict", "train_and_predict")


@dataclasses.dataclass(frozen=True)
class GeneralOptions:
    """Task and settings"""

    task: str = option(
        "lgg", "task to run; your own: package.module:Class (typed, never from a file)", metavar="NAME", common=True
    )
    config: str | None = option(
        None,
        "settings from a JSON file; a run's config.json replays it",
        metavar="FILE",
        aliases=("--json_config_file",),
        common=True,
    )
    recipe: str | None = option(
        None,
        "a named set of settings of the task",
        metavar="NAME",
        common=True,
    )
    seed: int = option(
        2001, "seed of weights, sampling and augmentation; -1 draws one", minimum=-1, maximum=2**32 - 1, common=True
    )
    overwrite: bool = option(False, "replace what has the same name: run, weights, made data, masks", common=True)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Run"""

    run_name: str | None = option(None, "names the run's folder and logs", default_text="task and time", common=True)
    out: str = option(
        "performance",
        "folder that holds the run folders",
        metavar="DIR",
        aliases=("--log_dir", "--model_dir", "--output_dir"),
    )
    mode: str | None = option(
        None,
        "with train only: " + ", ".join(MODES),
        choices=MODES,
        metavar="MODE",
        aliases=("--exec_mode",),
        default_text="train_and_evaluate",
    )
    tensorboard: bool = option(
        False, "also write TensorBoard's files into the run's folder", aliases=("--tensorboard_logging",)
    )
    debug_dump: str | None = option(
        None,
        "folder for settings, the first batch, the shapes of each layer and a profiler's trace of three steps",
        metavar="DIR",
        aliases=("--dump_config",),
    )
    dry_run: bool = option(False, "check settings, data and device, do one step, keep nothing", common=True)
    benchmark: bool = option(False, "time the step instead: the command `benchmark` with these settings")
    benchmark_warmup: int | None = option(
        None, "steps left out of the timing", minimum=0, aliases=("--warmup_steps",), default_text="one round"
    )


@dataclasses.dataclass(frozen=True)
class LoggingOptions:
    """Messages"""

    verbose: bool = option(False, "tracebacks and more detail", aliases=("-v",), common=True)
    quiet: bool = option(
        False,
        "no progress bars and no notices",
        value_aliases=("--tf_verbosity",),
        synonyms=(("0", False), ("1", False), ("2", True), ("3", True)),
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Data"""

    data: str = option(
        "kaggle_3m",
        "raw data: a path, or a name under data/",
        metavar="DIR",
        aliases=("--data-path", "--data_dir", "--nifti_dir", "--nifti_flair_dir"),
        common=True,
    )
    cache: str = option(
        "kaggle_cache",
        "preprocessed data: a path, or a name under data/",
        metavar="DIR",
        aliases=("--cache-path", "--results_dir"),
        common=True,
    )
    rebuild_cache: bool = option(False, "read the raw set and write the cache anew", aliases=("--im-cache",))
    synth_data: bool = option(
        False,
        "made data in the true layout (made once, then kept)",
        value_aliases=("--loader",),
        synonyms=(("synthetic", True), ("pytorch", False)),
        common=True,
    )
    workers: str = option(
        "auto",
        "processes that read and prepare; 0 = in this process",
        aliases=("--num-workers", "--workers_per_process"),
        metavar="N",
        pattern=(r"auto|\d{1,3}", "auto or a whole number up to 256"),
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class SplitOptions:
    """Split into training and validation cases"""

    split: str = option(
        "published",
        "published (random.seed(42), sample), last (Argonne's: the last of the sorted names), none, or a file (JSON, or"
        " validation cases one a line)",
        metavar="NAME|FILE",
        synonyms=(("none", "none"),),
        common=True,
    )
    held_out: int | None = option(
        None,
        "validation cases of published and last",
        minimum=1,
        default_text="10; a fifth of a set of 20 cases or fewer",
    )
    fold: int | None = option(None, "validate on this fold of --folds instead", minimum=0, common=True)
    folds: int = option(5, "number of folds", minimum=2, maximum=10000)
    max_cases: int | None = option(None, "use the first N cases only", minimum=1, aliases=("--max_niis_to_use",))


@dataclasses.dataclass(frozen=True)
class WeightsOptions:
    """Weights"""

    weights: tuple[str, ...] = option(
        (),
        "best weights: a name goes to weights/, a path is taken as it is; predict averages several",
        metavar="FILE",
        default_text="train: the run's name",
        repeated=True,
        aliases=("--weights-file", "--weights-files", "--save_ckpt_path"),
        common=True,
    )
    load: str | None = option(
        None,
        "start from these weights (safetensors or .pt, own or published names)",
        metavar="FILE",
        aliases=("--load_ckpt_path", "--checkpoint"),
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class SaveOptions:
    """Saving and going on"""

    resume: str | None = option(
        None,
        "go on with a stopped run, exactly: bare for this --run-name (or the last run), or a path",
        const="auto",
        metavar="PATH",
        aliases=("--resume-training",),
        synonyms=(("true", "auto"), ("false", None)),
        common=True,
    )
    save_minutes: float = option(
        0.0, "save the state at most every N minutes (0 = at each epoch's end)", minimum=0, maximum=1e6, metavar="MIN"
    )
    checkpoint_every: int | None = option(None, "also save the state every N steps (it is saved each epoch)", minimum=1)
    checkpoints: bool = option(True, "--no-checkpoints writes none", aliases=(("--disable-ckpt-saving", False),))


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Device"""

    device: str = option(
        "auto",
        "where it runs: auto (the first usable of hpu, mlu, cuda, cpu), cpu, cuda, hpu, mlu",
        metavar="NAME",
        choices=DEVICES,
        synonyms=(("gpu", "cuda"),),
        aliases=(
            ("--hpu", "hpu"),
            ("--mlu", "mlu"),
            ("--cuda", "cuda"),
            ("--cpu", "cpu"),
            ("--no-hpu", "cpu"),
            ("--no-cuda", "cpu"),
        ),
        common=True,
    )
    cuda_devices: tuple[int, ...] = option((), "which cards", minimum=0, aliases=("--CUDA_devices",))
    use_lazy_mode: bool = option(False, "lazy mode of an HPU (without it: eager)")
    device_module: str | None = option(
        None,
        "a device of your own: package.module:Class, a subclass of unet.devices.base.Device; typed, never from a file",
        metavar="NAME",
        pattern=(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", "package.module:Class"),
    )
    precision: str = option(
        "fp32",
        "arithmetic; tf32 = fp32 with TF32 products; auto (or bare --amp) = the best that the device has",
        choices=("fp32", "tf32", "bf16", "fp16", "auto"),
        metavar="fp32|tf32|bf16|fp16|auto",
        const="auto",
        aliases=("--amp", "--dtype"),
        synonyms=(("true", "auto"), ("false", "fp32"), ("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")),
        common=True,
    )
    precision_ops: str | None = option(
        None,
        'JSON {"lower": [...], "fp32": [...]}: operators of each precision (HPU)',
        metavar="FILE",
        aliases=("--bf16_config_path",),
    )
    compile: bool = option(False, "compile the network (slow first step, faster run)", aliases=("--xla",), common=True)
    capture: str = option(
        "auto",
        "record the network as graphs that are replayed; auto = where the device gains by it (HPU in lazy mode)",
        choices=("auto", "on", "off"),
        const="on",
        metavar="auto|on|off",
        synonyms=(("true", "on"), ("false", "off")),
    )
    layout: str = option("auto", "memory order of images; auto = the device's best", choices=LAYOUTS, metavar="ORDER")
    deterministic: bool = option(
        False, "bit-identical repetition; torch's own optimiser on every device", aliases=("--cudnn-deterministic",)
    )
    cudnn_benchmark: bool = option(True, "let cuDNN try its algorithms (NVIDIA)")
    data_on: str = option(
        "disk", "where training data lie: disk (memory-mapped), ram, device", choices=("disk", "ram", "device")
    )


@dataclasses.dataclass(frozen=True)
class DistributedOptions:
    """Several processes (what the launcher says wins; a contradiction is an error)"""

    devices: int | None = option(
        None, "start N processes on this machine, one a card", minimum=1, maximum=1024, common=True
    )
    distributed: bool = option(
        False, "run as one of several processes (the launcher's variables say so anyway)", aliases=("--use-horovod",)
    )
    world_size: int | None = option(None, "number of processes", minimum=1, maximum=10**6)
    rank: int | None = option(None, "number of this process", minimum=0)
    local_rank: int | None = option(None, "number of this process on its node", minimum=0)
    dist_url: str = option(
        "env://",
        "rendezvous: env:// or tcp://HOST:PORT",
        metavar="URL",
        pattern=(r"env://|tcp://(\[[0-9A-Fa-f:.%]+\]|[\w.-]+):\d{1,5}/?", "env:// or tcp://HOST:PORT"),
    )
    process_per_node: int | None = option(None, "processes on each node", minimum=1)
    dist_timeout: float = option(
        60.0, "seconds without a sign of life after which a process counts as dead", minimum=2, maximum=1e6, metavar="S"
    )
    log_all_workers: bool = option(False, "a log of every process, worker_N.log in the run's folder")


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """Input"""

    inputs: tuple[str, ...] = option(
        (),
        "images, patient folders or whole sets",
        metavar="FILES|FOLDERS",
        positional=True,
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """Prediction"""

    output: str = option("predictions", "folder of the masks", metavar="DIR", common=True)
    overlay: bool = option(False, "also write the outlines on the image, as PNG", common=True)
    probabilities: bool = option(False, "also write probabilities, as float TIFF", common=True)


@dataclasses.dataclass(frozen=True)
class TimingOptions:
    """Timing"""

    rounds: int = option(
        5, "rounds of both loops in turn, after one that warms up", minimum=1, maximum=10**6, common=True
    )
    steps: int = option(10, "steps of each loop in a round", minimum=1, maximum=10**6, common=True)


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
    """Made data"""

    patients: int = option(20, "made patients", minimum=2, maximum=100000, common=True)
    slices: int = option(
        20, "slices of a patient, at least; up to a quarter more", minimum=6, maximum=4096, common=True
    )
    side: int = option(256, "pixels of a side", minimum=32, maximum=1024, common=True)


@dataclasses.dataclass(frozen=True)
class MLPerfOptions:
    """MLPerf logging"""

    mlperf_division: str | None = option(
        None,
        "write a compliant log of this division: closed or open",
        choices=("closed", "open"),
        metavar="NAME",
    )
    mlperf_rehearsal: bool = option(False, "closed with other sizes; the log says that it is a rehearsal")
    mlperf_org: str | None = option(None, "submitter in the log", metavar="NAME")
    mlperf_platform: str | None = option(None, "system in the log", metavar="NAME")
    mlperf_status: str = option(
        "onprem",
        "status in the log",
        choices=("cloud", "onprem", "preview", "research"),
        metavar="NAME",
    )
    mlperf_warmup: int = option(2, "steps on made data before the clock starts", minimum=0, maximum=10**6)
    drop_caches: bool = option(
        False, "clear the whole file cache of the system before the clock starts, not the cached cases alone (root)"
    )


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Checking"""

    checksums: str | None = option(
        None, "a list of MD5 sums (checksum.json, or md5sum's) to compare with", metavar="FILE"
    )
