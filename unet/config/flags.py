"""The flag table: each setting is declared once, in a group; a command uses the groups that it needs. No torch.

Flags of network, training and evaluation are in `flags_training`; flags of one task are in its own folder.
"""

from __future__ import annotations

import dataclasses

from unet.config.options import option

DEVICES = ("auto", "cpu", "cuda", "hpu", "mlu", "rocm", "xpu", "npu", "mps")
LAYOUTS = ("auto", "NCHW", "NHWC", "NCDHW", "NDHWC")
KERNELS = ("measured", "plain", "torch", "winograd", "matrix", "padded", "onednn", "slabs", "channels_first", "fp32")
CLASS = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", "package.module:Class"  # a pattern, and the same in words
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
    recipe: str | None = option(None, "a named set of settings of the task", metavar="NAME", common=True)
    seed: int = option(
        2001, "seed of weights, sampling and augmentation; -1 draws one", minimum=-1, maximum=2**32 - 1, common=True
    )
    overwrite: bool = option(False, "replace the run, weights, synthetic data or masks of the same name", common=True)


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """Run"""

    run_name: str | None = option(None, "name of the run's folder and logs", default_text="task and time", common=True)
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
        "write settings, first batch, layer shapes and a profiler trace of three steps into this folder",
        metavar="DIR",
        aliases=("--dump_config",),
    )
    dry_run: bool = option(False, "check everything with one training step; write no results", common=True)
    benchmark: bool = option(False, "measure speed instead: the command `benchmark` with these settings")
    benchmark_warmup: int | None = option(
        None, "first steps that are not timed", minimum=0, aliases=("--warmup_steps",), default_text="one round"
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
    rebuild_cache: bool = option(
        False, "preprocess the raw data again, even if the cache is up to date", aliases=("--im-cache",)
    )
    synth_data: bool = option(
        False,
        "use synthetic data in the layout of the real data (written once, then reused)",
        value_aliases=("--loader",),
        synonyms=(("synthetic", True), ("pytorch", False)),
        common=True,
    )
    workers: str = option(
        "auto",
        "loader processes; 0 = load in the main process",
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
        "file of the best weights: a bare name means weights/NAME, a path is used as typed; evaluate and predict"
        " average several",
        metavar="FILE",
        default_text="train: the run's name",
        repeated=True,
        suffixes=(".safetensors", ".pt", ".pth", ".ckpt", ".onnx", ".xml"),
        aliases=("--weights-file", "--weights-files", "--save_ckpt_path"),
        common=True,
    )
    load: str | None = option(
        None,
        "start from these weights (safetensors or .pt, this program's or a published checkpoint)",
        metavar="FILE",
        aliases=("--load_ckpt_path", "--checkpoint"),
        common=True,
    )


@dataclasses.dataclass(frozen=True)
class SaveOptions:
    """Saving and resuming"""

    resume: str | None = option(
        None,
        "continue a stopped run exactly; without a value: the run of --run-name, or the last one",
        const="auto",
        metavar="PATH",
        aliases=("--resume-training",),
        synonyms=(("true", "auto"), ("false", None)),
        common=True,
    )
    save_minutes: float = option(
        0.0, "save the state at most every N minutes (0 = at each epoch's end)", minimum=0, maximum=1e6, metavar="MIN"
    )
    checkpoint_every: int | None = option(
        None, "also save the state every N steps (it is always saved after an epoch)", minimum=1
    )
    keep_every: int | None = option(
        None,
        "also keep the weights of every N-th epoch, in weights/NAME.epoch-0010.safetensors",
        minimum=1,
        metavar="N",
    )
    restarts: int = option(
        0, "when a process dies, start the run again from its last state, up to N times", minimum=0, maximum=10**6
    )
    checkpoints: bool = option(
        True, "--no-checkpoints writes no weights and no state", aliases=(("--disable-ckpt-saving", False),)
    )


@dataclasses.dataclass(frozen=True)
class DeviceOptions:
    """Device"""

    device: str = option(
        "auto",
        "auto (the first usable of hpu, mlu, cuda, rocm, xpu, npu, mps, cpu), or one of them",
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
    cuda_devices: tuple[int, ...] = option((), "indices of the cards to use", minimum=0, aliases=("--CUDA_devices",))
    threads: int | None = option(
        None,
        "threads of a process on the host; auto = OMP_NUM_THREADS if it is set, else the cores of the process",
        minimum=1,
        maximum=4096,
        metavar="N",
        aliases=("--threads_per_rank",),
        synonyms=(("auto", None),),
        default_text="auto",
    )
    use_lazy_mode: bool = option(False, "HPU: run in lazy mode (default: eager)")
    device_module: str | None = option(
        None,
        "your own device: package.module:Class, a subclass of unet.devices.base.Device; typed, never from a file",
        metavar="NAME",
        pattern=CLASS,
    )
    precision: str = option(
        "fp32",
        "number format; tf32 = fp32 with TF32 products; auto (or --amp without a value) = the fastest of the device",
        choices=("fp32", "tf32", "bf16", "fp16", "auto"),
        metavar="fp32|tf32|bf16|fp16|auto",
        const="auto",
        aliases=("--amp", "--dtype"),
        synonyms=(("true", "auto"), ("false", "fp32"), ("float32", "fp32"), ("bfloat16", "bf16"), ("float16", "fp16")),
        common=True,
    )
    precision_ops: str | None = option(
        None,
        'JSON {"lower": [...], "fp32": [...]}: operators for each precision (HPU)',
        metavar="FILE",
        aliases=("--bf16_config_path",),
    )
    recipe_cache: str | None = option(
        None, "HPU: keep compiled graphs in this folder, on a disk of the machine, for later runs", metavar="DIR"
    )
    compile: str = option(
        "auto",
        "compile the network (slow first step, faster run); auto = where the vendor advises it (HPU in eager mode)",
        choices=("auto", "on", "off"),
        const="on",
        metavar="auto|on|off",
        synonyms=(("true", "on"), ("false", "off")),
        aliases=("--xla",),
        common=True,
    )
    capture: str = option(
        "auto",
        "record the network as a graph and replay it; auto = where that is faster (HPU in lazy mode)",
        choices=("auto", "on", "off"),
        const="on",
        metavar="auto|on|off",
        synonyms=(("true", "on"), ("false", "off")),
    )
    kernels: str = option(
        "measured", "faster forms of layers, or plain; on a CPU also one algorithm of 3D convolutions", choices=KERNELS
    )
    layout: str = option("auto", "memory order of images; auto = the device's best", choices=LAYOUTS, metavar="ORDER")
    deterministic: bool = option(
        False, "repeat runs bit for bit; torch's own optimiser on every device", aliases=("--cudnn-deterministic",)
    )
    cudnn_benchmark: bool = option(True, "let cuDNN benchmark its algorithms (NVIDIA)")
    data_on: str = option(
        "disk", "where the training data are kept: disk (memory-mapped), ram, device", choices=("disk", "ram", "device")
    )


@dataclasses.dataclass(frozen=True)
class DistributedOptions:
    """Several processes (normally set by the launcher; a flag that contradicts it is an error)"""

    devices: int | None = option(
        None, "start N processes on this machine, one per card", minimum=1, maximum=1024, common=True
    )
    distributed: bool = option(
        False, "run as one of several processes (detected from the launcher anyway)", aliases=("--use-horovod",)
    )
    world_size: int | None = option(None, "number of processes", minimum=1, maximum=10**6)
    rank: int | None = option(None, "rank of this process", minimum=0)
    local_rank: int | None = option(None, "rank of this process on its node", minimum=0)
    dist_url: str = option(
        "env://",
        "rendezvous: env:// or tcp://HOST:PORT",
        metavar="URL",
        pattern=(r"env://|tcp://(\[[0-9A-Fa-f:.%]+\]|[\w.-]+):\d{1,5}/?", "env:// or tcp://HOST:PORT"),
    )
    process_per_node: int | None = option(None, "processes on each node", minimum=1)
    dist_timeout: float = option(
        60.0,
        "seconds without a heartbeat or progress after which a process counts as lost",
        minimum=2,
        maximum=1e6,
        metavar="S",
    )
    log_all_workers: bool = option(False, "write a log for every process, worker_N.log in the run's folder")


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """Input"""

    inputs: tuple[str, ...] = option(
        (), "images, patient folders or whole data sets", metavar="FILES|FOLDERS", positional=True, common=True
    )


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """Sampling"""

    count: int = option(8, "number of samples", minimum=1, maximum=10**6, common=True)
    temperature: float = option(
        1.0, "factor of the noise of each latent (its mean stays)", minimum=0, maximum=10, common=True
    )


@dataclasses.dataclass(frozen=True)
class TimingOptions:
    """Timing"""

    rounds: int = option(
        5, "rounds that alternate between both loops, after one warm-up round", minimum=1, maximum=10**6, common=True
    )
    steps: int = option(10, "steps of each loop per round", minimum=1, maximum=10**6, common=True)


@dataclasses.dataclass(frozen=True)
class SyntheticOptions:
    """Synthetic data"""

    patients: int = option(20, "number of patients", minimum=2, maximum=100000, common=True)
    slices: int = option(
        20, "smallest number of slices per patient; the largest is a quarter more", minimum=6, maximum=4096, common=True
    )
    side: int = option(256, "side of a slice in pixels", minimum=32, maximum=1024, common=True)


@dataclasses.dataclass(frozen=True)
class MLPerfOptions:
    """MLPerf logging"""

    mlperf_division: str | None = option(
        None, "write an MLPerf log for this division: closed or open", choices=("closed", "open"), metavar="NAME"
    )
    mlperf_rehearsal: bool = option(False, "allow other settings than the rules; the log says that this is a rehearsal")
    mlperf_org: str | None = option(None, "submitter named in the log", metavar="NAME")
    mlperf_platform: str | None = option(None, "system named in the log", metavar="NAME")
    mlperf_status: str = option(
        "onprem",
        "status of the system in the log",
        choices=("cloud", "onprem", "preview", "research"),
        metavar="NAME",
    )
    mlperf_warmup: int = option(2, "warm-up steps on synthetic data before the clock starts", minimum=0, maximum=10**6)
    drop_caches: bool = option(
        False, "clear the system's whole file cache before the clock starts, not only the cached cases (needs root)"
    )


@dataclasses.dataclass(frozen=True)
class CheckOptions:
    """Checking"""

    checksums: str | None = option(
        None,
        "compare with this list of MD5 or SHA-256 sums (checksum.json, or the output of md5sum or sha256sum)",
        metavar="FILE",
    )
