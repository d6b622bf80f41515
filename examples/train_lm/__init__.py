"""A decoder of 100 million parameters in the shape of MiniMax-M3, trained on the source code of installed Python packages:

text        files of installed packages, split by file; a byte-level BPE tokenizer; tokens in two flat files
pages       source code rendered to pixels, as patches
facts       lines that are asked for again later
sequences   what a step reads: text, pages in front of the text that they show, facts and questions
model       the decoder: dense and sparse layers of openmsa.torch
settings    sizes, and the arms: dense twin, MSA from scratch, the dense checkpoint converted, ablations
training    steps, checkpoints, resuming
evaluation  held-out loss by kind of token, KL, recall, retrieval
selections  topk_indices of a trained model: recorded, counted, drawn
report      curves and table
command     the command line
"""
