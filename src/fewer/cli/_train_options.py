"""The options of `fewer train` that belong to one kind of learning."""

from pathlib import Path
from typing import Annotated

import typer

MASKS, DICTIONARIES = "Masks (weights/...), attention/..., activations/...", "Dictionaries (features/...)"
SITE = "What is read: the end of a module's path, 'layers.4' (what it says), 'layers.4.mlp:in' (what it hears); repeat for several."
TO = "What is written, if not what is read: --site layers.4.mlp:in --to layers.4.mlp makes a transcoder."
LATENTS = "How many latents; 8 times the width that is read by default."
PRIOR = "Begin near the masks of this step, such as 'weights/sparse_gpt 2:4': the choice only, weights stay dense."
STEPS = "Steps of AdamW; the paper takes 2000 of 256 windows."

Site = Annotated[list[str] | None, typer.Option(help=SITE, rich_help_panel=DICTIONARIES)]
To = Annotated[list[str] | None, typer.Option(help=TO, rich_help_panel=DICTIONARIES)]
Latents = Annotated[int | None, typer.Option(min=1, help=LATENTS, rich_help_panel=DICTIONARIES)]
Tokens = Annotated[int, typer.Option(min=1, help="Tokens to learn from, 1024 a step.", rich_help_panel=DICTIONARIES)]
TEST = "Windows of unseen text to judge it on; 0: do not."
Test = Annotated[int, typer.Option(min=0, help=TEST, rich_help_panel=DICTIONARIES)]
BOARD = "Write events for TensorBoard in this directory, beside OUT.jsonl."
Board = Annotated[Path | None, typer.Option("--tensorboard", help=BOARD)]
SEEDS = "So many dictionaries that differ in their seed, from one stream; OUT/0, OUT/1, ... are judged together."
Seeds = Annotated[int, typer.Option(min=1, help=SEEDS, rich_help_panel=DICTIONARIES)]
STORE = "Learn from activations on a disk: a directory of `fewer activations`, or rows in a .npy or .safetensors file."
Store = Annotated[Path | None, typer.Option(help=STORE, rich_help_panel=DICTIONARIES)]
SHARE = "What processes under torchrun share: rows of each batch, or latents of a dictionary too large for one."
Share = Annotated[str, typer.Option(help=SHARE, rich_help_panel=DICTIONARIES)]
SKIP = "A linear map beside the latents (with --to)."
Skip = Annotated[bool, typer.Option("--skip", help=SKIP, rich_help_panel=DICTIONARIES)]
LOSS = "What it is to keep: error (what the site says), kl (what the model predicts), ce (the text's own next token)."
Loss = Annotated[str, typer.Option("--loss", help=LOSS, rich_help_panel=DICTIONARIES)]
FROM = "A dictionary of the same kind and size to begin with (with --loss kl or ce)."
From = Annotated[str | None, typer.Option("--from", help=FROM, rich_help_panel=DICTIONARIES)]
BOOST = "A dictionary that stays as it is: what it misses on this text is learnt, and OUT holds both as one."
Boost = Annotated[str | None, typer.Option(help=BOOST, rich_help_panel=DICTIONARIES)]
GROUPS = "Deal out neighbouring --site's to so many groups by likeness; each group has one dictionary, below OUT."
Groups = Annotated[int | None, typer.Option(min=1, help=GROUPS, rich_help_panel=DICTIONARIES)]
ENCODER = "How it reads: features/linear, features/kronecker(m=8, n=8)."
Encoder = Annotated[str, typer.Option(help=ENCODER, rich_help_panel=DICTIONARIES)]
DECODER = "What its atoms may be: features/free, features/archetypal(points=256)."
Decoder = Annotated[str, typer.Option(help=DECODER, rich_help_panel=DICTIONARIES)]
START = "Where its directions begin: features/isotropic, features/subspace."
Start = Annotated[str, typer.Option(help=START, rich_help_panel=DICTIONARIES)]
HIDE = "The share of columns hidden from who speaks, on which the error is measured."
Hide = Annotated[float, typer.Option(min=0, max=0.99, help=HIDE, rich_help_panel=DICTIONARIES)]
WHERE = "Which maps, or attention modules: '*', patterns of names; of maps also roles and groups."
WHOLE = "The model's weights learn too, while it reads so: OUT is a directory with the model."
ACTIVATION = "Put this activation into the model's MLPs before it learns: relu, relu2 (squared), or another word of transformers."
Activation = Annotated[str | None, typer.Option(help=ACTIVATION, rich_help_panel=MASKS)]
Whole = Annotated[bool, typer.Option("--whole", help=WHOLE, rich_help_panel=MASKS)]
Where = Annotated[str, typer.Option(help=WHERE, rich_help_panel=MASKS)]
Prior = Annotated[str | None, typer.Option(help=PRIOR, rich_help_panel=MASKS)]
Steps = Annotated[int, typer.Option(min=1, help=STEPS, rich_help_panel=MASKS)]
Batch = Annotated[int, typer.Option(min=1, help="Windows in a batch.", rich_help_panel=MASKS)]
Accumulate = Annotated[int, typer.Option(min=1, help="Batches in a step.", rich_help_panel=MASKS)]
Windows = Annotated[int, typer.Option(min=1, help="Different windows of text to learn from.", rich_help_panel=MASKS)]
