"""From a trained adapter to the files that a user downloads.

The adapter comes from the stage `train`, the folder of the merged model from `merge`. The stage `convert` makes what llama.cpp
reads, straight from the base model and the adapter: `sources` reads and merges, `outlines` asks llama.cpp's converter what
belongs into the file, `gguf_writing` writes it with the types that `mixtures` chooses.
"""
