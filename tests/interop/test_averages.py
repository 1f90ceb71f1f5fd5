"""The two copies of a network's weights, of training and of their moving average: which was taken, and which is better."""

import copy
import json
import math
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

import diffusional as df
from battery import command
from diffusional.errors import DiffusionalError
from diffusional.interop.averages import check_weights, copies_of, load_weights
from diffusional.interop.check import noise_levels
from diffusional.interop.place import is_checkpoint
from diffusional.interop.wrap import wrap
from interop.pipelines import STEPS, unet

SPACE = df.Discrete((1, 4, 4), 8)


def networks() -> dict[str, UNet2DModel]:
    """The average, whose output is 0 and whose loss is that of no prediction, 1; and weights of training whose output is noise."""
    both = {name: unet(dtype=torch.float32) for name in ("ema", "raw")}
    for name, std in (("ema", 0.0), ("raw", 3.0)):
        for parameter in both[name].conv_out.parameters():
            nn.init.normal_(parameter, std=std)
    return both


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with unet/ and unet_ema/, as diffusers' scripts of training write them, and images.npy."""
    place = tmp_path_factory.mktemp("copies")
    both = networks()
    DDPMPipeline(both["raw"], DDPMScheduler(num_train_timesteps=STEPS)).save_pretrained(place / "model")
    average = EMAModel(both["ema"].parameters(), model_cls=UNet2DModel, model_config=both["ema"].config)
    average.save_pretrained(str(place / "model" / "unet_ema"))
    np.save(place / "images.npy", np.random.default_rng(0).integers(0, 8, (12, 1, 4, 4), dtype=np.uint8))
    return place


def same(model: Any, network: UNet2DModel) -> bool:
    own = next(module for module in model.modules() if isinstance(module, UNet2DModel)).state_dict()
    return all(torch.equal(one, own[name]) for name, one in network.state_dict().items())


def test_a_folder_with_both_copies(folder: Path) -> None:
    both = networks()
    model = df.load_checkpoint(folder / "model", SPACE)
    assert same(model, both["raw"])
    assert "unet_ema/ has the moving average" in model.origin["config"]["weights"]
    assert any(name.startswith("unet/") for name in model.origin["files"])
    average = df.load_checkpoint(folder / "model", SPACE, weights="ema")
    assert same(average, both["ema"])
    assert "unet_ema/" in average.origin["given"]["weights"]
    assert any(name.startswith("unet_ema/") for name in average.origin["files"])
    named = df.load_checkpoint(folder / "model", SPACE, subfolder="unet_ema", weights="raw")
    assert same(named, both["raw"])
    assert same(df.load_checkpoint(folder / "model", SPACE, subfolder="unet_ema"), both["ema"])


def test_a_checkpoint_in_training_has_no_index(folder: Path, tmp_path: Path) -> None:
    # output/scheduler, output/checkpoint-500/unet and output/checkpoint-500/unet_ema
    there = folder / "model"
    for name, target in (
        ("scheduler", "scheduler"),
        ("unet", "checkpoint-500/unet"),
        ("unet_ema", "checkpoint-500/unet_ema"),
    ):
        (tmp_path / target).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / target).symlink_to(there / name)
    assert is_checkpoint(tmp_path / "checkpoint-500")
    model = df.load_checkpoint(tmp_path / "checkpoint-500", SPACE, weights="ema")
    assert same(model, networks()["ema"])
    assert model.steps == STEPS
    # A folder of one copy is a model by itself.
    alone = df.load_checkpoint(tmp_path / "checkpoint-500" / "unet", SPACE, scheduler=there / "scheduler")
    assert copies_of(alone) is not None


def test_variants_of_the_weights(tmp_path: Path) -> None:
    both = networks()
    DDPMPipeline(both["ema"], DDPMScheduler(num_train_timesteps=STEPS)).save_pretrained(tmp_path)
    plain = df.load_checkpoint(tmp_path, SPACE)
    assert copies_of(plain) is None
    assert "weights" not in plain.origin["config"]
    with pytest.raises(DiffusionalError, match=r"unet_ema/.*weights='ema'"):
        df.load_checkpoint(tmp_path, SPACE, weights="ema")
    both["raw"].save_pretrained(tmp_path / "unet", variant="non_ema")
    for options, expected in (({}, "ema"), ({"weights": "raw"}, "raw"), ({"variant": "non_ema"}, "raw")):
        model = df.load_checkpoint(tmp_path, SPACE, **options)  # type: ignore[arg-type]
        assert same(model, both[expected])
        found = copies_of(model)
        assert found is not None
        assert found[1].taken == expected


