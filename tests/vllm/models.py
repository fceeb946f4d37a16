"""Makes the small models of these tests; runs in vLLM's own environment, before the engines do.

In its folder there is one folder for each: `llama` (two layers of full attention), `other` (the
same shape, other weights), `hybrid` (full and sliding-window layers, so that vLLM makes several KV
groups) and `adapters/a`, `adapters/b`, `adapters/again` (LoRA for `llama`; `again` has the bytes of
`a` under another name). Weights are random with fixed seeds, drawn so wide that a greedy answer
depends on every token of its prompt; there is no tokenizer.
"""
import json
import os

import torch
from safetensors.torch import save_file
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

VOCABULARY = 512
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 128, "intermediate_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 4096, "initializer_range": 0.2, "tie_word_embeddings": False,
    # No token ends an answer: answers are as long as they were asked to be.
    "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None,
}
WINDOW_TOKENS = 96


def llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, **SHAPE)).to(torch.bfloat16)


def hybrid(seed: int) -> Gemma3ForCausalLM:
    torch.manual_seed(seed)
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(num_hidden_layers=len(kinds), layer_types=kinds,
                              sliding_window=WINDOW_TOKENS, query_pre_attn_scalar=64, **SHAPE)
    return Gemma3ForCausalLM(config).to(torch.bfloat16)


def adapter(folder: str, seed: int) -> None:
    """A LoRA of rank 8 on the query and value projections of both layers, strong enough to tell."""
    os.makedirs(folder)
    torch.manual_seed(seed)
    rank, hidden, tensors = 8, SHAPE["hidden_size"], {}
    for layer in range(2):
        for name, heads in (("q_proj", SHAPE["num_attention_heads"]),
                            ("v_proj", SHAPE["num_key_value_heads"])):
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            tensors[f"{stem}.lora_A.weight"] = torch.randn(rank, hidden) * 0.1
            tensors[f"{stem}.lora_B.weight"] = torch.randn(heads * SHAPE["head_dim"], rank) * 0.1
    save_file(tensors, os.path.join(folder, "adapter_model.safetensors"))
    with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
        json.dump({"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none",
                   "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM",
                   "base_model_name_or_path": "llama"}, file)


def make(folder: str) -> None:
    for name, model in (("llama", llama(1)), ("other", llama(2)), ("hybrid", hybrid(3))):
        model.save_pretrained(os.path.join(folder, name))
    for name, seed in (("a", 11), ("b", 12), ("again", 11)):
        adapter(os.path.join(folder, "adapters", name), seed)
