"""A U-Net with transposed convolutions and skip connections, as people write it for torch."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def double_conv(inp, out):
    return nn.Sequential(
        nn.Conv2d(inp, out, 3, padding="same", padding_mode="reflect"),
        nn.GroupNorm(2, out),
        nn.LeakyReLU(0.1, inplace=True),
        nn.Conv2d(out, out, 3, padding=1),
        nn.InstanceNorm2d(out, affine=True),
        nn.SiLU(),
    )


class Up(nn.Module):
    def __init__(self, inp, out, bilinear=False):
        super().__init__()
        if bilinear:
            self.up = nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(inp, out, 1))
        else:
            self.up = nn.ConvTranspose2d(inp, out, kernel_size=2, stride=2)
        self.conv = double_conv(out * 2, out)

    def forward(self, x, skip):
        x = self.up(x)
        dy, dx = skip.shape[2] - x.shape[2], skip.shape[3] - x.shape[3]
        x = F.pad(x, [dx // 2, dx - dx // 2, dy // 2, dy - dy // 2])
        return self.conv(torch.concatenate((skip, x), axis=1))


class UNet(nn.Module):
    def __init__(self, channels=1, classes=3, width=4):
        super().__init__()
        self.inc = double_conv(channels, width)
        self.downs = nn.ModuleList([double_conv(width, width * 2), double_conv(width * 2, width * 4)])
        self.ups = nn.ModuleList([Up(width * 4, width * 2), Up(width * 2, width, bilinear=True)])
        self.pool = nn.MaxPool2d(2)
        self.out = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, x):
        skips = [self.inc(x)]
        for down in self.downs:
            skips.append(down(self.pool(skips[-1])))
        x = skips.pop()
        for up in self.ups:
            x = up(x, skips.pop())
        return self.out(x)
