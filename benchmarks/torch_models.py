"""Plain PyTorch modules of the networks that `against_torch.py` times, as in MMSegmentation.

FCN, PSPNet and DeepLabv3+ on a ResNet-50-v1c at output stride 8, and U-Net S5-D16 with an FCN head,
each with an auxiliary head. The module tree is plain `torch.nn`; `build` returns one network.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


class ConvNorm(nn.Module):
    """Convolution with half padding, batch normalisation, and ReLU unless `act` is False."""

    def __init__(self, inputs, outputs, kernel=1, stride=1, dilation=1, groups=1, act=True):
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, dilation, groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.act = nn.ReLU(inplace=True) if act else nn.Identity()

    def forward(self, x):
        return self.act(self.bn(self.conv(x)))

    def fuse(self) -> None:
        """Takes the normalisation into the convolution; the module must be in eval mode."""
        self.conv = fuse_conv_bn_eval(self.conv, self.bn)
        self.bn = nn.Identity()


def separable(inputs, outputs, dilation=1):
    """3x3 depthwise, then 1x1, normalised and rectified after each."""
    depthwise = ConvNorm(inputs, inputs, 3, dilation=dilation, groups=inputs)
    return nn.Sequential(depthwise, ConvNorm(inputs, outputs))


class Bottleneck(nn.Module):
    def __init__(self, inputs, width, stride, dilation):
        super().__init__()
        self.conv1 = ConvNorm(inputs, width)
        self.conv2 = ConvNorm(width, width, 3, stride, dilation)
        self.conv3 = ConvNorm(width, 4 * width, act=False)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.shortcut = ConvNorm(inputs, 4 * width, 1, stride, act=False)

    def forward(self, x):
        return self.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class ResNet50(nn.Module):
    """ResNet-50-v1c whose last two stages are dilated by 2 and 4: the maps of its four stages."""

    def __init__(self):
        super().__init__()
        stem = ConvNorm(3, 32, 3, 2), ConvNorm(32, 32, 3), ConvNorm(32, 64, 3)
        self.stem = nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1))
        self.stages, inputs = nn.ModuleList(), 64
        plan = ((64, 3, 1, 1), (128, 4, 2, 1), (256, 6, 1, 2), (512, 3, 1, 4))
        for width, depth, stride, dilation in plan:
            # The first block of a dilated stage keeps the rate of the stage before.
            blocks = [Bottleneck(inputs, width, stride, max(dilation // 2, 1))]
            inputs = 4 * width
            blocks += [Bottleneck(inputs, width, 1, dilation) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))

    def forward(self, x):
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class UNet(nn.Module):
    """Five stages of two convolutions, maxima of 2x2 between them, bilinear on the way up.

    Returns the maps of the decoder, the finest last.
    """

    def __init__(self, width=64):
        super().__init__()
        widths = [width * 2**i for i in range(5)]

        def pair(inputs, outputs):
            return nn.Sequential(ConvNorm(inputs, outputs, 3), ConvNorm(outputs, outputs, 3))

        self.encoder = nn.ModuleList(pair(a, b) for a, b in zip([3, *widths], widths, strict=False))
        up = list(zip(widths[:0:-1], widths[-2::-1], strict=True))  # (coarse, fine) widths
        self.reduce = nn.ModuleList(ConvNorm(coarse, fine) for coarse, fine in up)
        self.decoder = nn.ModuleList(pair(2 * fine, fine) for _, fine in up)

    def forward(self, x):
        skips = []
        for i, stage in enumerate(self.encoder):
            x = stage(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        skips.pop()
        maps = []
        for reduce, decode in zip(self.reduce, self.decoder, strict=True):
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            x = decode(torch.cat([skips.pop(), reduce(x)], 1))
            maps.append(x)
        return maps


class FCNHead(nn.Module):
    """Convolves map `index`, joins it to the result where `join`, and scores each pixel."""

    def __init__(self, classes, index, inputs, channels, convs, join):
        super().__init__()
        self.index = index
        sizes = [inputs] + [channels] * convs
        pairs = zip(sizes, sizes[1:], strict=False)
        self.convs = nn.Sequential(*(ConvNorm(a, b, 3) for a, b in pairs))
        self.join = ConvNorm(inputs + channels, channels, 3) if join else None
        self.classify = classifier(classes, channels)

    def forward(self, maps):
        x = self.convs(maps[self.index])
        if self.join is not None:
            x = self.join(torch.cat([maps[self.index], x], 1))
        return self.classify(x)


class PSPHead(nn.Module):
    def __init__(self, classes, inputs=2048, channels=512, bins=(1, 2, 3, 6)):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(k), ConvNorm(inputs, channels)) for k in bins
        )
        self.project = ConvNorm(inputs + len(bins) * channels, channels, 3)
        self.classify = classifier(classes, channels)

    def forward(self, maps):
        x = maps[-1]
        return self.classify(
            self.project(torch.cat([x, *(grow(level(x), x) for level in self.levels)], 1))
        )


class DeepLabV3PlusHead(nn.Module):
    def __init__(self, classes, inputs=2048, low=256, channels=512, rates=(12, 24, 36)):
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNorm(inputs, channels))
        branches = [ConvNorm(inputs, channels)]
        branches += [separable(inputs, channels, rate) for rate in rates]
        self.branches = nn.ModuleList(branches)
        self.project = ConvNorm((len(branches) + 1) * channels, channels, 3)
        self.low = ConvNorm(low, 48)
        self.fuse = nn.Sequential(separable(channels + 48, channels), separable(channels, channels))
        self.classify = classifier(classes, channels)

    def forward(self, maps):
        x, low = maps[-1], self.low(maps[0])
        branches = [grow(self.pool(x), x), *(branch(x) for branch in self.branches)]
        x = self.project(torch.cat(branches, 1))
        return self.classify(self.fuse(torch.cat([grow(x, low), low], 1)))


def classifier(classes, channels):
    return nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(channels, classes, 1))


def grow(x, like):
    """`x` at the height and width of `like`."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class Segmenter(nn.Module):
    """uint8 images [b, 3, h, w] -> logits at their size; in training, (logits, auxiliary ones)."""

    def __init__(self, backbone, head, aux_head):
        super().__init__()
        self.backbone, self.head, self.aux_head = backbone, head, aux_head
        for name, values in (("mean", MEAN), ("std", STD)):
            value = torch.tensor(values).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(self, images):
        x = (images.float() - self.mean) / self.std
        x = x.contiguous(memory_format=torch.channels_last)
        maps = self.backbone(x)
        logits = grow(self.head(maps), images)
        return (logits, grow(self.aux_head(maps), images)) if self.training else logits

    def fuse(self) -> None:
        """Folds every normalisation into the convolution before it, for inference."""
        for module in self.modules():
            if isinstance(module, ConvNorm):
                module.fuse()


def build(name: str, classes: int) -> Segmenter:
    """The network of that name: 'fcn', 'pspnet', 'deeplabv3p' or 'unet'."""
    if name == "unet":
        head, aux = FCNHead(classes, -1, 64, 64, 1, False), FCNHead(classes, -2, 128, 64, 1, False)
        return Segmenter(UNet(), head, aux)
    head = {
        "fcn": lambda: FCNHead(classes, -1, 2048, 512, 2, True),
        "pspnet": lambda: PSPHead(classes),
        "deeplabv3p": lambda: DeepLabV3PlusHead(classes),
    }[name]()
    return Segmenter(ResNet50(), head, FCNHead(classes, -2, 1024, 256, 1, False))
