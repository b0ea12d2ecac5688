"""Write a random Llama of two layers with the built-in model's tokenizer, which llama.cpp's converter knows.

usage: base_model.py OUT
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from app.jobs.spec import BUILT_IN_MODEL
from app.settings import Settings
from worker.data.base_models import fetch

cache = Settings().cache_dir.expanduser()
built_in = fetch(BUILT_IN_MODEL, None, cache_dir=cache, models_dir=None, report=lambda kind, **data: None).path
out = Path(sys.argv[1])
shutil.copytree(built_in, out, ignore=shutil.ignore_patterns("*.safetensors"))
config = LlamaConfig.from_pretrained(built_in)
config.update({"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4})
config.update({"num_key_value_heads": 2, "head_dim": 16})
torch.manual_seed(0)
LlamaForCausalLM(config).bfloat16().save_pretrained(out)
