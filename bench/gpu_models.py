"""Steps of `gpu.py` about whole models: the Talker, and other libraries' parts made fast."""

import copy
from typing import Any

import torch
from families import FRAMES, snr
from family_models import FAMILIES, Family
from gpu_step import Figures, Step
from gpu_vocoder import mode
from talker import FRAMES as SAID
from talker import SIZES, TEXT, say, talkers
from timing import milliseconds

import muomni_fast


def talker_times(figures: Figures) -> None:
    """Milliseconds of 100 frames, launch by launch and as the CUDA graph that is recorded for each
    text; the same greedy codes as the reference's, as far as float32's order of sums lets them."""
    for name in SIZES:
        plain, fast = (model.cuda() for model in talkers(name))
        for label, model in (("reference", plain), ("fast", fast)):
            run = lambda model=model: say(model)
            figures.take(f"{name}, {label}", lambda run=run: milliseconds(run, rounds=5))
        said = [model.generate(TEXT.decode(), max_frames=SAID).codes for model in (plain, fast)]
        frames = min(codes.shape[1] for codes in said)
        same = float((said[0][:, :frames] == said[1][:, :frames]).double().mean())
        figures.put(f"{name}, frames said", [codes.shape[1] for codes in said])
        figures.put(f"{name}, share of codes that are the same", same)


def families_times(figures: Figures) -> None:
    """Milliseconds of each family's part, its own code and ours, in float32 and bfloat16."""
    for family in FAMILIES:
        try:
            family.make(True)
        except ImportError as error:
            figures.put(family.name, str(error))
            continue
        for name in ("tf32", "bf16"):
            _family_times(figures, family, name)


@torch.no_grad()
def _family_times(figures: Figures, family: Family, mode_name: str) -> None:
    torch.manual_seed(0)
    model = family.make(not figures.asserts)  # a rehearsal on a CPU makes small ones
    part: Any = model.get_submodule(family.part)
    vocoder = hasattr(part, "conv_pre")
    if not vocoder and mode_name == "bf16":
        return  # codebooks are in float32
    inputs = family.inputs(part, FRAMES["forward" if vocoder else "encode"])
    with mode(mode_name) as dtype:
        theirs = part.to("cuda", dtype)
        ours = copy.deepcopy(theirs)
        report = muomni_fast.accelerate(ours, slower=True)
        label = f"{family.name}, {mode_name}"
        if not report.swapped:
            figures.put(label, str(report))
            return
        for method, arguments in inputs.items():
            given = [
                each.to("cuda", dtype if each.is_floating_point() else None) for each in arguments
            ]
            results = []
            for whose, module in (("theirs", theirs), ("ours", ours)):
                run = lambda module=module: getattr(module, method)(*given)  # noqa: B023
                results.append(run())
                name = f"{label}, {method}, {whose}"
                figures.take(name, lambda run=run: milliseconds(run))
            if vocoder:
                figures.put(f"{label}, {method}, dB to theirs", snr(results[1], results[0]))


STEPS = {
    "talker": Step("talker: times", 60, talker_times),
    "families": Step("families: times", 120, families_times),
}
