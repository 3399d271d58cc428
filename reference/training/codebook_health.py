"""What keeps codebooks alive: a start on data, revival of dead codes, EMA statistics, usage
figures.

Owned by the training stage and run after its step, never inside `RVQ.forward`. EMA codebooks: van
den Oord et al., "Neural discrete representation learning" (2017), appendix A.1; revival: Dhariwal
et al., "Jukebox" (2020).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..rvq.functional import code_sums
from ..rvq.quantizer import RVQ
from ..rvq.search import nearest_code

Nearest = Callable[[Tensor, Tensor], Tensor]  # (N, D), (K, D) -> (N,)
KMEANS_STEPS = 30
KMEANS_ROWS = 40000  # a start needs no more frames than this


def usage(codes: Tensor, codebook_size: int) -> tuple[Tensor, Tensor]:
    """How evenly codes are used.

    Args:
        codes: (..., n_codebooks) int64; -1 where a row did not reach the codebook does not count.
        codebook_size: K.

    Returns:
        the share of codes that occur, and the perplexity exp(entropy), each (n_codebooks,) float64.
    """
    counts = code_counts(codes.reshape(-1, codes.shape[-1]), codebook_size)  # (Q, K)
    share = counts / counts.sum(1, keepdim=True).clamp(min=1)
    entropy = -torch.special.xlogy(share, share).sum(1)
    return (counts > 0).double().mean(1), entropy.exp()


def code_counts(codes: Tensor, codebook_size: int) -> Tensor:
    """Occurrences of every code of every codebook: (N, Q) -> (Q, K) float64; -1 is none."""
    columns = [torch.bincount(c[c >= 0], minlength=codebook_size) for c in codes.unbind(1)]
    return torch.stack(columns).double()


def kmeans(
    rows: Tensor, size: int, generator: torch.Generator, nearest: Nearest = nearest_code
) -> Tensor:
    """Lloyd's algorithm: (N, D) float32 on the CPU -> (size, D).

    `nearest` is any exact search, and changes nothing but the time.

    Starts from distinct rows; an empty cluster restarts at the row farthest from its codeword. With
    fewer rows than clusters, the rest are copies moved by a thousandth of the data's spread.
    """
    if len(rows) < size:
        spread = rows.std(0, correction=0) * 1e-3 + 1e-6
        extra = torch.randint(len(rows), (size - len(rows),), generator=generator, device="cpu")
        noise = torch.randn(len(extra), rows.shape[1], generator=generator, device="cpu")
        return torch.cat([rows, rows[extra] + noise * spread])
    centres = rows[_drawn(len(rows), size, generator)].clone()
    for _ in range(KMEANS_STEPS):
        codes = nearest(rows, centres)
        counts = torch.bincount(codes, minlength=size)
        means = code_sums(codes, rows, size) / counts[:, None].clamp(min=1)
        empty = counts == 0
        centres = means.float()
        if empty.any():
            distance = (rows - centres[codes]).square().sum(1)
            centres[empty] = rows[distance.topk(int(empty.sum())).indices]
    return centres


@torch.no_grad()
def start_from_data(rvq: RVQ, mel: Tensor, generator: torch.Generator) -> None:
    """Set projections to the data's principal components and codebooks to k-means, one by one.

    Without a bias the components are those of the uncentred second moment, which is what
    reconstructs best through two linear maps.

    Args:
        rvq: changed in place.
        mel: (N, n_mels) frames; KMEANS_ROWS of them, drawn at random, serve k-means.
        generator: a CPU generator.

    Raises:
        TypeError: codebooks are parametrised, so that there is nothing to write into.
        ValueError: there are no frames.
    """
    _require_parameters(rvq)
    if mel.ndim != 2 or len(mel) == 0:
        raise ValueError(f"mel: expected (N >= 1, {rvq.n_mels}), got {tuple(mel.shape)}")
    mel = mel.cpu().float()
    if rvq.proj_in is not None and rvq.proj_out is not None:
        wide = mel.double()
        mean = wide.mean(0) if rvq.bias else wide.new_zeros(rvq.n_mels)
        centred = wide - mean
        vectors = torch.linalg.eigh(centred.T @ centred)[1].flip(
            1
        )  # (n_mels, n_mels), largest first
        basis = wide.new_zeros(rvq.codebook_dim, rvq.n_mels)
        kept = min(rvq.codebook_dim, rvq.n_mels)
        basis[:kept] = vectors[:, :kept].T
        rvq.proj_in.weight.copy_(basis)
        rvq.proj_out.weight.copy_(basis.T)
        if rvq.bias:
            rvq.proj_in.bias.copy_(-basis @ mean)
            rvq.proj_out.bias.copy_(mean)
    if len(mel) > KMEANS_ROWS:
        mel = mel[_drawn(len(mel), KMEANS_ROWS, generator)]
    residual = rvq.project(mel.to(rvq.codebook_weights()[0].device)).cpu()
    for weight in rvq.codebook_weights():
        centres = kmeans(residual, rvq.codebook_size, generator, rvq.nearest_code)
        weight.copy_(centres)
        residual = residual - centres[rvq.nearest_code(residual, centres)]


class CodebookHealth:
    """Revives dead codes, and keeps codebooks as moving averages where asked.

    A code is dead when the moving average of its count falls below `least_count` (with the
    defaults, after 128 steps without use). It becomes a random residual of the current batch; the
    optimiser's moments and the EMA statistics of its row start anew. With several processes, counts
    and sums are those of the whole batch and all of them revive alike.

    Args:
        rvq: the model; with `ema_decay` its codebooks stop requiring gradients.
        optimiser: whose state of revived rows is zeroed; None with nothing to reset.
        usage_decay: of the moving average of counts, per step.
        least_count: in units of what an even use would give.
        ema_decay: of EMA codebooks; None learns codebooks by gradient.
        seed: of the draws.

    Raises:
        TypeError: codebooks are parametrised, so that there is nothing to write into.
    """

    def __init__(
        self,
        rvq: RVQ,
        optimiser: torch.optim.Optimizer | None,
        usage_decay: float = 0.97,
        least_count: float = 0.02,
        ema_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        _require_parameters(rvq)
        self.rvq = rvq
        self.optimiser = optimiser
        self.usage_decay = usage_decay
        self.least_count = least_count
        self.ema_decay = ema_decay
        self.generator = torch.Generator().manual_seed(seed)
        device = rvq.codebook_weights()[0].device
        shape = (rvq.n_codebooks, rvq.codebook_size)
        # Moving averages, relative to even use: every code starts as evenly used.
        self.counts = torch.ones(shape, dtype=torch.float64, device=device)
        self.ema_sums = rvq.stacked_codebooks().detach().double()  # (Q, K, D)
        self.ema_counts = self.counts.clone()
        if ema_decay is not None:
            rvq.codebooks.requires_grad_(False)

    @torch.no_grad()
    def after_step(self, mel: Tensor, codes: Tensor) -> int:
        """Update from one step's batch (..., n_mels) and its codes (..., Q).

        Codes -1, of rows that did not reach a codebook, are neither counted nor is such a row drawn
        from there; a codebook that no row reached stays as it is.

        Returns:
            how many codes were revived.
        """
        residual = self.rvq.project(mel).flatten(0, -2)  # (N, D)
        codes = codes.reshape(len(residual), codes.shape[-1])
        if dist.is_initialized():
            residual, codes = _gathered(residual), _gathered(codes)
        size, revived = self.rvq.codebook_size, 0
        for q, weight in enumerate(self.rvq.codebook_weights()):
            here = codes[:, q] >= 0
            if not here.all():  # a row that misses this codebook misses those after it
                residual, codes = residual[here], codes[here]
            if len(codes) == 0:
                break
            column, even = codes[:, q], len(codes) / size
            before = weight[column]
            counts = code_counts(column[:, None], size)[0] / even  # (K,)
            self.counts[q].lerp_(counts, 1 - self.usage_decay)
            if self.ema_decay is not None:
                self._follow(q, weight)
                sums = self.rvq.code_sums(column, residual, size) / even
                self.ema_sums[q].lerp_(sums, 1 - self.ema_decay)
                self.ema_counts[q].lerp_(counts, 1 - self.ema_decay)
                used, mean = self._means(q)
                weight[used] = mean.to(weight)
            dead = (self.counts[q] < self.least_count).nonzero()[:, 0]
            if len(dead):
                revived += self._revive(q, dead, residual)
            residual = residual - before
        return revived

    def _means(self, q: int) -> tuple[Tensor, Tensor]:
        """Which codes have been used, (K,) bool, and their moving averages, float64."""
        used = self.ema_counts[q] > 1e-6
        return used, self.ema_sums[q][used] / self.ema_counts[q][used, None]

    def _follow(self, q: int, weight: Tensor) -> None:
        """Start the statistics anew of codewords that somebody else has written."""
        used, mean = self._means(q)
        others = torch.zeros_like(used)
        others[used] = (weight[used] != mean.to(weight)).any(1)
        self.ema_sums[q, others] = weight[others].double()
        self.ema_counts[q, others] = 1.0

    def _revive(self, q: int, dead: Tensor, residual: Tensor) -> int:
        """Set dead codes to residuals (N, D) drawn at random; returns how many were."""
        weight = self.rvq.codebook_weights()[q]
        draws = _drawn(len(residual), len(dead), self.generator)
        dead = dead[: len(draws)]  # with fewer rows than codes, the rest wait for the next step
        weight[dead] = residual[draws.to(residual.device)].to(weight)
        self.counts[q, dead] = 1.0
        self.ema_sums[q, dead] = weight[dead].double()
        self.ema_counts[q, dead] = 1.0
        if self.optimiser is not None:
            for value in self.optimiser.state.get(weight, {}).values():
                if torch.is_tensor(value) and value.shape == weight.shape:
                    value[dead] = 0
        return len(dead)

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs."""
        names = ("counts", "ema_sums", "ema_counts")
        return {n: getattr(self, n) for n in names} | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name in ("counts", "ema_sums", "ema_counts"):
            own = getattr(self, name)
            if state[name].shape != own.shape:
                got = tuple(state[name].shape)
                raise ValueError(f"{name}: expected shape {tuple(own.shape)}, got {got}")
            own.copy_(state[name])
        self.generator.set_state(state["generator"])


def _require_parameters(rvq: RVQ) -> None:
    for q, weight in enumerate(rvq.codebook_weights()):
        if not isinstance(weight, torch.nn.Parameter):
            raise TypeError(
                f"codebooks[{q}].weight: expected a parameter, got a {type(weight).__name__} "
                "(parametrised?)"
            )


def _drawn(n: int, most: int, generator: torch.Generator) -> Tensor:
    """At most `most` different numbers below `n`, at random, on the CPU."""
    return torch.randperm(n, generator=generator, device="cpu")[:most]


def _gathered(rows: Tensor) -> Tensor:
    """The rows of all processes, in rank order."""
    size = rows.new_full((1,), len(rows), dtype=torch.int64)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, size)
    padded = rows.new_zeros(max(map(int, sizes)), *rows.shape[1:])  # gathered are equally many
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(n)] for part, n in zip(parts, sizes, strict=True)])
