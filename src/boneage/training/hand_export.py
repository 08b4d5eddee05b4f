"""The trained hand finder as an ONNX file, with what it needs to be used."""

import logging
import warnings
from pathlib import Path
from typing import cast

import torch
from torch import nn

from boneage.files import replacing
from boneage.inference.hand_finder import FACTS_KEY, FinderFacts
from boneage.training.export import drop_traces
from boneage.training.hand_network import SIDE, HandNetwork


class _Served(nn.Module):
    """The network with probabilities for logits."""

    def __init__(self, network: HandNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps, counts, polarity = self.network(images)
        return maps, counts.softmax(dim=1), polarity.sigmoid()


def export_finder(network: HandNetwork, out: Path, facts: FinderFacts) -> None:
    """Write a hand finder as ONNX.

    Args:
        network: A trained one.
        out: File to write.
        facts: What travels with it.
    """
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own deprecated internals
        exported = torch.onnx.export(
            _Served(network).eval(),
            kwargs={"images": torch.zeros(2, 1, SIDE, SIDE)},
            input_names=["images"],
            output_names=["maps", "hands", "inverted"],
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            dynamo=True,
            verbose=False,
        )
    model = cast(torch.onnx.ONNXProgram, exported).model_proto
    drop_traces(model.graph)
    onnx.helper.set_model_props(model, {FACTS_KEY: facts.to_json()})
    with replacing(out) as part:
        part.write_bytes(model.SerializeToString())
