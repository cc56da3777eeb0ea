"""Logs as the programs that are imported write them: the same characters, with numbers of our own."""

from __future__ import annotations

LOCAL = "['unet.py', '--hpu', '--use_lazy_mode', '--run-name', '64-max', '--image-size', '64', '--epochs', '3']"
CARDS = (
    "['unet.py', '--hpu', '--use_lazy_mode', '--distributed', '--run-name', '64-two', '--epochs', '2',"
    " '--world-size', '2', '--num-workers', '2']"
)


def argonne(
    seconds: tuple[float, ...] = (40.5, 10.25, 11.75), dsc: tuple[str, ...] = ("0.125", "0.25", "0.1875")
) -> str:
    """One block of a run in one process, the best score before the end and between empty lines, as `unet.py` writes."""
    lines = [f"Command: {LOCAL}", "Begin CSV", "type,epoch,time,loss,dsc", "loaders_init,,7.5,,"]
    for epoch, (time, score) in enumerate(zip(seconds, dsc, strict=True), 1):
        lines.append(f"train,{epoch},{time},{1 - epoch / 100},")
        lines.append(f"eval,{epoch},{time / 10},{1 - epoch / 200}, {score}")
    best = max((float(score) for score in dsc if score != "nan"), default=0.0)
    lines += [f"total_train_time,3,{sum(seconds)},,", f"total_eval_time,3,{sum(seconds) / 10},,"]
    return "\n".join([*lines, f"\nBest validation mean DSC: {best}\n", "End CSV"]) + "\n"


def best_after_the_end() -> str:
    """As the earlier programs write it."""
    text = argonne()
    best = next(line for line in text.splitlines() if line.startswith("Best"))
    return text.replace(f"\n{best}\n\nEnd CSV\n", f"End CSV\n\n{best}\n\n")


# Two processes: each its own command, begin and heading; the totals from the first alone; the other's last row is late.
TWO_CARDS = f"""\
Command: {CARDS}
Command: {CARDS}
Begin CSV
type,card,epoch,time,loss,dsc
Begin CSV
type,card,epoch,time,loss,dsc
loaders_init,,,3.25,,
loaders_init,,,3.5,,
train,1,1,30.5,0.98,
train,0,1,31.5,0.96,
eval,0,1,3.5,0.95, nan
eval,1,1,3.75,0.97, nan
train,0,2,11.5,0.86,
eval,0,2,3.5,0.85, nan
train,1,2,10.5,0.88,
total_train_time,,2,43.0,,
total_eval_time,,2,7.0,,
End CSV
eval,1,2,3.75,0.87, nan
"""

HL_HEAD = "timestamp, module_id, utilization.aip [%], power.draw [W], memory.used [MiB]\n"
NVIDIA_HEAD = "name, pci.bus_id, timestamp, utilization.gpu [%], power.draw [W]\n"


def hl_smi(seconds: int = 60, worked: tuple[int, int] = (10, 50)) -> str:
    """A loop of calls of hl-smi, each with its heading and two modules; module 1 works from a second to another. The
    year is cut, as hl-smi cuts it."""
    calls = []
    for second in range(seconds):
        stamp = f"Tue Aug  2 20:{16 + second // 60}:{second % 60:02d} UTC 202"
        works = worked[0] <= second < worked[1]
        busy, watts = (65, 153) if works else (15, 103)
        calls.append(f"{HL_HEAD}{stamp}, 1, {busy} %, {watts} W, 512 MiB\n{stamp}, 0, 14 %, 100 W, 512 MiB\n")
    return "".join(calls)


def nvidia_smi(seconds: int = 30) -> str:
    rows = [
        f"NVIDIA A100-SXM4-40GB, 00000000:07:00.0, 2022/08/02 20:16:{second:02d}.250, {busy} %, {watts} W\n"
        for second in range(seconds)
        for busy, watts in [(40, "251.25") if 5 <= second < 25 else (0, "51.25")]
    ]
    return "".join(f"{NVIDIA_HEAD}{row}" for row in rows)


