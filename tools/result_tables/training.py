"""Tables of the pages about training."""

from result_tables.common import markdown, record


def overhead() -> str:
    """The time of head and loss beside that of the network, and the throughput of a sweep."""
    data, rows = record("overhead.json"), []
    for head, row in data["training"].items():
        apart = row["milliseconds_without_module"]
        sweep = data["evaluation"][head]
        beyond, share = apart["loss"] - apart["head"], row["loss_share_of_module_beyond_head"]
        rows.append(
            [
                head,
                f"{row['milliseconds']['module']:.1f}",
                f"{apart['head']:.1f} ms",
                f"{apart['loss']:.1f} ms",
                f"{beyond:.1f} ms, {100 * share:.1f} %",
                f"{row['loss_over_module']:.3f} ({row['loss_adaptive_over_module']:.3f})",
                f"{row['loss_over_module_and_head']:.3f} ({row['loss_adaptive_over_module_and_head']:.3f})",
                f"{sweep['evaluate_over_module']:.2f}, {sweep['evaluate_over_module_and_head']:.2f}",
            ]
        )
    header = ["levels head", "module, ms", "head by itself", "loss by itself, the head's part in it"]
    header += ["the bound beyond the head", "loss / module (adaptive levels)", "loss / module and head"]
    return markdown([*header, "sweep / bare forward, / with head"], rows)


def training_step() -> str:
    """The time of a training step over that of plain PyTorch."""
    unet, rows = record("training_speed.json")["overhead_one_thread"]["unet"], []
    for key, name in (
        ("network", "forward, backward and fused AdamW of the bare network"),
        ("network_clip_ema", "+ clipping + weight average"),
    ):
        ours = unet["ours_over"][key]
        ratio = f"{ours['ratio']:.3f} ± {ours['error']:.3f}"
        rows.append([name, f"{unet['milliseconds'][key]:.1f}", ratio])
    header = ["against", "milliseconds", f"ours, {unet['milliseconds']['ours']:.1f} ms, over it"]
    return markdown(header, rows)


def training_memory() -> str:
    """The memory of training relative to that of plain PyTorch."""
    memory, rows = record("training_speed.json")["memory"], []
    for key, name in (("noise", "noise prediction"), ("levels", "levels head")):
        ours, plain = (memory[key]["mebibytes"][who]["growth"] for who in ("ours", "plain"))
        rows.append(
            [
                name,
                f"{memory[key]['ours_over_plain']:.2f} ({ours:.0f} against {plain:.0f} MiB over the imports)",
                f"{memory[key]['with_validation_over_plain']:.2f}",
            ]
        )
    return markdown(["", "relative to plain PyTorch, training", "with the validation at the end"], rows)


def training_throughput() -> str:
    """Images per second of libraries that train the same network."""
    data = record("training_speed.json")["throughput_one_thread"]
    speed = data["same_network"]["images_per_second"]
    peer = f"denoising-diffusion-pytorch {data['versions']['denoising-diffusion-pytorch']}"
    names = {
        "ours": "ours",
        "diffusers": "diffusers' training example",
        "denoising-diffusion-pytorch": peer,
        "plain": "plain PyTorch",
    }
    return markdown(["", "images per second"], [[name, f"{speed[key]:.1f}"] for key, name in names.items()])


def kills() -> str:
    """The runs that were killed, and those that were lost or ended with other bytes."""
    data = record("kills.json")
    kinds = (
        (True, f"{data['at_random_moments']} at random moments"),
        (
            False,
            f"{data['at_write_boundaries']} at write boundaries, evenly chosen of the run's "
            f"{data['write_boundaries_of_a_run']}",
        ),
    )
    rows = []
    for random, name in kinds:
        bad = [sum(trial.startswith("random") == random for trial in data[key]) for key in ("lost", "different")]
        rows.append([name, *(str(number or "none") for number in bad)])
    return markdown(["kills by SIGKILL", "lost runs", "runs whose bytes differ"], rows)
