"""A pipeline for diffusion models that no scheduler of diffusers expresses: classes, levels heads, learned schedules, continuous time.

This file is copied by `diffusional export --to custom` into the folder of the model, as pipeline.py, and needs only torch and diffusers:

    from diffusers import DiffusionPipeline
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    images = pipeline(batch_size=4, generator=torch.Generator().manual_seed(0)).images

It walks the model's own chain: z_T ~ N(0, v I), then z_t ~ q(z_t | z_{t+1}, x̂) with the model's variance, down to z_1. The image is x̂ at
z_1, the mean of p(x|z_1). `sampling` in model_index.json has what it needs:

    gammas      γ = -log SNR of z_1 … z_T:  z = √sigmoid(-γ) x + √sigmoid(γ) ε
    times       the time input of the network at each of them
    predicts    "noise", "data", "v", "score", or "levels" with `head` "categorical" (logits) or "logistic" (mean and log scale)
    variance    of a step: "posterior", "transition", or "learned" between the two
    clip        x̂ is clipped to these two numbers, or null
    low, high, levels    the range of x, and the number of its levels
    shape, multiple      of an image; it is padded with zeros to multiples of this size for the network
    last_variance        v
    id2label    names of the classes, by number
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor
from torch.nn.functional import logsigmoid, pad


class DiffusionalPipeline(DiffusionPipeline):
    """The chain of a diffusion model.

    Args:
        unet: a UNet2DModel.
        sampling: see above.
    """

    def __init__(self, unet: Any, sampling: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(sampling=sampling)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: list[int | str] | Tensor | None = None,
        generator: torch.Generator | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Sample images.

        Args:
            batch_size: number of images, if no class labels are given.
            class_labels: one for each image, numbers or names, for a model of classes.
            generator: of all noise, in the order z_T, z_{T-1}, …
            output_type: "pil", "np" (values from 0 to 1), "pt" (x̂ in the model's range), or "latent" (z_1).
        """
        settings: Any = self.config
        sampling = settings["sampling"]
        labels = self._labels(class_labels, sampling["id2label"])
        n = batch_size if labels is None else len(labels)
        shape = (n, *sampling["shape"])
        z = self._noise(shape, generator) * sampling["last_variance"] ** 0.5
        gammas = torch.tensor(sampling["gammas"], dtype=torch.float64, device=z.device)
        bar: Any = self.progress_bar
        for i in bar(range(len(gammas) - 1, 0, -1)):
            x, fraction = self._predicted(z, i, gammas[i], labels, sampling)
            low, high = gammas[i - 1], gammas[i]
            shrink = torch.exp(logsigmoid(low) - logsigmoid(high))
            lost = -torch.expm1(low - high)
            kept = torch.exp(0.5 * (logsigmoid(-high) - logsigmoid(-low)))
            mean = (kept * shrink).to(z) * z + (torch.sigmoid(-low).sqrt() * lost).to(z) * x
            log_variance = logsigmoid(low) + torch.log(lost)
            if sampling["variance"] != "posterior":
                log_variance = log_variance - fraction * (logsigmoid(low) - logsigmoid(high))
            std = torch.exp(0.5 * torch.as_tensor(log_variance)).to(z)
            z = mean + std * self._noise(shape, generator)
        x: Any = z if output_type == "latent" else self._predicted(z, 0, gammas[0], labels, sampling)[0]
        if output_type not in ("latent", "pt"):
            x = (x - sampling["low"]) / (sampling["high"] - sampling["low"])
            x = x.clamp(0, 1).permute(0, 2, 3, 1).cpu().float().numpy()
            if output_type == "pil":
                x = self.numpy_to_pil(x)
        return ImagePipelineOutput(images=x) if return_dict else (x,)

    def _noise(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        device = self.device if generator is None else generator.device
        return torch.empty(shape, dtype=self.unet.dtype, device=device).normal_(generator=generator).to(self.device)

    def _labels(self, labels: Any, names: list[str] | None) -> Tensor | None:
        if (labels is None) != (names is None):
            raise ValueError(
                "expected class_labels, since this is a model of classes"
                if labels is None
                else "expected no class_labels"
            )
        if labels is None or isinstance(labels, Tensor):
            return labels
        assert names is not None
        numbers = [names.index(one) if isinstance(one, str) else int(one) for one in labels]
        return torch.tensor(numbers, device=self.device)

    def _predicted(
        self, z: Tensor, i: int, gamma: Tensor, labels: Tensor | None, sampling: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        """Return x̂ and the fraction of the variance between that of the posterior, 0, and that of the transition, 1."""
        height, width = z.shape[-2:]
        more = [-side % sampling["multiple"] for side in (height, width)]
        top, left = more[0] // 2, more[1] // 2
        time = torch.full((len(z),), sampling["times"][i], device=z.device)
        time = time.to(z.dtype) if time.dtype.is_floating_point else time
        given = {} if labels is None else {"class_labels": labels}
        output = self.unet(pad(z, (left, more[1] - left, top, more[0] - top)), time, **given).sample
        output = output[..., top : top + height, left : left + width]
        fraction: Any = 1.0
        if sampling["variance"] == "learned":
            output, second = output[:, : -z.shape[1]], output[:, -z.shape[1] :]
            fraction = 0.5 * (second.double() + 1)
        a, s = torch.sigmoid(-gamma).sqrt().to(z), torch.sigmoid(gamma).sqrt().to(z)
        x = {
            "data": lambda: output,
            "noise": lambda: (z - s * output) / a,
            "v": lambda: a * z - s * output,
            "score": lambda: (z + s * s * output) / a,
            "levels": lambda: self._mean(output, z, a, s, sampling),
        }[sampling["predicts"]]()
        return (x if sampling["clip"] is None else x.clamp(*sampling["clip"])), fraction

    def _mean(self, output: Tensor, z: Tensor, a: Tensor, s: Tensor, sampling: dict[str, Any]) -> Tensor:
        """Return Σ_k p_k x_k, p_k in proportion to the network's prior of level k times N(z; a x_k, s² I)."""
        channels, levels, low, high = z.shape[1], sampling["levels"], sampling["low"], sampling["high"]
        values = torch.linspace(low, high, levels, dtype=torch.float64, device=z.device).view(-1, 1, 1, 1)
        if sampling["head"] == "categorical":
            logits = output.unflatten(1, (channels, levels)).movedim(2, 1)
        else:  # a discretised logistic, whose outermost levels are open
            mu, log_s = output.double().unflatten(1, (2, channels)).unbind(1)
            bin_, half = (high - low) / (levels - 1), 0.5 * (high - low)
            scale = half * log_s.clamp(float(torch.tensor(1e-3 * bin_ / half).log()), 20.0).exp()
            edges = 0.5 * (values[1:] + values[:-1])
            edges = (edges - (0.5 * (high + low) + half * mu).unsqueeze(1)) / scale.unsqueeze(1)
            up, down = logsigmoid(edges), logsigmoid(-edges)
            inner = up[:, 1:] + down[:, :-1] + torch.log(-torch.expm1(-bin_ / scale)).unsqueeze(1)
            logits = torch.cat([up[:, :1], inner, down[:, -1:]], 1)
        distance = (z / s).double().unsqueeze(1) - (a / s).double() * values
        p = torch.softmax(logits.double() - 0.5 * distance.square(), 1)
        return (p * values).sum(1).to(z)
