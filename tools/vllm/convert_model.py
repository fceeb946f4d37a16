#!/usr/bin/env python3
"""A GGUF file to the folder that vLLM loads without a network: weights, configuration, tokenizer.

usage: PYTHON convert_model.py MODEL.gguf FOLDER        FOLDER must not exist yet

Weights become bfloat16; the same file and the same versions of torch and transformers give the same
bytes. Takes about a minute.
"""
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # noqa: E402 (the settings above come first)
from gguf import GGUFReader  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402
from transformers.utils.quantization_config import GgufConfig  # noqa: E402


def main():
    path, folder = sys.argv[1:]
    home, name = os.path.split(os.path.abspath(path))
    fields = GGUFReader(path).fields
    tokenizer = AutoTokenizer.from_pretrained(home, gguf_file=name)
    # Without dequantize the weights stay packed, which vLLM does not read.
    model = AutoModelForCausalLM.from_pretrained(home, gguf_file=name, dtype=torch.bfloat16,
                                                 quantization_config=GgufConfig(dequantize=True))
    if "tokenizer.chat_template" in fields:
        tokenizer.chat_template = fields["tokenizer.chat_template"].contents()
    # The GGUF names the token that ends an answer; the folder must, too.
    end = int(fields["tokenizer.ggml.eos_token_id"].contents())
    model.config.eos_token_id = model.generation_config.eos_token_id = end
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
    scratch = folder + ".part"
    model.save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    text = "Hello, world! It's 2024."
    if tokenizer.decode(tokenizer(text).input_ids) != text:
        sys.exit("error: the converted tokenizer does not give a text back")
    os.rename(scratch, folder)


if __name__ == "__main__":
    main()
