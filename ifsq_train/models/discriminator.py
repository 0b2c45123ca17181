"""PatchGAN discriminator (Isola et al. 2017; released losses/discriminator.py)."""

from __future__ import annotations

from torch import Tensor, nn

from ifsq_train.models.channels import seen_by


class PatchDiscriminator(nn.Module):
    """Stack of 4x4 convolutions with batch norm; one logit per patch.

    Args:
        base_channels: width of the first layer; doubles per layer up to 8 times.
        num_layers: strided layers; 4 in the released training, 3 in the original PatchGAN.
            One more layer with stride 1 follows, then the logits.
        image_channels: 3, or 1 for grey.
    """

    def __init__(
        self, base_channels: int = 64, num_layers: int = 4, image_channels: int = 3
    ) -> None:
        super().__init__()
        self.image_channels = image_channels
        layers: list[nn.Module] = [
            nn.Conv2d(image_channels, base_channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        before = base_channels
        for layer in range(1, num_layers + 1):
            width = base_channels * min(2**layer, 8)
            stride = 2 if layer < num_layers else 1
            layers += [
                nn.Conv2d(before, width, 4, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.LeakyReLU(0.2),
            ]
            before = width
        layers.append(nn.Conv2d(before, 1, 4, stride=1, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> Tensor:
        """Float [B, 3, H, W] in [-1, 1], or grey where it takes grey -> logits [B, 1, h, w].

        Positive means real.
        """
        return self.main(seen_by(images, self.image_channels))


def _initialise(module: nn.Module) -> None:
    """Convolution weights N(0, 0.02), batch norm scale N(1, 0.02) and shift 0."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)
