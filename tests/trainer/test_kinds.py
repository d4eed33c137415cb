"""Every encoder and every pretext task passes the checks that ship with the package."""

import msgspec
import pytest
import torch
from torch import Tensor, nn

from trainer.encoders import ENCODERS, Encoder
from trainer.model import CLIP
from trainer.pretexts import PRETEXTS
from trainer.pretexts.combined import Combined
from trainer.pretexts.masked import Masked
from trainer.recipe import EncoderRecipe, PretextRecipe, PretextWeights
from trainer.testing import check_encoder, check_pretext, rhythm


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(("stride", "depth"), [(2, 2), (4, 1), (8, 3)])
def test_encoder(kind: str, stride: int, depth: int) -> None:
    recipe = EncoderRecipe(kind=kind, width=16, depth=depth, embedding=8, stride=stride)  # type: ignore[arg-type]
    check_encoder(lambda channels: ENCODERS[kind](channels, recipe))


def test_separable_encoder() -> None:
    recipe = EncoderRecipe(width=16, depth=3, embedding=8, separable=True)
    check_encoder(lambda channels: ENCODERS["tcn"](channels, recipe))


class Beside(Masked):
    """One task beside the decoder that it has beside it in a detector too: the checks want a residual."""

    def __init__(self, kind: str, channels: int, encoder: Encoder) -> None:
        super().__init__(channels, encoder, PretextRecipe())
        self.task = PRETEXTS[kind](channels, encoder, PretextRecipe())

    def loss(self, encoder: Encoder, x: Tensor, rng: torch.Generator) -> Tensor:
        return self.task.loss(encoder, x, rng)


@pytest.mark.parametrize("kind", PRETEXTS)
def test_pretext(kind: str) -> None:
    check_pretext(lambda channels, encoder: Beside(kind, channels, encoder))


def test_all_pretexts_together() -> None:
    recipe = PretextRecipe(weights=PretextWeights(**dict.fromkeys(PRETEXTS, 0.5)))
    check_pretext(lambda channels, encoder: Combined(channels, encoder, recipe))


FREQUENCIES = PretextRecipe(time_ratio=0, channel_ratio=0, frequency_ratio=0.4)


@pytest.mark.parametrize("recipe", [FREQUENCIES, PretextRecipe(frequency_ratio=0.3)], ids=["frequencies", "and the rest"])
def test_masked_frequencies(recipe: PretextRecipe) -> None:
    check_pretext(lambda channels, encoder: Masked(channels, encoder, recipe))


class Watched(nn.Module):
    """An encoder that remembers what it was shown."""

    dimension, stride, causal = 8, 4, False

    def __init__(self) -> None:
        super().__init__()
        self.inner = ENCODERS["tcn"](3, EncoderRecipe(width=16, depth=2, embedding=8))

    def forward(self, x: Tensor) -> Tensor:
        self.shown = x
        return self.inner(x)


@pytest.mark.parametrize("length", [32, 33])
@pytest.mark.parametrize("time_ratio", [0.0, 0.3])
def test_nothing_of_a_hidden_bin_reaches_the_encoder(length: int, time_ratio: float) -> None:
    encoder = Watched()
    recipe = PretextRecipe(time_ratio=time_ratio, channel_ratio=0, frequency_ratio=0.4)
    pretext = Masked(3, encoder, recipe)
    x = rhythm(16, length=length)

    def shown(x: Tensor) -> Tensor:
        pretext.loss(encoder, x, torch.Generator().manual_seed(5))
        return encoder.shown

    rng = torch.Generator().manual_seed(5)
    hidden, bins = pretext.mask(x, rng), pretext.mask_bins(x, rng)
    assert 0.3 < bins.float().mean() < 0.5
    usual = shown(x)
    if not time_ratio:
        spectrum, whole = torch.fft.rfft(usual).abs(), torch.fft.rfft(x)
        assert (spectrum * bins).max() < 1e-4 < 0.1 < (whole.abs() * bins).max()
        torch.testing.assert_close(torch.fft.rfft(usual) * ~bins, whole * ~bins, atol=1e-4, rtol=1e-4)
    # Whatever else were in the hidden bins, the encoder would be shown the same; what is in the others, it sees.
    noise = torch.fft.rfft(torch.randn(x.shape, generator=rng))
    other = x + torch.fft.irfft(noise * bins, n=length)
    assert (other - x).abs().max() > 0.5
    torch.testing.assert_close(shown(other), usual, atol=1e-4, rtol=1e-4)
    assert (shown(x + torch.fft.irfft(noise * ~bins, n=length)) - usual).abs().max() > 0.5
    assert not (usual * hidden).any()


def test_without_hidden_bins_the_loss_is_what_it_was_to_the_bit() -> None:
    x = rhythm(16)
    encoder = ENCODERS["tcn"](3, EncoderRecipe(width=16, depth=2, embedding=8))
    before, now = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    for ratio in (0.0, 0.1):
        pretext = Masked(3, encoder, PretextRecipe(frequency_ratio=ratio)).eval()
        hidden = pretext.mask(x, before)
        error = (pretext.reconstruct(encoder(x.masked_fill(hidden, 0.0)), 32) - x).square()
        loss = (error * hidden).sum() / (hidden.sum() + 1) + 0.5 * (error * ~hidden).sum() / ((~hidden).sum() + 1)
        assert torch.equal(pretext.loss(encoder, x, now), loss) == (ratio == 0)
        assert torch.equal(before.get_state(), now.get_state()) == (ratio == 0), "draws that nobody asked for"


