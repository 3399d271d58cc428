"""Training the Talker: codes from text, on the codes of a finished quantizer."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..codec import SpeechCodec, encode_mel
from ..errors import DataError
from ..rvq.digest import quantizer_digest
from ..talker.delay import NO_TARGET
from ..talker.model import Talker, TalkerOutput
from ..vocoder.griffin_lim import GriffinLimVocoder
from .clips import Clip
from .config import Recipe, TrainConfig
from .data import Corpus, HeldOut
from .stage import NOTHING, Results, Stage, StepResult, cosine
from .talker_data import Items, TalkerData, collate, usable_text
from .talker_figures import Tally, guesses, rank
from .transcripts import transcript

RECALLED = 20  # training sentences that are asked back
RANKED = 10  # new sentences that are ranked
VOICE = 20  # clips of a voice among which the true one is to be found
VALIDATED = 16  # items at once
FEW = 3000  # sentences that are learned by heart


@dataclasses.dataclass(frozen=True)
class TalkerRecipe(Recipe):
    """Training of the Talker.

    `model` has no shape of codes, speakers and digest: these come from the quantizer and the data.
    `warmup` is the number of steps in which the learning rate grows from zero, before half a cosine
    takes it there again. `speaker_dropout` is the share of items whose speaker is withheld.
    """

    steps: int = 100_000
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: int = 1000
    weight_decay: float = 0.1
    speaker_dropout: float = 0.1

    def check(self, config: TrainConfig) -> None:
        if not 0 <= self.speaker_dropout <= 1:
            raise ValueError(
                f"talker: speaker_dropout: expected 0 to 1, got {self.speaker_dropout}"
            )
        with torch.device("meta"):  # checks arguments without making weights
            Talker(**self.model)


class TalkerStage(Stage[TalkerData]):
    """Learns to say text: the mean cross-entropy of all codes, in the delay pattern."""

    name = "talker"
    recipe_class = TalkerRecipe
    recipes = {
        "quick": TalkerRecipe(
            steps=360, batch_size=8, learning_rate=3e-3, warmup=20, weight_decay=0.0
        ),
        "smoke": TalkerRecipe(
            steps=8,
            batch_size=4,
            learning_rate=3e-3,
            warmup=2,
            model={"dim": 16, "n_layers": 1, "n_heads": 2},
        ),
        **{
            name: TalkerRecipe(model={"dim": 256, "n_layers": 6})
            for name in ("muomni", "muomni-4", "muomni-8", "muomni-62", "muomni-62-small")
        },
    }
    requires = ("rvq",)
    max_grad_norm = 1.0
    speaks = True
    recipe: TalkerRecipe
    talker: Talker

    @classmethod
    def model_class(cls, backend: ModuleType) -> type[nn.Module]:
        return backend.Talker

    @classmethod
    def obstacle(cls, clips: Sequence[Clip]) -> str | None:
        if any(transcript(clip) for clip in clips):
            return None
        return "no clip has a text (see `find_clips`; of a manifest, in a column `text`)"

    def build(self) -> dict[str, nn.Module]:
        self.rvq: Any = self.required["rvq"]
        config = self.config
        self.digest = quantizer_digest(self.rvq, config.frames_per_code, config.pooling)
        return self._models(())

    def _models(self, speakers: Sequence[str]) -> dict[str, nn.Module]:
        shape = {"n_codebooks": self.rvq.n_codebooks, "codebook_size": self.rvq.codebook_size}
        own = {**shape, "speakers": speakers, "quantizer": self.digest}
        model_class: Any = self.model_class(self.backend)
        self.talker = model_class(**(self.recipe.model | own)).to(self.device)
        return {"talker": self.talker}

    def dataset(self, corpus: Corpus) -> TalkerData:
        """The training data; makes the model anew, for the speakers that are in it."""
        obstacle = self.obstacle(corpus.clips)
        if obstacle is not None:
            raise DataError(f"talker: {obstacle}")
        data = TalkerData(
            corpus,
            self.encode,
            self.config.mel,
            self.batch_size,
            self.config.seed,
            self.talker.max_text,
            self.recipe.speaker_dropout,
            self.digest,
        )
        self.models = self._models(data.speakers)
        self.texts = data.digest()
        return data

    @torch.no_grad()
    def encode(self, mel: Tensor) -> Tensor:
        """Codes of a log-mel: (n_mels, T) -> (S, Q)."""
        config = self.config
        return encode_mel(self.rvq, mel.to(self.device), config.frames_per_code, config.pooling)

    def split(self, batch: dict[str, Any], n: int) -> list[Items]:
        names = ("text", "text_lengths", "codes", "lengths", "speakers")
        chunks = {name: batch[name].to(self.device).chunk(n) for name in names}
        return [{name: chunks[name][i] for name in names} for i in range(n)]

    def skipped(self, batch: dict[str, Any]) -> Sequence[int]:
        return batch["skipped"]

    def begin(self) -> None:
        self.optimisers = {
            "talker": torch.optim.AdamW(
                self.talker.parameters(),
                self.recipe.learning_rate,
                betas=(0.9, 0.98),
                weight_decay=self.recipe.weight_decay,
            )
        }

    def learning_rate_factor(self, step: int, epoch: int) -> float:
        return min(1.0, (step + 1) / (self.recipe.warmup + 1)) * cosine(step, self.steps)

    def loss(self, pass_name: str, batch: Items, earlier: Results = NOTHING) -> StepResult:
        out: TalkerOutput = self.talker(**batch)
        # Half precision would lose what a sum over classes adds.
        logits = out.logits.to(torch.promote_types(out.logits.dtype, torch.float32))
        nats = F.cross_entropy(logits.flatten(0, 2), out.targets.flatten())
        first = out.targets[..., 0]
        right = out.logits[..., 0, :].argmax(-1) == first
        counts = first != NO_TARGET
        figures = {"nats": nats, "accuracy_1": right[counts].float().mean()}
        return StepResult(nats, figures, weight=(out.targets != NO_TARGET).sum())

    def extra_state(self) -> dict[str, Any]:
        return {"quantizer": self.digest, "texts": self.texts}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        for name, value in self.extra_state().items():
            if state[name] != value:
                raise ValueError(f"{name}: {state[name][:12]}... has become {value[:12]}...")

    # Measuring and reporting

    def _known(self, speaker: str) -> int:
        """A speaker's id; 0 where the Talker does not know the speaker."""
        known = self.talker.speakers
        return known.index(speaker) + 1 if speaker in known else 0

    def _spoken(self, clips: Sequence[HeldOut]) -> list[tuple[Clip, str, Tensor]]:
        """Held-out clips that have a text, with their codes."""
        texts = [(held, usable_text(held.clip, self.talker.max_text)) for held in clips]
        spoken = [(held.clip, text, self.encode(held.mel)) for held, text in texts if text]
        if not spoken:
            raise DataError("talker: no held-out clip has a text")
        return spoken

    @torch.no_grad()
    def validate(self, clips: Sequence[HeldOut]) -> dict[str, float]:
        spoken = self._spoken(clips)
        tally = Tally(self.talker.n_codebooks)
        self.talker.eval()
        for i in range(0, len(spoken), VALIDATED):
            some, texts, codes = zip(*spoken[i : i + VALIDATED], strict=True)
            items = collate(texts, [c.cpu() for c in codes], [self._known(c.speaker) for c in some])
            out = self.talker(**{name: value.to(self.device) for name, value in items.items()})
            tally.add(out.logits, out.targets)
        self.talker.train()
        return tally.figures()

    @torch.no_grad()
    def comparisons(
        self, data: TalkerData, clips: Sequence[HeldOut], notes: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Guesses that know no text, training sentences asked back, and new ones ranked."""
        spoken = self._spoken(clips)
        size = self.talker.codebook_size
        figures: dict[str, Any] = guesses(data.codes, [codes for *_, codes in spoken], size)
        figures["sentences"] = len(data.texts)
        figures["recalled"] = self._recalled(data)
        figures["ranks"] = self._ranks(data, spoken)
        return figures

    def _say(self, texts: Sequence[str], speakers: Sequence[str], most: int) -> list[Tensor]:
        """Codes (S, Q) of each text, the likeliest."""
        names = [s if s in self.talker.speakers else None for s in speakers]
        said = self.talker.generate(texts, names, max_frames=most)
        return [c[:n] for c, n in zip(said.codes, said.lengths.tolist(), strict=True)]

    def _recalled(self, data: TalkerData) -> dict[str, int]:
        """How many of the first training sentences come back code for code, ending by themselves:
        an end that is not the Talker's own would come later."""
        true = [codes.to(self.device) for codes in data.codes[:RECALLED]]
        speakers = [clip.speaker for clip in data.clips[:RECALLED]]
        said = self._say(data.texts[:RECALLED], speakers, _most_frames(data))
        exact = sum(torch.equal(a, b) for a, b in zip(said, true, strict=True))
        return {"exact": exact, "of": len(true)}

    def _ranks(
        self, data: TalkerData, spoken: Sequence[tuple[Clip, str, Tensor]]
    ) -> list[dict[str, Any]]:
        """Of new sentences: the true clip's rank among those of the same voice."""
        ranks: list[dict[str, Any]] = []
        asked = spoken[:RANKED]
        texts, speakers = [text for _, text, _ in asked], [clip.speaker for clip, *_ in asked]
        said = self._say(texts, speakers, _most_frames(data))
        for (clip, text, codes), own in zip(asked, said, strict=True):
            others = [
                c for other, _, c in spoken if other != clip and other.speaker == clip.speaker
            ]
            others += [
                c
                for other, c in zip(data.clips, data.codes, strict=True)
                if other.speaker == clip.speaker
            ]
            voice = [codes, *others[: VOICE - 1]]
            if len(own) and len(voice) > 1:
                frames = [self._frames(c) for c in voice]
                found = {"rank": rank(self._frames(own), frames, 0), "of": len(voice)}
                ranks.append({"text": text, "speaker": clip.speaker, **found})
        return ranks

    def _frames(self, codes: Tensor) -> Tensor:
        """What codes (S, Q) sound like: a vector (S, rvq.n_mels) for each."""
        return self.rvq.decode(codes.long().to(self.device)).cpu()

    @classmethod
    @torch.no_grad()
    def said(
        cls, clip: HeldOut, config: TrainConfig, products: Mapping[str, Any]
    ) -> dict[str, Tensor]:
        talker, rvq = products[cls.name], products["rvq"]
        text = usable_text(clip.clip, talker.max_text)
        if text is None:
            return {}
        neural = "vocoder" in products
        vocoder = products["vocoder"] if neural else GriffinLimVocoder(config.mel)
        pooled = config.frames_per_code, config.pooling
        codec = SpeechCodec(rvq, vocoder, config.mel, *pooled, talker=talker)
        speaker = clip.clip.speaker if clip.clip.speaker in talker.speakers else None
        true = codec.encode(clip.audio[None])
        said = codec.speak(text, speaker, max_frames=2 * true.shape[1])
        return {f"talker-{'hifigan' if neural else 'griffin-lim'}": said} if len(said) else {}

    @classmethod
    def report(cls, results: dict[str, Any]) -> list[str]:
        rows = {
            "unigram, knows no text": results["unigram"],
            "bigram, knows no text": results["bigram"],
            "random weights": results["random"],
            "trained": results["trained"],
        }
        lines = [f"{'talker, held-out codes':<34}{'nats':>8}   nats and accuracy by codebook"]
        for name, figures in rows.items():
            n = len([key for key in figures if key.startswith("nats_")])
            each = ", ".join(
                f"{figures[f'nats_{q}']:.2f} {figures[f'accuracy_{q}']:.0%}"
                for q in range(1, n + 1)
            )
            lines.append(f"{name:<34}{figures['nats']:>8.3f}   {each}")
        recalled, ranks, n = results["recalled"], results["ranks"], results["sentences"]
        lines.append(
            f"of {recalled['of']} training sentences {recalled['exact']} come back code for code, "
            "ending by themselves"
        )
        if ranks:
            found = ", ".join(f"{r['rank']} of {r['of']}" for r in ranks)
            lines.append(f"new sentences: rank of the true clip among those of its voice: {found}")
        if n < FEW:
            lines.append(
                f"{n} sentences are learned by heart: from so few, new ones are not expected to be "
                "understood"
            )
        return lines


def _most_frames(data: TalkerData) -> int:
    """One more than the longest clip has: by then an end has come, or will not."""
    return 1 + max(map(len, data.codes))
