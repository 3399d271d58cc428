"""Items of different lengths, and audio of a mel that is still arriving."""

import pytest
import torch
from support.small_vocoders import (
    CONFIGS,
    EXACT,
    TYPE_1,
    TYPE_2,
    both_modes,
    every_config,
    fast_of,
    pair,
)
from torch import Tensor

import muomni_fast
from muomni_fast import reference
from muomni_fast.reference.vocoder.streaming import Latency


@pytest.mark.parametrize("mode", ["training", "inference", "prepared"])
@every_config
def test_each_item_sounds_as_if_it_were_alone(config, mode):
    slow, fast = pair(config)
    if mode == "prepared":
        fast.eval().prepare()
    mel, frames = torch.randn(4, config["n_mels"], 9), [9, 1, 0, 5]
    with torch.set_grad_enabled(mode == "training"):
        for lengths in (
            frames,
            *(torch.tensor(frames, dtype=d) for d in (torch.int32, torch.int64)),
        ):
            audio = fast(mel, lengths)
            torch.testing.assert_close(audio, slow(mel, lengths), **EXACT)
        for item, count in enumerate(frames):
            end = count * fast.hop_length
            assert not audio[item, end:].any()
            if count:
                alone = fast(mel[item : item + 1, :, :count])
                assert torch.equal(audio[item, :end], alone[0])
        for value in (torch.nan, torch.inf):  # after the end it does not matter
            spoiled = mel.clone()
            for item, count in enumerate(frames):
                spoiled[item, :, count:] = value
            assert torch.equal(fast(spoiled, frames), audio)
        # Before it, zeros still follow.
        spoiled[3, 0, 4] = torch.nan
        audio = fast(spoiled, frames)
        assert audio[3].isnan().any() and not audio[3, 5 * fast.hop_length :].any()
        assert audio[:3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16])
def test_lengths_of_few_bits_do_not_wrap(dtype):
    slow, fast = pair(TYPE_1)
    mel, lengths = torch.randn(1, 12, 110), torch.tensor([100], dtype=dtype)
    torch.testing.assert_close(fast(mel, lengths), slow(mel, lengths), **EXACT)


@both_modes
def test_lengths_that_do_not_fit_are_refused(prepared):
    model, mel = fast_of().eval(), torch.randn(2, 12, 5)
    if prepared:
        model.prepare()
    for lengths in ([1.0, 2.0], torch.ones(2), torch.ones(2, dtype=torch.bool)):
        with pytest.raises(TypeError, match="lengths: expected integers, got torch"):
            model(mel, lengths)
    with pytest.raises(TypeError, match="lengths: expected one for each item, got 5"):
        model(mel, 5)
    for lengths, message in (
        ([5], r"lengths: expected \(2,\), got \(1,\)"),
        (torch.tensor(5), r"lengths: expected \(2,\), got \(\)"),
        ([[5, 5]], r"lengths: expected \(2,\), got \(1, 2\)"),
        ([-1, 5], "lengths: expected 0 to 5 frames, got -1 to 5"),
        ([3, 6], "lengths: expected 0 to 5 frames, got 3 to 6"),
    ):
        with pytest.raises(ValueError, match=message):
            model(mel, lengths)


# Streaming


def streamed(model: reference.HiFiGANVocoder, mel: Tensor, sizes: list[int]) -> list[Tensor]:
    assert sum(sizes) == mel.shape[2]
    return [*model.stream(iter(mel.split(sizes, 2)))]


@pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
@every_config
def test_streamed_audio_is_that_of_the_whole(lib, config):
    model = pair(config)[lib is muomni_fast]
    mel = torch.randn(2, config["n_mels"], 42)
    with torch.no_grad():
        audio = model(mel)
    cuts = [[size] * (42 // size) for size in (1, 2, 3, 7)] + [[42], [0, 20, 0, 0, 22, 0]]
    for _ in range(5):
        ends = [0, *torch.randint(43, (6,)).sort().values.tolist(), 42]
        cuts.append([b - a for a, b in zip(ends, ends[1:], strict=False)])
    for sizes in cuts:
        pieces = streamed(model, mel, sizes)
        assert all(piece.shape[1] >= model.hop_length for piece in pieces)
        assert not any(piece.requires_grad for piece in pieces)
        torch.testing.assert_close(torch.cat(pieces, 1), audio, **EXACT)
    assert not [*model.stream([])] and not [*model.stream([mel[:, :, :0]])]


@pytest.mark.parametrize("lib", [reference, muomni_fast], ids=["reference", "fast"])
def test_a_buffer_of_chunks_may_be_used_again(lib):
    model, mel = pair(TYPE_1)[lib is muomni_fast], torch.randn(1, 12, 40)

    def chunks():
        buffer = torch.empty(1, 12, 4)
        for chunk in mel.split(4, 2):
            yield buffer.copy_(chunk)

    with torch.no_grad():
        audio = model(mel)
    torch.testing.assert_close(torch.cat([*model.stream(chunks())], 1), audio, **EXACT)


def test_a_mel_is_not_chunks():
    with pytest.raises(TypeError, match="mel_chunks: expected chunks.* got a tensor"):
        [*fast_of().stream(torch.zeros(1, 12, 3))]


def test_a_frame_is_heard_as_soon_as_what_it_depends_on_has_arrived():
    model = fast_of()
    future, seen, heard = model.context.future, [], []

    def one_by_one():
        for frame in torch.randn(1, 12, 30).split(1, 2):
            seen.append(frame)
            yield frame

    for piece in model.stream(one_by_one()):
        heard.append((len(seen), piece.shape[1] // model.hop_length))
    assert heard == [*((n + future, 1) for n in range(1, 31 - future)), (30, future)]


@pytest.mark.parametrize(
    ("chunk", "error", "message"),
    [
        (torch.zeros(1, 12, 3), ValueError, "mel_chunks: expected a batch of 2.* got 1"),
        (torch.zeros(2, 12, 3).double(), ValueError, "mel_chunks: expected dtype torch.float32"),
        (torch.zeros(2, 12, 3, device="meta"), ValueError, "mel_chunks: expected device cpu"),
        (torch.zeros(2, 11, 3), ValueError, r"mel: expected \(B, 12, T >= 1\), got \(2, 11, 3\)"),
        (torch.zeros(2, 12), ValueError, r"mel: expected \(B, 12, T >= 1\), got \(2, 12\)"),
        (torch.zeros(2, 12, 3).long(), TypeError, "mel: expected float16.*int64"),
    ],
    ids=["batch", "dtype", "device", "n_mels", "rank", "integers"],
)
def test_chunks_that_do_not_fit_are_refused(chunk, error, message):
    with pytest.raises(error, match=message):
        [*fast_of().stream([torch.zeros(2, 12, 3), chunk])]


CONTEXTS = CONFIGS | {
    "default": dict(n_mels=4, upsample_initial_channel=16),
    "v3": reference.vocoder.hifigan.PRESETS["v3"] | dict(n_mels=4, upsample_initial_channel=8),
    "kernel equals rate": TYPE_2 | dict(upsample_kernel_sizes=(3, 2)),
    "long kernels": TYPE_1 | dict(upsample_kernel_sizes=(18, 12)),
}


@pytest.mark.parametrize("config", CONTEXTS.values(), ids=CONTEXTS)
def test_context_is_exactly_what_a_frame_depends_on(config):
    for model in pair(config, torch.float64):
        past, future = model.context.past, model.context.future
        at, frames = future + 2, past + future + 5
        mel = torch.randn(1, config["n_mels"], frames, dtype=torch.float64)
        changed = mel.clone()
        changed[:, :, at] += 1
        with torch.no_grad():
            differs = (model(mel) != model(changed)).view(frames, -1).any(1).nonzero().flatten()
        # Frame f depends on frames f - past to f + future.
        assert (int(differs.min()), int(differs.max())) == (at - future, at + past)


def test_latency_is_the_future_a_frame_waits_for():
    model = muomni_fast.HiFiGANVocoder()
    assert model.context.future == 6
    assert model.stream_latency(22050) == Latency(6, pytest.approx(6 * 256 / 22.05))
    assert fast_of().stream_latency(22050) == Latency(10, pytest.approx(10 * 8 / 22.05))