def mllog(key: str, value: str = "null", at: int = 0, kind: str = "POINT_IN_TIME", **about: object) -> str:
    import json

    metadata = json.dumps({"file": "main.py", "lineno": 42, **about})
    return (
        f':::MLLOG {{"namespace": "", "time_ms": {1_600_000_000_000 + at}, "event_type": "{kind}", "key": "{key}",'
        f' "value": {value}, "metadata": {metadata}}}\n'
    )


def mlperf(samples: bool, stop: str | None = "success") -> str:
    """Two evaluations, after 20 and 40 epochs of 168 samples; epochs counted as rounds up to 3.0 or, in samples, from
    3.1 on do."""
    unit = 168 if samples else 1
    text = mllog("submission_benchmark", '"unet3d"') + mllog("global_batch_size", "56") + mllog("seed", "7")
    text += mllog("opt_name", '"sgd"') + mllog("opt_base_learning_rate", "2.0") + mllog("train_samples", "168")
    text += mllog("run_start", at=1000, kind="INTERVAL_START")
    for number, score in ((20, "0.85"), (40, "0.9125")):
        at, place = number * 1000, number * unit
        begin = {"first_epoch_num": place - 20 * unit + unit, "epoch_count": 20 * unit}
        text += mllog("block_start", at=at - 19000, kind="INTERVAL_START", **begin)
        text += mllog("block_stop", at=at - 3000, kind="INTERVAL_END", **begin)
        text += mllog("eval_start", at=at - 3000, kind="INTERVAL_START", epoch_num=place)
        text += mllog("eval_accuracy", score, at=at - 1000, epoch_num=place)
        text += mllog("eval_stop", at=at - 1000, kind="INTERVAL_END", epoch_num=place)
    return text + (mllog("run_stop", at=40_000, kind="INTERVAL_END", status=stop) if stop else "")


# nnU-Net puts a space before the end of each line, here ~
NNUNET_HEAD = """\

#######################################################################
(a request to cite nnU-Net)
(a paper)
#######################################################################
~
2025-06-23 16:20:49.701162: do_dummy_2d_data_aug: False~
2025-06-23 16:20:49.745311: Desired fold for training: 0~
2025-06-23 16:20:49.755418: This split has 2790 training and 698 validation cases.~

This is the configuration used by this training:
Configuration name: 2d
 {'data_identifier': 'nnUNetPlans_2d', 'batch_size': 12, 'patch_size': [512, 512], 'batch_dice': True}~
~
These are the global plan.json settings:
 {'dataset_name': 'Dataset200_Tiny', 'plans_name': 'nnUNetPlans', 'transpose_forward': [0, 1, 2]}~
~
2025-06-23 16:21:54.137305: Unable to plot network architecture: nnUNet_compile is enabled!~
""".replace("~\n", " \n")


def nnunet_epoch(epoch: int, dice: str, minute: int, new: bool = True) -> str:
    stamp = f"2025-06-23 17:{minute:02d}:00.123456"
    best = f"{stamp}: Yayy! New best EMA pseudo Dice: 0.{10 + epoch}52700006961 \n" if new else ""
    return (
        f"{stamp}:  \n{stamp}: Epoch {epoch} \n{stamp}: Current learning rate: 0.0{99 - epoch} \n"
        f"{stamp}: train_loss -0.{epoch}5 \n{stamp}: val_loss -0.{epoch}3 \n{stamp}: Pseudo dice {dice} \n"
        f"{stamp}: Epoch time: {60.5 + epoch} s \n{best}"
    )


NNUNET_1 = """\
2021-06-21 08:13:03.056420:~
epoch:  0
2021-06-21 08:17:05.605214: train loss : -0.7531
2021-06-21 08:17:47.605599: validation loss: -0.5259
2021-06-21 08:17:47.610551: Average global foreground Dice: [0.75, 0.5]
2021-06-21 08:17:47.615551: (interpret this as an estimate for the Dice of the different classes. This is not exact.)
2021-06-21 08:17:48.053071: lr: 0.007941
2021-06-21 08:17:48.054774: This epoch took 288.041806 s

""".replace("~\n", " \n")
