"""The policy network: camera pictures and joint state to logits over action tokens, in one pass.

Per camera three convolutions and a spatial softmax ("where is this feature", Levine et al. 2016)
that gives 16 image points with the features found there; a two-layer transformer over one
context token per camera, one for the state, and one query per action token; a shared output
layer. About half a million parameters. A side output predicts the cube's pose: used in
training only, it teaches the convolutions where the cube is long before the tokens would.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class NetConfig:
    """Sizes. `pose` is the number of values of the side output."""

    cameras: tuple[str, ...]
    image_size: int
    state_size: int
    tokens: int
    vocabulary: int
    pose: int = 5
    width: int = 128
    layers: int = 2
    heads: int = 4
    channels: tuple[int, int, int] = (16, 32, 48)
    keypoints: int = 16
    point_features: int = 8

    def as_json(self) -> dict[str, Any]:
        """For checkpoints."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "NetConfig":
        """The inverse of `as_json`."""
        fields = dict(fields)
        fields["cameras"] = tuple(fields["cameras"])
        fields["channels"] = tuple(fields["channels"])
        return cls(**fields)


class CameraEncoder(nn.Module):
    """Image `[B, 3, S, S]` in [-1, 1] -> `[B, width]`."""

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        first, second, third = config.channels
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, third, 3, padding=1),
            nn.ReLU(),
        )
        self.heat = nn.Conv2d(third, config.keypoints, 1)
        self.features = nn.Conv2d(third, config.point_features, 1)
        side = config.image_size // 4
        line = torch.linspace(-1.0, 1.0, side)
        grid = torch.stack(torch.meshgrid(line, line, indexing="ij"), -1).reshape(side * side, 2)
        self.register_buffer("grid", grid, persistent=False)
        self.out = nn.Linear(config.keypoints * (2 + config.point_features), config.width)

    def forward(self, image: Tensor) -> Tensor:
        maps = self.convolutions(image)
        heat = self.heat(maps).flatten(2).float().softmax(-1)
        points = heat @ self.grid
        found = heat @ self.features(maps).flatten(2).float().transpose(1, 2)
        return self.out(torch.cat((points.flatten(1), found.flatten(1)), 1))


class PolicyNet(nn.Module):
    """Images (one `[B, 3, S, S]` per camera) and state `[B, state_size]`, both normalised ->
    logits `[B, tokens, vocabulary]` and the cube's pose `[B, pose]` (normalised).
    """

    def __init__(self, config: NetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.cameras = nn.ModuleList(CameraEncoder(config) for _ in config.cameras)
        self.state = nn.Sequential(
            nn.Linear(config.state_size, width), nn.ReLU(), nn.Linear(width, width)
        )
        parts = len(config.cameras) + 1
        self.fuse = nn.Sequential(
            nn.Linear(parts * width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )
        self.queries = nn.Parameter(torch.randn(config.tokens, width) * 0.5)
        self.places = nn.Parameter(torch.randn(parts, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.logits = nn.Linear(width, config.vocabulary)
        self.pose = nn.Linear(width, config.pose)

    def forward(self, images: list[Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        encoded = [encode(image) for encode, image in zip(self.cameras, images, strict=True)]
        encoded.append(self.state(state))
        fused = self.fuse(torch.cat(encoded, 1))
        context = torch.stack(encoded, 1) + self.places
        x = torch.cat((context, self.queries + fused.unsqueeze(1)), 1)
        for block in self.blocks:
            x = block(x)
        answers = self.norm(x[:, len(encoded) :])
        return self.logits(answers), self.pose(fused)


class Block(nn.Module):
    """One pre-norm transformer layer, `[B, N, width]` -> same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        size = width // self.heads
        qkv = self.qkv(self.norm1(x)).reshape(batch, count, 3, self.heads, size)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        # Written out: on one CPU core twice as fast as torch's fused attention at this size.
        mixed = ((q @ k.transpose(-1, -2)) * size**-0.5).softmax(-1) @ v
        x = x + self.mix(mixed.transpose(1, 2).reshape(batch, count, width))
        return x + self.mlp(self.norm2(x))
