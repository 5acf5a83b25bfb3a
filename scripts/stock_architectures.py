"""Stock architectures of Hugging Face's `transformers` with random weights: traced, searched, exported, compared.

    python scripts/stock_architectures.py            # the table of docs/transformers.md
    python scripts/stock_architectures.py bert gpt2  # these alone

Each is built from a small configuration and searched on bitfusion within 70 % of the bytes of uniform 8 bit, against
its own float outputs, on random tokens or images. Needs `pip install 'haq[transformers,onnx]'`; downloads nothing.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import haq

SAMPLES = 24
_TEXT = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 3,
}


def tokens() -> dict[str, Tensor]:
    """Ids and a mask that hides the end of every third row."""
    ids = torch.randint(5, 90, (SAMPLES, 8))
    mask = torch.ones_like(ids)
    mask[::3, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(SAMPLES, 3, 16, 16)}


def large_images() -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(SAMPLES, 3, 32, 32)}


Inputs = Callable[[], dict[str, Tensor]]
ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any], Inputs]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT, tokens),
    "roberta": ("RobertaForSequenceClassification", "RobertaConfig", _TEXT, tokens),
    "distilbert": (
        "DistilBertForSequenceClassification",
        "DistilBertConfig",
        {"vocab_size": 99, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "num_labels": 3},
        tokens,
    ),
    "electra": ("ElectraForSequenceClassification", "ElectraConfig", {**_TEXT, "embedding_size": 16}, tokens),
    "albert": ("AlbertForSequenceClassification", "AlbertConfig", {**_TEXT, "embedding_size": 16}, tokens),
    "deberta": ("DebertaV2ForSequenceClassification", "DebertaV2Config", _TEXT, tokens),
    "mobilebert": (
        "MobileBertForSequenceClassification",
        "MobileBertConfig",
        {**_TEXT, "embedding_size": 32, "intra_bottleneck_size": 32, "num_feedforward_networks": 2},
        tokens,
    ),
    "mpnet": ("MPNetForSequenceClassification", "MPNetConfig", _TEXT, tokens),
    "bert_masked": ("BertForMaskedLM", "BertConfig", _TEXT, tokens),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": 99,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 40,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        tokens,
    ),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT, tokens),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        {**_TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32},
        tokens,
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, tokens),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED, tokens),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_GROUPED, "tie_word_embeddings": True}, tokens),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _GROUPED, tokens),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _GROUPED, tokens),
    "phi": ("PhiForCausalLM", "PhiConfig", _TEXT, tokens),
    "smollm3": ("SmolLM3ForCausalLM", "SmolLM3Config", _GROUPED, tokens),
    "olmo": ("OlmoForCausalLM", "OlmoConfig", _TEXT, tokens),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGE, images),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _IMAGE, images),
    "beit": ("BeitForImageClassification", "BeitConfig", _IMAGE, images),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", _IMAGE, images),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3},
        large_images,
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "num_labels": 3},
        large_images,
    ),
}


def built(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """The model in evaluation mode, and example inputs."""
    import transformers

    cls, config, options, inputs = ARCHITECTURES[name]
    torch.manual_seed(0)
    made: nn.Module = getattr(transformers, cls)(getattr(transformers, config)(**options)).eval()
    return made, inputs()


def row(name: str) -> str:
    """Build, inspect, search, export and compare; one row of the table."""
    from haq.export.onnx.run import OnnxRunner

    model, inputs = built(name)
    found = haq.inspect(model, {key: value[:2] for key, value in inputs.items()})
    with torch.no_grad():
        wide = model(**inputs).logits
    answer = haq.search(
        model,
        train=(inputs, wide),
        device="bitfusion",
        size="70%",
        metric="cosine",
        max_trials=1,
        settings={"cache": {"enabled": False}},
    )
    file = answer.export(Path(tempfile.mkdtemp()) / "model.onnx")
    with torch.no_grad():
        wanted = answer.model(**inputs).logits
    got = OnnxRunner(file.read_bytes())(inputs)
    error = float((got - wanted).norm() / wanted.norm())
    agreement = 100.0 * float((got.argmax(-1) == wanted.argmax(-1)).float().mean())
    share = 100.0 * found.coverage["parameters"]
    return (
        f"| {ARCHITECTURES[name][0]} | {len(found.network.layers)} | {share:.1f} % | {answer.score:.4f} | "
        f"{error:.1e} | {agreement:.1f} % |"
    )


def main(names: list[str]) -> None:
    """Print the table."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    print("| Model | layers | of its parameters | cosine to float | file against model | same largest output |")
    print("|---|---|---|---|---|---|")
    for name in names or ARCHITECTURES:
        try:
            print(row(name), flush=True)
        except Exception as error:
            print(f"| {ARCHITECTURES[name][0]} | fails: {' '.join(str(error).split())[:160]} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
