"""Write a base model of the Llama-3.2-1B shape with random weights: speed and memory do not depend on their values.

usage: make_model.py OUT [TOKENIZER_DIR] [--untied] [--shard-size 5GB] [--tiny]

The tokenizer of TOKENIZER_DIR, or of the built-in model, is taken as it is; its vocabulary is smaller than the model's 128,256
rows, which is allowed.
"""

import argparse

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from app.jobs.spec import BUILT_IN_MODEL
from app.settings import Settings
from worker.data.base_models import fetch

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out")
parser.add_argument("tokenizer", nargs="?")
parser.add_argument("--untied", action="store_true", help="an output head of its own")
parser.add_argument("--shard-size", default="5GB")
parser.add_argument("--tiny", action="store_true", help="two narrow layers: for a trial of a benchmark without a GPU")
arguments = parser.parse_args()

if arguments.tokenizer is None:
    place = {"cache_dir": Settings().cache_dir.expanduser(), "models_dir": None}
    arguments.tokenizer = fetch(BUILT_IN_MODEL, None, **place, report=lambda kind, **data: None).path
tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
config = LlamaConfig(
    vocab_size=128256,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=16,
    num_attention_heads=32,
    num_key_value_heads=8,
    head_dim=64,
    max_position_embeddings=131072,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=not arguments.untied,
    bos_token_id=tokenizer.bos_token_id,
    eos_token_id=tokenizer.eos_token_id,
)
if arguments.tiny:
    config.update({"vocab_size": len(tokenizer), "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2})
    config.update({"num_attention_heads": 2, "num_key_value_heads": 2})
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
    model = LlamaForCausalLM(config)
model.save_pretrained(arguments.out, max_shard_size=arguments.shard_size)
tokenizer.save_pretrained(arguments.out)
