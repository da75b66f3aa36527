"""The depth study: what the papers claim of 2 to 12 layers, measured again on this machine.

config.py     the grid and the recipe            runs.py      each run by the ordinary Trainer
variants.py   a GPT without LayerNorm            measures.py  what is looked at in a trained model
claims.py     what was claimed, and verdicts     page.py      study.html
study.py      all of it, in a folder
"""
