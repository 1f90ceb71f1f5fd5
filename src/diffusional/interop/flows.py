"""How diffusers' pipelines of flows call their networks: the time that they give, and the sign of the output.

FlowMatchEulerDiscreteScheduler has the timesteps 1000 t (num_train_timesteps), t = σ the share of noise; a pipeline may divide them by 1000,
count the other way, or take the output with the other sign. This is written in the code of each pipeline and in no config.
"""

from dataclasses import dataclass, replace

from diffusional.interop.adapter import VELOCITY, Output
from diffusional.interop.clocks import FlowTime
from diffusional.interop.declared import Declared


@dataclass(frozen=True)
class FlowCall:
    """How a pipeline calls its network.

    Attributes:
        pipeline: the class of the pipeline.
        share: the network reads this times the scheduler's timestep.
        of_data: whether it reads 1 − t, the share of data, instead.
        negative: whether its output is x − ε, the velocity towards the data.
    """

    pipeline: str
    share: float = 1.0
    of_data: bool = False
    negative: bool = False


# By the class of the network. Others are assumed to read the timestep.
FLOWS: dict[str, FlowCall] = {
    "AuraFlowTransformer2DModel": FlowCall("AuraFlowPipeline", 1e-3),
    "ChromaTransformer2DModel": FlowCall("ChromaPipeline", 1e-3),
    "CogView4Transformer2DModel": FlowCall("CogView4Pipeline"),
    "FluxTransformer2DModel": FlowCall("FluxPipeline", 1e-3),
    "Flux2Transformer2DModel": FlowCall("Flux2Pipeline", 1e-3),
    "HiDreamImageTransformer2DModel": FlowCall("HiDreamImagePipeline", negative=True),
    "LongCatImageTransformer2DModel": FlowCall("LongCatImagePipeline", 1e-3),
    "Lumina2Transformer2DModel": FlowCall("Lumina2Pipeline", 1e-3, of_data=True, negative=True),
    "LuminaNextDiT2DModel": FlowCall("LuminaPipeline", 1e-3, of_data=True, negative=True),
    "OvisImageTransformer2DModel": FlowCall("OvisImagePipeline", 1e-3),
    "PRXTransformer2DModel": FlowCall("PRXPipeline", 1e-3),
    "QwenImageTransformer2DModel": FlowCall("QwenImagePipeline", 1e-3),
    "SanaTransformer2DModel": FlowCall("SanaPipeline"),
    "SD3Transformer2DModel": FlowCall("StableDiffusion3Pipeline"),
    "ZImageTransformer2DModel": FlowCall("ZImagePipeline", 1e-3, of_data=True, negative=True),
}


def called(declaration: Declared, network: str, timestep_scale: float = 1.0) -> Declared:
    """Return what a flow's scheduler declares, with the time and the sign with which the pipeline of a network calls it.

    Args:
        declaration: of a scheduler; others than flows are returned as they are.
        network: the class of the network.
        timestep_scale: of its config (Sana).

    >>> from diffusional.interop.schedulers import declared
    >>> flow = declared({"_class_name": "FlowMatchEulerDiscreteScheduler"})
    >>> flow.time, called(flow, "FluxTransformer2DModel").time
    (FlowTime(factor=1000.0, of_data=False), FlowTime(factor=1.0, of_data=False))
    """
    time, found = declaration.time, FLOWS.get(network)
    if not isinstance(time, FlowTime) or found is None:
        return declaration
    factor = time.factor * found.share * timestep_scale
    t = "1 − t" if found.of_data else "t"
    config = declaration.config | {
        "time": f"the network reads {'' if factor == 1 else f'{factor:g} '}{f'({t})' if factor != 1 and found.of_data else t}, as in the "
        f"{found.pipeline}"
    }
    output = declaration.output
    if found.negative:
        output = Output(-VELOCITY.of_data, -VELOCITY.of_noise)  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue]
        config["prediction"] = f"the network predicts x − ε of z = (1 − t) x + t ε, as in the {found.pipeline}"
    assumed = {name: sentence for name, sentence in declaration.assumed.items() if name != "time"}
    return replace(declaration, time=FlowTime(factor, found.of_data), output=output, config=config, assumed=assumed)