class Multiple(nn.Module):
    """ε̂ = w z."""

    def __init__(self, w: float = 0.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        return self.w * z


def test_the_loss_of_both_copies_and_its_paired_error(tmp_path: Path) -> None:
    torch.save(Multiple(2.0).state_dict(), tmp_path / "model000100.pt")
    torch.save(Multiple(0.5).state_dict(), tmp_path / "ema_0.99_000100.pt")
    torch.save(Multiple(0.4).state_dict(), tmp_path / "ema_0.9_000100.pt")
    network = Multiple()
    copies = load_weights(network, tmp_path / "model000100.pt")
    assert copies is not None
    assert (copies.taken, copies.names["ema"]) == ("raw", "ema_0.99_000100.pt")
    schedule = df.schedule.linear()
    model = df.DiffusionModel(
        df.GaussianDiffusion(schedule),
        df.Denoiser(network, "noise", time=lambda log_snr: log_snr),
        df.likelihood.GaussianLikelihood(df.Continuous((3,))),
    )
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    found = check_weights(model, x, items=30, levels=5, seed=2)
    assert found is not None
    # ε − w (α x + σ ε) by hand, with the same noise.
    gamma = noise_levels(model, 5)
    noise = torch.randn(5, 30, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a, s = torch.sigmoid(-gamma).sqrt()[:, None, None], torch.sigmoid(gamma).sqrt()[:, None, None]
    losses = {
        name: (noise - w * (a * x[:30].double() + s * noise)).square().mean((0, 2))
        for name, w in (("raw", 2.0), ("ema", 0.5))
    }
    gap = losses["raw"] - losses["ema"]
    assert found.loss["raw"] == pytest.approx(float(losses["raw"].mean()), rel=1e-6)
    assert found.loss["ema"] == pytest.approx(float(losses["ema"].mean()), rel=1e-6)
    assert found.difference == pytest.approx(float(gap.mean()), rel=1e-5)
    assert found.error == pytest.approx(float(gap.std()) / math.sqrt(30), rel=1e-5)
    assert found.bits_per_dim == pytest.approx(float(gap.mean() * (gamma[-1] - gamma[0])) / 2 / math.log(2), rel=1e-5)
    assert found.network_evaluations == 2 * 5 * 30
    assert network.w.item() == pytest.approx(2.0)  # the copy that it had
    assert found.better == "ema"
    assert found.finding is not None
    assert "ema_0.99_000100.pt" in found.finding
    assert 'weights="ema"' in found.remedy
    load_weights(network, tmp_path / "model000100.pt", weights="ema")
    again = check_weights(model, x, items=30, levels=5, seed=2)
    assert again is not None
    assert again.difference == pytest.approx(-found.difference, rel=1e-6)
    assert again.finding is None
    assert again.better == "ema"


def test_copies_that_do_not_differ(tmp_path: Path) -> None:
    for name in ("model1.pt", "ema_0.5_1.pt"):
        torch.save(Multiple(0.5).state_dict(), tmp_path / name)
    network = Multiple()
    load_weights(network, tmp_path / "ema_0.5_1.pt")
    schedule = df.schedule.linear()
    denoiser = df.Denoiser(network, "noise", time=lambda log_snr: log_snr)
    decoder = df.likelihood.GaussianLikelihood(df.Continuous((3,)))
    model = df.DiffusionModel(df.GaussianDiffusion(schedule), denoiser, decoder)
    found = check_weights(model, torch.zeros(4, 3), levels=2)
    assert found is not None
    assert (found.difference, found.better, found.finding) == (0.0, None, None)
    assert check_weights(copy.deepcopy(model), torch.zeros(4, 3)) is not None
    assert copies_of(pickle.loads(pickle.dumps(network))) is None
    with pytest.raises(DiffusionalError, match="at least 2 items"):
        check_weights(model, torch.zeros(1, 3))


class Diffusion(nn.Module):
    """An object with the attributes of lucidrains' GaussianDiffusion, a network and a buffer."""

    def __init__(self, w: float) -> None:
        super().__init__()
        self.model = Multiple(w)
        self.register_buffer("betas", torch.linspace(0.1, 0.5, 4, dtype=torch.float64))
        self.objective, self.channels, self.image_size = "pred_noise", 1, 4
        self.normalize = lambda x: 2 * x - 1


def test_a_file_of_lucidrains_trainer(tmp_path: Path) -> None:
    raw, average = Diffusion(5.0), Diffusion(0.5)
    ema = {f"online_model.{name}": one for name, one in raw.state_dict().items()}
    ema |= {f"ema_model.{name}": one for name, one in average.state_dict().items()}
    content = {
        "step": 7,
        "model": raw.state_dict(),
        "ema": ema | {"initted": torch.tensor(True), "step": torch.tensor(7)},
    }
    torch.save(content | {"opt": {"state": {}}, "version": "2.2"}, tmp_path / "model-7.pt")
    diffusion = Diffusion(0.0)
    assert load_weights(diffusion, tmp_path / "model-7.pt") is not None
    assert diffusion.model.w.item() == pytest.approx(0.5)  # its Trainer samples with the average
    model = wrap.lucidrains(diffusion, levels=8)
    assert "ema of model-7.pt" in model.origin["config"]["weights"]
    assert list(model.origin["files"]) == ["model-7.pt"]
    found = check_weights(
        model, SPACE.encode(torch.randint(0, 8, (9, 1, 4, 4), generator=torch.Generator().manual_seed(0)))
    )
    assert found is not None
    assert found.taken == found.better == "ema"
    # The network without the object round it, and the other copy.
    network = Multiple()
    load_weights(network, tmp_path / "model-7.pt", weights="raw")
    assert network.w.item() == pytest.approx(5.0)


def test_one_state_dict_with_both(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    raw = {f"model.{name}": one + 1 for name, one in net.state_dict().items()}
    average = {f"model_ema.{name.replace('.', '')}": one.detach() for name, one in net.named_parameters()}
    torch.save({"state_dict": raw | average | {"model_ema.decay": torch.tensor(0.99)}}, tmp_path / "last.ckpt")
    own = {name: one.clone() for name, one in net.state_dict().items()}
    copies = load_weights(net, tmp_path / "last.ckpt", weights="raw")
    assert copies is not None
    assert copies.taken == "raw"
    assert torch.equal(net[0].weight, own["0.weight"] + 1)
    load_weights(net, tmp_path / "last.ckpt")
    assert torch.equal(net[0].weight, own["0.weight"])
    assert torch.equal(net[1].running_mean, own["1.running_mean"] + 1)  # buffers are those of training


def test_one_copy_and_refusals(tmp_path: Path) -> None:
    network = Multiple()
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": Multiple(0.7).state_dict()}, path)
    assert load_weights(network, path) is None
    assert network.w.item() == pytest.approx(0.7)
    assert copies_of(network) is None
    torch.save(Multiple(0.7).state_dict(), tmp_path / "model000001.pt")
    assert load_weights(network, tmp_path / "model000001.pt") is None
    for name, options, match in (
        ("weights.pt", {"weights": "ema"}, "one copy.*weights='ema'"),
        ("model000001.pt", {"weights": "ema"}, "has no copy 'ema'"),
        ("absent.pt", {}, "absent.pt"),
    ):
        with pytest.raises(DiffusionalError, match=match):
            load_weights(network, tmp_path / name, **options)  # type: ignore[arg-type]
    torch.save({"w": torch.zeros(2), "further": torch.zeros(1)}, path)
    with pytest.raises(DiffusionalError, match=r"further is unknown.*w has shape \(2,\) there, \(\) here"):
        load_weights(network, path)
    torch.save({"w": torch.tensor(math.nan)}, path)
    with pytest.raises(DiffusionalError, match="not finite: w"):
        load_weights(network, path)
    path.write_bytes(pickle.dumps(SimpleNamespace(code=print)))
    with pytest.raises(DiffusionalError, match="weights_only=True"):
        load_weights(network, path)
    torch.save([1, 2], path)
    with pytest.raises(DiffusionalError, match="state dict"):
        load_weights(network, path)
    assert network.w.item() == pytest.approx(0.7)


def test_check_compares_them_on_the_command_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", folder / "images.npy", "--levels", 8, "--items", 8)
    records = {}
    for copy_, status in (("raw", 1), ("ema", 0)):
        found, out, err = command(
            capsys, "check", folder / "model", *data, "--weights", copy_, "--slopes-only", "--json", "-"
        )
        assert found == status, err
        records[copy_] = json.loads(out)
        assert "moving average" in err
    for copy_, record in records.items():
        assert record["weights"]["taken"] == copy_
        assert record["weights"]["better"] == "ema"
        assert record["weights"]["loss"]["ema"] < record["weights"]["loss"]["raw"]
        assert any("unet_ema/" in finding for finding in record["findings"]) == (copy_ == "raw")
    # An imported run remembers the copy.
    run = tmp_path / "run"
    found, out, err = command(capsys, "import", folder / "model", run, "--levels", 8, "--weights", "ema", "--json", "-")
    assert found == 0, err
    assert json.loads((run / "checkpoint.json").read_text())["options"]["weights"] == "ema"
    assert same(df.load_run(run).model, networks()["ema"])
