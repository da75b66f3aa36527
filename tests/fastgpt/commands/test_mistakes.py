"""Mistakes that users make, on the installed command: each answered with one line that names the option as typed, the
value and the way out, and exit status 2."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.fastgpt.commands import study_mistakes
from tests.support import command

pytestmark = pytest.mark.needs("tyro", "tiktoken")

TINY = (
    "train --tokenizer shakespeare --n-layers 1 --n-heads 2 --d-model 16 --max-len 16 --batch-size 2 --steps 1 "
    "--eval-batches 1 --no-tensorboard --device cpu --no-progress"
)
LONG = study_mistakes.LONG

FILES = {
    "a.txt": "Now is the winter of our discontent. " * 40,
    "empty.txt": "",
    "malformed.toml": "steps = [\n",
    "unknown.toml": "[train]\nstepz = 3\n",
    "flat.toml": "lr = 0.1\n",
    "type.toml": '[train]\nsteps = "many"\n',
    "nan.toml": "[train]\nlr = nan\n",
    "bool.toml": "[train]\ntensorboard = 3\n",
    "table.toml": "train = 3\n",
    "list.json": "[1]",
    "cut.json": '{"train": ',
    "null.json": '{"train": {"steps": null}}',
    "mixed.json": '{"data": [3]}',
    "empty.json": "",
    "twice.json": '{"train": {"steps": 1}, "train": {"steps": 2}}',
    "twice.yaml": "train:\n  steps: 1\n  steps: 2\n",
    "twice.toml": "[train]\nbatch_size = 1\nbatch-size = 2\n",
    "other.toml": 'config = "flat.toml"\n',
    "blank.toml": 'tokenizer = ""\n',
    "bom.toml": "\ufeff[train]\nsteps = 0\n",
    "deep.jsonl": "[" * 200_000,
    "a.ini": "steps = 3\n",
}  # made once; no mistake may change them

# the words after `fastgpt`; what the line must contain
MISTAKES = [
    # the command's own name
    ("trian", "unknown command 'trian'; did you mean 'train'?"),
    ("Train", "did you mean 'train'?"),
    ("nosuch", "unknown command 'nosuch'; choose from demo, prepare, train"),
    ("help trian", "did you mean 'train'?"),
    ("--steps 3", "--steps before any command"),
    ("''", "unknown command ''"),
    # options that do not parse
    ("train --stepz 3", "unknown option --stepz; did you mean --steps?"),
    ("train --step 3", "unknown option --step; did you mean --steps?"),
    ("train --train.lr 3", "unknown option --train.lr; did you mean --lr?"),
    ("train --no-steps", "unknown option --no-steps; did you mean"),
    ("train -x", "unknown option -x; fastgpt train --help"),
    ("train --qqqqqq 3", "unknown option --qqqqqq; fastgpt train --help lists them"),
    ("eval {model} --config a.toml", "unknown option --config"),
    ("train --steps", "--steps needs a value, e.g. --steps 1000"),
    ("train --steps --lr 3", "--steps needs a value, e.g. --steps 1000"),
    ("train --name", "--name needs a value, e.g. --name run"),
    ("train --steps abc", "--steps abc must be an integer, e.g. 1000"),
    ("train --steps 1e3", "--steps 1e3 must be an integer; did you mean 1000?"),
    ("train --steps 1.5", "--steps 1.5 must be an integer, e.g. 1000"),
    ("train --steps ''", "--steps '' must be an integer"),
    ("train --lr 3e-4x", "--lr 3e-4x must be a number, e.g. 0.001"),
    ("train --lr 0,001", "--lr 0,001 must be a number"),
    ("train --resume yes", "--resume takes no value; write --resume or --no-resume"),
    ("train --resume=yes", "--resume=yes takes no value; write --resume or --no-resume"),
    ("train --bias=maybe", "--bias maybe must be true or false"),
    ("train a.txt", "unexpected a.txt; did you mean --data a.txt?"),
    ("train --data", "--data needs at least one value, e.g. --data shakespeare"),
    ("inspect {model} hi --layers", "--layers needs at least one value"),
    # export
    ("export {model}", "OUT is missing; write fastgpt export MODEL OUT"),
    ("export nowhere out", "MODEL nowhere: no such file or folder; give a run"),
    ("export {model} out --format gguf", "--format gguf must be fastgpt, hf or nanogpt"),
    ("export {model} a.txt", "OUT a.txt is a file; choose a folder"),
    ("export {model} {model}", "holds files, which stay as they are; name a new folder"),
    ("export {model} a.txt/out", "OUT a.txt/out lies in a file; choose another folder"),
    ("inspect {model} hi --layers x", "--layers x must be an integer"),
    ("inspect --layers one {model} hi", "--layers one must be an integer"),
    ("sample", "MODEL is missing; write fastgpt sample MODEL [PROMPT] [options]"),
    ("eval", "MODEL is missing; write fastgpt eval MODEL [options]"),
    ("inspect", "MODEL is missing"),
    ("prepare", "SOURCES is missing; write fastgpt prepare SOURCES"),
    ("prepare --out tokens", "SOURCES is missing"),
    ("sample {model} To be", "unexpected be; a prompt of several words goes in quotes"),
    ("sample {model} -x", "unknown option -x"),
    # configuration files
    ("train --config", "--config needs a value"),
    ("train --config gone.toml", "--config gone.toml: no such file; give a .toml, .yaml or .json file"),
    ("train --config malformed.toml", "--config malformed.toml: cannot be read as TOML"),
    ("train --config cut.json", "--config cut.json: cannot be read as JSON"),
    (
        "train --config unknown.toml",
        "--config unknown.toml: unknown setting 'train.stepz'; did you mean 'train.steps'?",
    ),
    ("train --config flat.toml", "--config flat.toml: unknown setting 'lr'; did you mean 'train.lr'?"),
    ("train --config type.toml", "--config type.toml: train.steps = many must be an integer"),
    ("train --config nan.toml", "--config nan.toml: train.lr = nan must be a number"),
    ("train --config bool.toml", "--config bool.toml: train.tensorboard = 3 must be true or false"),
    ("train --config table.toml", "--config table.toml: train = 3 must be a table"),
    ("train --config list.json", "--config list.json: holds a list; it must be a table"),
    ("train --config a.ini", "--config a.ini: unknown kind '.ini'"),
    ("train --config folder", "--config folder: a folder"),
    ("train --config ''", "--config '' is empty"),
    # train: numbers
    ("train --steps 0", "--steps 0 must be an integer, at least 1"),
    ("train --steps -1", "--steps -1 must be an integer, at least 1"),
    ("train --batch-size 0", "--batch-size 0 must be an integer, at least 1"),
    ("train --strategy zero", "--strategy zero must be one of auto, ddp, fsdp, hsdp"),
    ("train --shard-ranks 2", "--shard-ranks 2 is for strategy hsdp, this is auto; leave it out"),
    ("train --timeout 0", "--timeout 0 must be an integer, at least 1 and at most 604800"),
    ("train --batch-size 4 --global-batch-size 6", "--global-batch-size 6 must be a multiple of batch_size 4, 4; "),
    ("train --batch_size 0", "--batch_size 0 must be an integer, at least 1"),
    ("train --batch-size=0", "--batch-size 0 must be an integer, at least 1"),
    ("train --context-parallel 0", "--context-parallel 0 must be an integer, at least 1"),
    (
        "train --context-parallel 2",
        "--context-parallel 2 must divide the ranks, and there is 1 rank: 1 would do, or torchrun",
    ),
    ("train --grad-accum 0", "--grad-accum 0 must be an integer, at least 1"),
    ("train --keep 0", "--keep 0 must be an integer, at least 1"),
    ("train --seq-len 0", "--seq-len 0 must be an integer, at least 1"),
    ("train --seq-len -5", "--seq-len -5 must be an integer, at least 1"),
    ("train --eval-batches 0", "--eval-batches 0 must be an integer, at least 1"),
    ("train --eval-every -1", "--eval-every -1 must be an integer, at least 0"),
    ("train --save-every -1", "--save-every -1 must be an integer, at least 0"),
    ("train --log-every -1", "--log-every -1 must be an integer"),
    ("train --threads 0", "--threads 0 must be an integer, at least 1"),
    ("train --seed -1", "--seed -1 must be an integer, at least 0"),
    ("train --seed 99999999999999999999", "--seed 99999999999999999999 must be an integer"),
    ("train --lr nan", "--lr nan must be a number"),
    ("train --spike -1", "--spike -1 must be a number, at least 0"),
    ("train --lr NaN", "--lr NaN must be a number"),
    ("train --lr inf", "--lr inf must be a number"),
    ("train --lr -1", "--lr -1 must be a number"),
    ("train --lr=-1", "--lr -1 must be a number"),
    ("train --beta1 1", "--beta1 1 must be a number, at least 0"),
    ("train --beta2 1", "--beta2 1 must be a number, at least 0"),
    ("train --beta1 -0.1", "--beta1 -0.1 must be a number, at least 0"),
    ("train --weight-decay -1", "--weight-decay -1 must be a number"),
    ("train --grad-clip -1", "--grad-clip -1 must be a number"),
    ("train --grad-clip nan", "--grad-clip nan must be a number"),
    ("train --warmup-fraction 2", "--warmup-fraction 2 must be a number"),
    ("train --final-lr-fraction -1", "--final-lr-fraction -1 must be a number"),
    ("train --val-fraction 2 --data a.txt", "--val-fraction 2 must be a number"),
    ("train --val-fraction 0 --data a.txt", "--val-fraction 0 must be a number"),
    ("train --val-fraction nan --data a.txt", "--val-fraction nan must be a number"),
    ("train --n-layers 0", "--n-layers 0 must be"),
    ("train --n-heads 0", "--n-heads 0 must be"),
    ("train --n-heads 3 --d-model 16", "--n-heads 3"),
    ("train --n-kv-heads 3", "--n-kv-heads 3"),
    ("train --d-model -8", "--d-model -8 must be"),
    ("train --d-ff 0", "--d-ff 0 must be"),
    ("train --max-len 0", "--max-len 0 must be"),
    ("train --vocab-size 10", "--vocab-size 10"),
    ("train --dropout 1.5", "--dropout 1.5 must be"),
    ("train --dropout nan", "--dropout nan must be"),
    (f"{TINY} --seq-len 17", "--seq-len 17"),
    # train: names
    ("train --device gpu", "--device gpu must be"),
    ("train --device ''", "--device ''"),
    ("train --device cuda:99", "--device cuda:99"),
    ("train --dtype float64", "--dtype float64 must be one of"),
    ("train --remat all", "--remat all must be one of none, selective, full"),
    (
        "train --preset one-head --tokenizer shakespeare --d-model 16 --max-len 16 --remat full --device cpu",
        '--remat full must be "none": a OneHeadLM has no blocks of a GPT',
    ),
    ("train --dtype bf16", "--dtype bf16 must be one of"),
    ("train --gelu relu", "--gelu relu must be one of"),
    ("train --attn-impl magic", "--attn-impl magic must be one of"),
    ("train --attn-impl tritn", "did you mean 'triton'?"),
    ("train --loss-impl sdpa", "--loss-impl sdpa must be one of"),
    ("train --preset gpt5", "--preset gpt5"),
    ("train --preset gpt2-mediun", "did you mean 'gpt2-medium'?"),
    ("train --tokenizer gpt9", "--tokenizer gpt9"),
    ("train --tokenizer shakespear", "did you mean 'shakespeare'?"),
    ("train --tokenizer gone.tiktoken", "--tokenizer gone.tiktoken"),
    ("train --tokenizer folder", "--tokenizer folder"),
    ("train --tokenizer ''", "--tokenizer '' is empty"),
    ("train --name ''", "--name '' is empty"),
    ("train --name a/b", "--name a/b must be"),
    ("train --name ..", "--name .. must be"),
    ("train --name 'a\nb'", r"--name 'a\nb' must be a name that can be printed"),
    ("train --name '\x1b[31m'", r"--name '\x1b[31m' must be a name that can be printed"),
    ("train --name ' '", "--name ' ' must be a name that can be printed"),
    # train: paths
    (f"{TINY} --name {LONG}", "--name xxxx"),
    (f"{TINY} --runs-dir {LONG}", "--runs-dir xxxx"),
    (f"{TINY} --runs-dir a.txt", "--runs-dir a.txt"),
    (f"{TINY} --runs-dir /proc/nosuch", "--runs-dir /proc/nosuch"),
    (f"{TINY} --runs-dir ''", "--runs-dir '' is empty"),
    (f"{TINY} --data gone.txt", "--data gone.txt"),
    (f"{TINY} --data ''", "--data '' is empty"),
    (f"{TINY} --data empty.txt", "empty.txt"),
    (f"{TINY} --data folder", "folder"),
    (f"{TINY} --data 'a\nb'", r"--data a\nb: no such file"),
    (f"{TINY} --data '\x1b[31m'", r"--data \x1b[31m: no such file"),
    (f"{TINY} --runs-dir 'a\nb' --resume", r"error: a\nb/run/settings.json: no such file"),
    (f"{TINY} --data {LONG}", "--data xxxx"),
    (f"{TINY} --val-data gone.txt", "--val-data gone.txt"),
    (f"{TINY} --init-from nowhere", "--init-from nowhere"),
    (f"{TINY} --init-from a.txt", "--init-from a.txt"),
    (f"{TINY} --resume --name nosuch", "nosuch"),
    (f"{TINY} --resume --overwrite", "--overwrite"),
    # sample
    ("sample nowhere", "nowhere"),
    ("sample a.txt hi", "a.txt"),
    ("sample folder hi", "folder"),
    ("sample 'a  \u202e' hi", r"MODEL a  \u202e: no such file"),
    (f"sample {LONG}", "MODEL xxxx"),
    ("sample '' hi", "MODEL '' is empty"),
    ("sample {model} hi --top-k 99999999", "--top-k 99999999"),
    ("sample {model} hi --top-k 0", "--top-k 0 must be an integer, at least 1"),
    ("sample {model} hi --top-p 0", "--top-p 0 must be"),
    ("sample {model} hi --top-p 1.5", "--top-p 1.5 must be"),
    ("sample {model} hi --top-p nan", "--top-p nan must be"),
    ("sample {model} hi --temperature -1", "--temperature -1 must be"),
    ("sample {model} hi --temperature nan", "--temperature nan must be"),
    ("sample {model} hi --max-new-tokens -1", "--max-new-tokens -1 must be"),
    ("sample {model} hi --device gpu", "--device gpu must be"),
    ("sample {model} hi --tokenizer gpt2", "--tokenizer gpt2"),
    ("sample {model} hi --tokenizer gpt9", "--tokenizer gpt9"),
    # eval
    ("eval nowhere", "nowhere"),
    ("eval {model} --batch-size 0", "--batch-size 0 must be an integer, at least 1"),
    ("eval {model} --max-batches 0", "--max-batches 0 must be an integer, at least 1"),
    ("eval {model} --seq-len 0", "--seq-len 0 must be an integer, at least 1"),
    ("eval {model} --seq-len 17", "--seq-len 17"),
    ("eval {model} --data gone.txt", "--data gone.txt"),
    ("eval {model} --data empty.txt", "empty.txt"),
    ("eval {model} --dtype float64", "--dtype float64 must be one of"),
    ("eval {model} --device gpu", "--device gpu must be"),
    ("eval {model} --tokenizer gpt9", "--tokenizer gpt9"),
    # show ladder
    ("show ladder --seq-len 0 --device cpu", "--seq-len 0 must be an integer, at least 1 and at most 1024"),
    ("show ladder --seq-len 99999 --device cpu", "--seq-len 99999 must be"),
    ("show ladder --head-dim 48", "--head-dim 48 must be one of 16, 32, 64, 128"),
    ("show ladder --heads 0", "--heads 0 must be"),
    ("show ladder --dtype fp8", "--dtype fp8 must be"),
    ("show ladder --device gpu", "--device gpu must be"),
    ("show ladder --seed -1", "--seed -1 must be"),
    ("show ladder --code naiv", "--code naiv must be"),
    ("show ladder --page ''", "--page '' is empty"),
    ("show ladder --page .", "--page . is a folder; name a file in it"),
    ("show ladder --page folder", "--page folder is a folder; name a file in it"),
    ("show ladder --page a.txt", "--page a.txt is a file that `fastgpt show ladder` did not write"),
    ("show ladder --page a.txt/x.html", "--page a.txt/x.html cannot be written: a.txt is a file; choose a folder"),
    ("show ladder --page /proc/nosuch/x.html", "--page /proc/nosuch/x.html"),
    (f"show ladder --page {LONG}", "--page xxxx"),
    # inspect
    ("inspect nowhere hi", "nowhere"),
    ("inspect {model} ''", "PROMPT"),
    ("inspect {model} hi --layers 7", "--layers 7"),
    ("inspect {model} hi --heads 7", "--heads 7"),
    ("inspect {model} hi --heads -9", "--heads -9"),
    ("inspect {model} hi --scale root", "--scale root must be one of linear, sqrt, log"),
    ("inspect {model} hi --out a.txt", "--out a.txt"),
    ("inspect {model} hi --out /proc/nosuch", "--out /proc/nosuch"),
    (f"inspect {{model}} hi --out {LONG}", "--out xxxx"),
    ("inspect {model} hi --out ''", "--out '' is empty"),
    # report
    ("report", "RUN is missing; write fastgpt report RUN"),
    ("report gone", "gone: no such run; give runs/<name>"),
    ("report a.txt", "a.txt: a file, no run's folder"),
    ("report folder", "folder: not a run: it has no metrics.jsonl"),
    ("report ''", "RUN '' "),
    (f"report {LONG}", "xxxx"),
    ("report gone --out a.txt", "--out a.txt is a file that `fastgpt report` did not write; choose another name"),
    ("report gone --out folder", "--out folder is a folder; choose another name"),
    ("report gone --out ''", "--out '' is empty; give a value"),
    ("report gone --out a.txt/page.html", "--out a.txt"),
    ("report runs", "runs: a folder of runs; give one of them: tiny"),
    ("report runs/tiny runs/../runs/tiny", "runs/tiny: given twice"),
    # prepare
    ("prepare gone.txt", "gone.txt"),
    ("prepare a.txt gone.txt", "gone.txt"),
    ("prepare empty.txt", "empty.txt"),
    ("prepare folder", "folder"),
    ("prepare ''", "SOURCES '' is empty"),
    (f"prepare {LONG}", "xxxx"),
    ("prepare a.txt --shard-tokens 0", "--shard-tokens 0 must be an integer, at least 1"),
    ("prepare a.txt --shard-tokens -1", "--shard-tokens -1 must be an integer, at least 1"),
    ("prepare a.txt --threads 0", "--threads 0 must be an integer, at least 1"),
    ("prepare a.txt --tokenizer gpt9", "--tokenizer gpt9"),
    ("prepare a.txt --out a.txt --tokenizer shakespeare", "--out a.txt"),
    ("prepare a.txt --out /proc/nosuch --tokenizer shakespeare", "--out /proc/nosuch"),
    (f"prepare a.txt --out {LONG} --tokenizer shakespeare", "--out xxxx"),
    ("prepare a.txt --out '' --tokenizer shakespeare", "--out '' is empty"),
    ("prepare a.txt --out . --overwrite --tokenizer shakespeare", "--out ."),
    # plan and bench
    ("plan nosuch", "nosuch"),
    ("plan gpt2-mediun", "did you mean 'gpt2-medium'?"),
    ("plan folder", "MODEL folder"),
    ("plan --batch-size 0", "--batch-size 0 must be an integer, at least 1"),
    ("plan --seq-len 0", "--seq-len 0 must be an integer, at least 1"),
    ("plan --seq-len 99999999", "--seq-len 99999999"),
    ("plan --remat blocks", "--remat blocks must be one of none, selective, full"),
    ("plan --dtype float64", "--dtype float64 must be one of"),
    ("plan --gpu h2000", "--gpu h2000 must be"),
    ("plan --gpu 0", "--gpu 0 must be"),
    ("plan --gpu nan", "--gpu nan must be"),
    ("plan --gpu inf", "--gpu inf must be"),
    ("plan --gpu ''", "--gpu '' is empty"),
    ("bench nosuch", "nosuch"),
    ("bench --steps 0", "--steps 0 must be an integer, at least 1"),
    ("bench --batch-size 0", "--batch-size 0 must be an integer, at least 1"),
    ("bench --seq-len 0", "--seq-len 0 must be an integer, at least 1"),
    ("bench --device gpu", "--device gpu must be"),
    # study cost
    ("study cots", "unknown command 'cots'"),
    ("study cost --layers 0 2", "--layers 0 must be an integer, at least 1"),
    ("study cost --layers 2 2", "--layers 2 2 names a number twice"),
    ("study cost --layers 2 1001", "--layers 1001 must be an integer, at least 1 and at most 1000 to be counted"),
    ("study cost --layers 2 --seq-lens 8 --widths 64", "--layers 2 is one number, and so are seq_lens and widths"),
    ("study cost --seq-lens", "--seq-lens needs at least one value"),
    ("study cost --widths 64 x", "--widths x must be an integer"),
    ("study cost --base 2 128", "--base 2 128 must be three numbers: layers, tokens per sequence and width"),
    ("study cost --heads 7", "--heads 7 must divide each width, 512 too; choose from"),
    ("study cost --batch-size 0", "--batch-size 0 must be an integer, at least 1"),
    ("study cost --vocab-size 0", "--vocab-size 0 must be an integer, at least 1"),
    ("study cost --dtype bf16", "--dtype bf16 must be one of"),
    ("study cost --gpu h2000", "--gpu h2000 must be"),
    ("study cost --margin 80", "--margin 80 must be a number, at least 0 and below 79"),
    ("study cost --time-limit 0", "--time-limit 0 must be a number, above 0"),
    ("study cost --device gpu", "--device gpu must be"),
    ("study cost --out a.txt", "--out a.txt is a file that `fastgpt study cost` did not write; choose another"),
    ("study cost --page a.txt", "--page a.txt is a file that `fastgpt study cost` did not write; choose another"),
    ("study cost --out folder", "--out folder is a folder; name a file in it"),
    ("study cost --out a.txt/b.json", "--out a.txt/b.json cannot be written"),
    ("study cost --out /proc/nosuch/a.json", "--out /proc/nosuch/a.json cannot be written: "),
    ("study cost --out ''", "--out '' is empty"),
    (f"study cost --out {LONG}", "--out xxxx"),
    ("study cost --out new.html --page new.html", "--page new.html is the file of --out too"),
    # verify and demo
    ("verify --only nosuch", "--only nosuch"),
    ("verify --only flash_atention", "did you mean 'flash_attention'?"),
    ("verify --device gpu", "--device gpu must be"),
    ("demo --seconds -1", "--seconds -1 must be"),
    ("demo --seconds nan", "--seconds nan must be"),
    ("demo --steps 0", "--steps 0 must be an integer, at least 1"),
    ("demo --max-steps 0", "--max-steps 0 must be an integer, at least 1"),
    ("demo --sample-tokens -1", "--sample-tokens -1 must be"),
    ("demo --seed -1", "--seed -1 must be an integer, at least 0"),
    ("demo --device gpu", "--device gpu must be"),
    ("demo --runs-dir a.txt", "--runs-dir a.txt"),
    ("demo --runs-dir /proc/nosuch", "--runs-dir /proc/nosuch"),
    ("train --lr=", "--lr '' must be a number"),
    ("train --data a.txt --data", "--data needs at least one value"),
    ("train --progress false", "--progress takes no value"),
    ("bench --compile yes", "--compile takes no value; write --compile or --no-compile"),
    ("train --lr3", "unknown option --lr3; did you mean --lr?"),
    ("train -lr 3", "unknown option -lr; did you mean --lr?"),
    ("train --config null.json", "--config null.json: train.steps = null must be an integer"),
    ("train --config mixed.json", "--config mixed.json: data = 3 must be a text"),
    ("train --config empty.json", "--config empty.json: cannot be read as JSON"),
    ("train --batch-size 99999999999", "--batch-size 99999999999 must be an integer, at least 1 and at most"),
    ("train --threads 1000000", "--threads 1000000 must be an integer, at least 1 and at most"),
    ("train --grad-clip inf", "--grad-clip inf must be a number"),
    ("train --lr 1e400", "--lr 1e400 must be a number"),
    *(
        (f"{TINY} {option} 2000000000", f"{option} 2000000000 makes")
        for option in ("--d-model", "--n-layers", "--d-ff", "--vocab-size", "--max-len")
    ),
    (
        "train --n-layers 100000000 --device cpu",
        "moments take 1.1 PiB, and this process can have",
    ),
    ("train --preset one-head --d-model 100000000", "--d-model 100000000 makes"),
    (f"{TINY} --preset gpt2-xl --n-layers 99999999", "--n-layers 99999999 makes"),
    (f"{TINY} --n-heads 50000 --n-layers 50000 --d-model 50000", "; lower it, and the model's other sizes"),
    ("train --batch-size 1000000 --device cpu", "--batch-size 1000000 is too large: the weights, and what the"),
    *(
        (f"{TINY} {option} 1{'0' * 100}", f"{option} 1{'0' * 100} must be an integer, at least 1 and at most 9223")
        for option in ("--steps", "--grad-accum", "--keep")
    ),
    (f"{TINY} --grad-accum 1000000000000", "--grad-accum 1000000000000 is too large: the tokens of an update"),
    ("train --preset one-head --max-len 1000000 --device cpu", "--seq-len 1000000 is too large"),
    ("train --init-from huge --device cpu", "--init-from huge has n_layers 100000000, which makes"),
    *(
        (words, "huge: the weights do not fit the config: 16 tensors cannot be n_layers=100000000 layers")
        for words in ("sample huge hi", "eval huge", "inspect huge hi")
    ),
    ("plan huge", "MODEL huge has n_layers 100000000, which must be an integer, at least 1 and at most 1000 to be"),
    ("plan wide", "MODEL wide has d_model 2000000000, which makes"),
    ("bench wide --device cpu", "MODEL wide has d_model 2000000000, which makes"),
    ("bench --batch-size 1000000 --device cpu", "--batch-size 1000000 is too large"),
    (f"{TINY} --data /dev/null", "--data /dev/null: the file is empty"),
    (f"{TINY} --resume-from nowhere", "--resume-from nowhere is no checkpoint of a run, so nothing to resume"),
    (f"{TINY} --name tiny", "runs/tiny holds a run of 1 steps; go on with --resume, start over with --overwrite"),
    (f"{TINY} --init-from {{model}} --n-layers 5", "--n-layers 5 is not what the model in runs/tiny"),
    (f"{TINY} --init-from {{model}} --tokenizer gpt2", "--tokenizer gpt2 is another tokenizer"),
    (f"{TINY} --resume --name tiny --d-model 32", "--d-model 32 is not what the model in runs/tiny/checkpoints"),
    (f"{TINY} --resume-from runs/tiny/checkpoints/step-00000009", "step-00000009: not a training checkpoint"),
    ("prepare a.txt --out folder --tokenizer shakespeare --overwrite --shard-tokens 0", "--shard-tokens 0 must be"),
    ("eval {model} --tokenizer a.txt", "--tokenizer a.txt is no ranks file"),
    ("verify --json=1", "--json=1 takes no value; write --json or --no-json"),
    ("bench depth-2x256x4 --seq-len 99999", "--seq-len 99999 must be an integer, at least 1 and at most 512"),
    ("sample runs", "MODEL runs: a folder of runs; give one of them: runs/tiny"),
    ("sample gpt2 hi", "MODEL gpt2: a preset, which has no weights"),
    ("prepare a.txt --threads 1000000", "--threads 1000000 must be an integer"),
    ("plan --gpu a100", "--gpu a100 is one of several; take a100-80gb or a100-40gb"),
    ("plan a b", "unexpected b; write fastgpt plan [MODEL] [options]"),
    ("demo --seconds inf", "--seconds inf must be a number"),
    ("train --config twice.json", "--config twice.json: cannot be read as JSON: 'train' stands there twice"),
    ("train --config twice.yaml", "--config twice.yaml: cannot be read as YAML: 'steps' stands there twice"),
    ("train --config twice.toml", "--config twice.toml: train.batch_size stands there twice"),
    ("train --config other.toml", "--config other.toml: config = flat.toml: one file names no other"),
    ("train --config blank.toml", "--config blank.toml: tokenizer = '' is empty"),
    ("train --config bom.toml", "--config bom.toml: train.steps = 0 must be an integer, at least 1"),
    ("prepare .", "SOURCES .: holds runs/tiny, a model's or a run's folder, not data; name the texts alone"),
    ("train --data .", "--data .: holds runs/tiny, a model's or a run's folder, not data"),
    ("prepare deep.jsonl", "SOURCES deep.jsonl: line 1 is not JSON for a text"),
    ("prepare /dev/zero", "SOURCES /dev/zero: no regular file (a pipe, or a device)"),
    ("prepare a.txt --out runs --overwrite --tokenizer shakespeare", "--out runs holds other files"),
    ("plan --batch-size 99999999999999999999", "--batch-size 99999999999999999999 must be an integer, at least 1 and"),
    (
        "bench --device cpu --batch-size 99999999999999999999",
        "--batch-size 99999999999999999999 must be an integer, at",
    ),
    *(
        (f"train {option} 99999999999999999999", f"{option} 99999999999999999999 must be an integer, at least 1 and at")
        for option in ("--d-model", "--max-len", "--vocab-size", "--d-ff", "--n-layers", "--n-heads", "--n-kv-heads")
    ),
    ("train --preset one-head --d-model 99999999999999999999", "--d-model 99999999999999999999 must be an integer"),
    ("plan one-head", "MODEL one-head: a preset of OneHeadLM, which is no GPT"),
    *study_mistakes.MISTAKES,
]

NEVER = (
    "Traceback",
    "Errno",
    "TrainConfig",
    "GPTConfig",
    "DemoConfig",
    "DepthConfig",
    "None",
    "PosixPath",
    "fastgpt.",
    "self.",
    "=True",
)


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "folder").mkdir()
    done = command.run(*shlex.split(TINY), "--name", "tiny", cwd=folder)
    assert done.code == 0, done.err
    newest = next((folder / "runs" / "tiny" / "checkpoints").iterdir())
    config = json.loads((newest / "config.json").read_text())
    for name, sizes in {"huge": {"n_layers": 10**8}, "wide": {"d_model": 2 * 10**9, "d_ff": 8 * 10**9}}.items():
        (folder / name).mkdir()
        for file in ("model.safetensors", "fastgpt_tokenizer.json"):
            shutil.copy(newest / file, folder / name)
        (folder / name / "config.json").write_text(json.dumps(config | sizes))
    return folder


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[words[:60] for words, _ in MISTAKES])
def test_a_mistake_is_one_line(here, words, expected):
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    done = command.run(*shlex.split(words.format(model="runs/tiny")), cwd=here, XDG_CACHE_HOME=str(here / "cache"))
    assert done.code == 2, done.err
    assert done.err.count("\n") == 1, done.err
    first, second = [*words.split(), ""][:2]
    begins = (f"fastgpt {first}: error: ", f"fastgpt {first} {second}: error: ", "fastgpt: error: ")
    assert done.err.startswith(begins), done.err
    assert expected in done.err
    assert not [word for word in NEVER if word in done.err], done.err
    assert done.out == "" or "/proc/" in words  # where only the attempt to write tells
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*") if "cache" not in path.parts} == before


def test_words_that_are_not_utf_8(here):
    process = command.start("sample", b"runs/tiny", b"caf\xe9", cwd=here)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert err.startswith("fastgpt sample: error: PROMPT ")
    assert err.endswith(" is not UTF-8; write it in UTF-8\n")


def test_every_command_is_tried():
    from fastgpt.cli import COMMANDS

    untried = {name for name in COMMANDS if not any(f"{words} ".startswith(f"{name} ") for words, _ in MISTAKES)}
    assert not untried
    assert json.loads(FILES["list.json"]) == [1]