def test_what_was_said_in_hidden_bins_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = rhythm(256)
    encoder = ENCODERS["tcn"](3, EncoderRecipe(width=16, depth=2, embedding=8))
    pretext = Masked(3, encoder, msgspec.structs.replace(FREQUENCIES, visible_weight=0))
    bins = pretext.mask_bins(x, torch.Generator().manual_seed(5))

    def loss(wrong: Tensor) -> float:
        monkeypatch.setattr(pretext, "mask_bins", lambda *_: bins)
        monkeypatch.setattr(pretext, "reconstruct", lambda *_: x + wrong)
        return pretext.loss(encoder, x, torch.Generator()).item()

    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert loss(noise) == pytest.approx(1, rel=0.1), "an error of one spread everywhere is one in the hidden bins"
    assert loss(torch.fft.irfft(torch.fft.rfft(noise) * ~bins, n=32)) < 1e-6
    assert loss(torch.zeros(1)) == 0


@pytest.mark.parametrize("kind", PRETEXTS)
@pytest.mark.parametrize("windows", ["still", "alike", "one", "one channel", "short tail", "at the limit", "short"])
def test_no_window_is_too_odd_for_a_pretext(kind: str, windows: str) -> None:
    x = {
        "still": torch.zeros(8, 3, 32),
        "alike": rhythm(1).expand(8, -1, -1),
        "one": rhythm(1),
        "one channel": rhythm(8, channels=1),
        "short tail": rhythm(8, length=33),
        "at the limit": rhythm(8).sign() * CLIP,
        "short": rhythm(8, length=8),
    }[windows]
    encoder = ENCODERS["tcn"](x.shape[1], EncoderRecipe(width=16, depth=2, embedding=8))
    pretext = PRETEXTS[kind](x.shape[1], encoder, PretextRecipe(patch=4))
    if windows == "one":  # which training never sees, but what was held back may end with
        encoder.eval()
    rng = torch.Generator().manual_seed(0)
    for _ in range(6):
        loss = pretext.loss(encoder, x, rng)
        assert torch.isfinite(loss)
        encoder.zero_grad()
        loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_the_checks_notice_a_pretext_that_writes_into_its_input() -> None:
    class Careless(Masked):
        def loss(self, encoder, x: Tensor, rng: torch.Generator) -> Tensor:  # type: ignore[no-untyped-def]
            x[:, 0] = 0
            return super().loss(encoder, x, rng)

    with pytest.raises(AssertionError, match="in place"):
        check_pretext(lambda channels, encoder: Careless(channels, encoder, PretextRecipe()))


def test_the_checks_notice_a_pretext_that_does_not_reach_the_encoder() -> None:
    class Cut(Masked):
        def loss(self, encoder, x: Tensor, rng: torch.Generator) -> Tensor:  # type: ignore[no-untyped-def]
            return super().loss(lambda y: encoder(y).detach(), x, rng)  # type: ignore[arg-type]

    with pytest.raises(AssertionError, match="no gradient reaches"):
        check_pretext(lambda channels, encoder: Cut(channels, encoder, PretextRecipe()))


def test_the_checks_notice_an_encoder_that_forgets_a_channel() -> None:
    class Blind(nn.Module):
        dimension, stride = 4, 1

        def __init__(self) -> None:
            super().__init__()
            self.project = nn.Conv1d(1, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.project(x[:, :1])  # type: ignore[no-any-return]

    with pytest.raises(AssertionError, match="a channel has no influence"):
        check_encoder(lambda channels: Blind())


class Steps(nn.Module):
    """An encoder that owes nothing; what a test changes is what the checks are to notice."""

    dimension, stride = 4, 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.project = nn.Conv1d(channels, 4, 1), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.first(x))  # type: ignore[no-any-return]


class Normalising(Steps):
    """By what is in the batch, in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / (x.std() + 1e-3))


class Forgetful(Steps):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(nn.functional.dropout(x, 0.1))


class HalfFrozen(Steps):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.first.requires_grad_(False)


class DividesByNothing(Steps):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / x.std(2, keepdim=True, correction=0))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (Normalising, "gives another map"),
        (Forgetful, "the second time"),
        (HalfFrozen, r"first\.weight, first\.bias would never be trained"),
        (DividesByNothing, "stand still"),
    ],
)
def test_the_checks_notice_an_encoder_that_is(wrong: type[Steps], told: str) -> None:
    check_encoder(lambda channels: Steps(channels))
    with pytest.raises(AssertionError, match=told), torch.random.fork_rng(devices=[]):
        check_encoder(lambda channels: wrong(channels))


def test_masks_hide_about_the_share_they_are_told_to() -> None:
    encoder = ENCODERS["tcn"](3, EncoderRecipe())
    x = rhythm(512)
    rng = torch.Generator().manual_seed(0)
    time = Masked(3, encoder, PretextRecipe(time_ratio=0.4, channel_ratio=0)).mask(x, rng)
    whole = Masked(3, encoder, PretextRecipe(time_ratio=0, channel_ratio=0.3)).mask(x, rng)
    assert time.float().mean() == pytest.approx(0.4, abs=0.05)
    assert torch.equal(time[:, 0], time[:, 1])  # in all channels at once
    assert whole.float().mean() == pytest.approx(0.3, abs=0.05)
    assert torch.equal(whole[:, :, 0], whole[:, :, -1])  # for the whole window


def test_what_is_hidden_does_not_reach_the_encoder() -> None:
    encoder = ENCODERS["tcn"](3, EncoderRecipe())
    pretext = Masked(3, encoder, PretextRecipe())
    x = rhythm(16)
    seen: list[Tensor] = []

    def spy(window: Tensor) -> Tensor:
        seen.append(window)
        return encoder(window)

    pretext.loss(spy, x, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    hidden = pretext.mask(x, torch.Generator().manual_seed(0))
    assert hidden.any()
    assert torch.equal(seen[0], torch.where(hidden, 0.0, x))
