"""Whether a GGUF file is the model that was trained: its tokens, its chat template, its stop token, and its probabilities.

What it is held against is worked out here anew, from the base model, the adapter and the tokenizer that training used, and not
taken from the exports: a fault in the merge or in the conversion must not be on both sides of the comparison.
"""
