# %% [markdown] lang="en"
# # Module 7. Trainings: watch, compare, stop, resume
#
# A training is an experiment: it must be seen, compared with others, and survive a crash. You will
#
# 1. train a small model from the command line and read its curves from TensorBoard's files,
# 2. compare AdamW with SGD, and write a step of AdamW yourself,
# 3. kill a run and resume it, to the same weights,
# 4. record a run with Weights & Biases, without a network,
# 5. search a learning rate by hand, and measure self-conditioning.
#
# The models are tiny, so that all of it takes about four minutes on two CPU cores: look at the curves, not at the texts.

# %% [markdown] lang="ru"
# # Модуль 7. Обучение: наблюдать, сравнивать, останавливать, возобновлять
#
# Обучение — это эксперимент: его нужно видеть, сравнивать с другими, и он должен переживать сбои. Вы
#
# 1. обучите маленькую модель из командной строки и прочитаете её кривые из файлов TensorBoard,
# 2. сравните AdamW с SGD и сами напишете шаг AdamW,
# 3. убьёте обучение и возобновите его — с теми же весами в конце,
# 4. запишете обучение в Weights & Biases без сети,
# 5. подберёте вручную скорость обучения и измерите self-conditioning.
#
# Модели крошечные, чтобы всё заняло около четырёх минут на двух ядрах процессора: смотрите на кривые, а не на тексты.

# %%
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

RUNS = Path(tempfile.mkdtemp())
TINY = (
    "--dataset chitchat --max_train_samples 4000 --vocab_size 1024 --length 32 --hidden_size 64 --num_layers 2 "
    "--train_batch_size 16 --validation_rows 100 --lr_warmup_steps 20 --num_cpu_threads 1 "
    "--ema_decay 0.98 --num_samples 2"
)


def command(recipe, name, options):
    """The words of a training, as in a terminal: text-diffusers train RECIPE --output_dir ..."""
    words = f"-m text_diffusers.cli train {recipe} --output_dir {RUNS / name} {TINY} {options}"
    return [sys.executable, *shlex.split(words)]


def train(recipe, name, options="", **environment):
    """Train, and return the metrics of the run."""
    done = subprocess.run(
        command(recipe, name, options),
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((RUNS / name / "metrics.json").read_text())


# %% [markdown] lang="en"
# ## A run and its curves
#
# In a terminal this is `text-diffusers train d3pm --dataset chitchat --output_dir runs/adamw ...`, or
# `accelerate launch training_scripts/train_d3pm.py ...` in a clone of the repository; `tensorboard --logdir runs` shows it
# while it goes on. Here the same files are read with pandas.

# %% [markdown] lang="ru"
# ## Обучение и его кривые
#
# В терминале это `text-diffusers train d3pm --dataset chitchat --output_dir runs/adamw ...` или
# `accelerate launch training_scripts/train_d3pm.py ...` в клоне репозитория; `tensorboard --logdir runs` показывает всё
# по ходу дела. Здесь те же файлы читаются через pandas.

# %%
STEPS = "--max_train_steps 400 --validation_steps 100 --learning_rate 3e-3"
metrics = train("d3pm", "adamw", STEPS)
print(sorted(path.name for path in (RUNS / "adamw").iterdir()))
print({name: metrics[name] for name in list(metrics)[:4]})


# %%
def curves(name):
    """{tag: table of step and value} of a run."""
    file = next((RUNS / name).rglob("events.out.tfevents*"))
    events = EventAccumulator(str(file.parent)).Reload()
    return {tag: pd.DataFrame(events.Scalars(tag)) for tag in events.Tags()["scalars"]}


adamw = curves("adamw")
print(sorted(adamw))

# %% [markdown] lang="en"
# ## AdamW against SGD
#
# The same model with SGD and Nesterov's momentum, which wants a higher rate: here 0.1, 33 times the 0.003 of AdamW. Neither is
# searched here, so the curves compare two runs and not two optimizers at their best.

# %% [markdown] lang="ru"
# ## AdamW против SGD
#
# Та же модель с SGD и импульсом Нестерова; скорость обучения ему нужна выше, здесь это 0,1 — в 33 раза больше, чем 0,003 у
# AdamW. Ни ту, ни другую здесь не подбирали, так что кривые сравнивают два запуска, а не лучшее, на что способны оптимизаторы.

# %%
train("d3pm", "sgd", f"{STEPS} --optimizer sgd --learning_rate 0.1")
tags = ["training/loss", "training/learning_rate", "validation/bound"]
figure, axes = plt.subplots(1, 3, figsize=(12, 3.2))
for name in ("adamw", "sgd"):
    found = curves(name)
    for axis, tag in zip(axes, tags, strict=True):
        axis.plot(found[tag].step, found[tag].value, "o-" if "bound" in tag else "-", label=name)
        axis.set(title=tag, xlabel="step")
axes[1].set(yscale="log")
axes[0].legend()
figure.tight_layout()
plt.show()

# %% [markdown] lang="en"
# **Exercise 1.** Write a step of AdamW. `adamw_step(weight, gradient, state, rate)` returns the new weight; `state` is a
# dictionary that begins as `{"step": 0, "first": 0.0, "second": 0.0}` and that you bring up to date. With
# $\beta_1 = 0.9$, $\beta_2 = 0.999$, $\epsilon = 10^{-8}$, and a decay of 0.01:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
# w \leftarrow w (1 - 0.01\,\eta) - \eta\, \frac{m / (1-\beta_1^k)}{\sqrt{v / (1-\beta_2^k)} + \epsilon}$$
#
# The check runs PyTorch's beside it.

# %% [markdown] lang="ru"
# **Упражнение 1.** Напишите шаг AdamW. `adamw_step(weight, gradient, state, rate)` возвращает новый вес; `state` — словарь,
# который сначала равен `{"step": 0, "first": 0.0, "second": 0.0}` и который вы обновляете. При $\beta_1 = 0.9$,
# $\beta_2 = 0.999$, $\epsilon = 10^{-8}$ и затухании 0.01:
#
# $$m \leftarrow \beta_1 m + (1-\beta_1) g, \quad v \leftarrow \beta_2 v + (1-\beta_2) g^2, \quad
# w \leftarrow w (1 - 0.01\,\eta) - \eta\, \frac{m / (1-\beta_1^k)}{\sqrt{v / (1-\beta_2^k)} + \epsilon}$$
#
# Проверка сравнивает с шагом PyTorch.

# %% tags=["exercise"]
adamw_step = ...  # def adamw_step(weight, gradient, state, rate): ...


# %% tags=["solution"]
def adamw_step(weight, gradient, state, rate):
    state["step"] += 1
    state["first"] = 0.9 * state["first"] + 0.1 * gradient
    state["second"] = 0.999 * state["second"] + 0.001 * gradient**2
    mean = state["first"] / (1 - 0.9 ** state["step"])
    square = state["second"] / (1 - 0.999 ** state["step"])
    return weight * (1 - 0.01 * rate) - rate * mean / (square**0.5 + 1e-8)


# %% tags=["wrong"]
def adamw_step(weight, gradient, state, rate):
    state["first"] = 0.9 * state["first"] + 0.1 * gradient
    state["second"] = 0.999 * state["second"] + 0.001 * gradient**2
    return weight * (1 - 0.01 * rate) - rate * state["first"] / (state["second"] ** 0.5 + 1e-8)


# %% tags=["check"]
def is_adamw(adamw_step):
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    own = weight.detach().clone()
    state = {"step": 0, "first": 0.0, "second": 0.0}
    reference = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.01)
    for step in range(20):
        weight.grad = torch.tensor([step - 5.0, 0.5 * step], dtype=torch.float64)
        own = adamw_step(own, weight.grad.clone(), state, 0.1)
        reference.step()
        assert torch.allclose(own, weight.detach(), atol=1e-10)
    return True


check(adamw_step, is_adamw)

# %% [markdown] lang="en"
# ## Kill it, resume it
#
# A run that is stopped by a signal finishes its step and writes a checkpoint; the same command with
# `--resume_from_checkpoint auto` goes on from there. The weights at the end are those of a run that nobody stopped: order,
# noise and times are functions of the seed and the step.

# %% [markdown] lang="ru"
# ## Убить и возобновить
#
# Обучение, остановленное сигналом, заканчивает шаг и пишет чекпойнт; та же команда с `--resume_from_checkpoint auto`
# продолжает с него. Веса в конце — те же, что у обучения, которое никто не останавливал: порядок, шум и времена — функции
# от seed и номера шага.

# %%
SHORT = "--max_train_steps 120 --validation_steps 0 --report_to none"
train("d3pm", "whole", SHORT)

resumable = f"{SHORT} --checkpointing_steps 20 --resume_from_checkpoint auto"
process = subprocess.Popen(
    command("d3pm", "stopped", resumable), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
)
while not list((RUNS / "stopped").rglob("checkpoints/*/manifest.json")) and process.poll() is None:
    time.sleep(0.02)
process.send_signal(signal.SIGTERM)
print(process.communicate()[0].decode().strip().splitlines()[-1])
print("exit code", process.returncode)

train("d3pm", "stopped", resumable)
weights = [
    load_file(RUNS / name / "denoiser" / "diffusion_pytorch_model.safetensors")
    for name in ("whole", "stopped")
]
print(all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]))

# %% [markdown] lang="en"
# ## Weights & Biases, without a network
#
# `--report_to wandb` records to W&B; with `WANDB_MODE=offline` the run stays in a folder until `wandb sync` sends it. Beside
# curves and options it has an **artifact**, the saved model with its metrics. Its version is only described here: W&B numbers
# it when the run is sent, so that it can be told which model came from which run ([watching](../../docs/training.md#watching)).

# %% [markdown] lang="ru"
# ## Weights & Biases без сети
#
# `--report_to wandb` пишет в W&B; при `WANDB_MODE=offline` всё лежит в папке, пока его не отправит `wandb sync`. Кроме кривых и
# параметров там есть **артефакт** — сохранённая модель с метриками. О версиях здесь только рассказано: номер версии W&B даёт,
# когда обучение отправлено, и тогда видно, какая модель из какого обучения ([за чем следить](../../docs/training.ru.md)).

# %%
try:
    import wandb
except ImportError:
    wandb = None
    print("pip install wandb")

if wandb is not None:
    train(
        "d3pm",
        "recorded",
        "--max_train_steps 30 --validation_steps 15 --report_to wandb",
        WANDB_MODE="offline",
        WANDB_DIR=str(RUNS),
    )
    for path in sorted(RUNS.rglob("offline-run-*/*")):
        print(path.relative_to(RUNS).parts[-1], path.stat().st_size)

# %% [markdown] lang="en"
# ## A search
#
# `training_scripts/sweep.py` searches learning rate, optimizer, width, depth and schedule with Optuna, in as many terminals as
# you like, and prunes what is worse than the median. It does not run here: [its
# page](../../docs/training.md#searching-hyper-parameters) has the command. Below is the idea by hand, with a rate that is drawn
# on a logarithmic scale.
#
# **Exercise 2.** `draw_rate(generator)` returns a learning rate between $10^{-4}$ and $10^{-1}$ whose *logarithm* is uniform:
# as many of them between $10^{-4}$ and $10^{-3}$ as between $10^{-2}$ and $10^{-1}$.

# %% [markdown] lang="ru"
# ## Подбор
#
# `training_scripts/sweep.py` подбирает скорость обучения, оптимизатор, ширину, глубину и расписание с помощью Optuna, хоть в
# нескольких терминалах сразу, и отсекает всё, что хуже медианы. Здесь он не запускается, команда — на [его
# странице](../../docs/training.ru.md). Ниже сама идея вручную: скорость обучения выбирается в логарифмическом масштабе.
#
# **Упражнение 2.** `draw_rate(generator)` возвращает скорость обучения от $10^{-4}$ до $10^{-1}$, *логарифм* которой
# распределён равномерно: между $10^{-4}$ и $10^{-3}$ их столько же, сколько между $10^{-2}$ и $10^{-1}$.

# %% tags=["exercise"]
draw_rate = ...  # def draw_rate(generator): ...


# %% tags=["solution"]
def draw_rate(generator):
    return 10 ** (-4 + 3 * float(torch.rand(1, generator=generator)))


# %% tags=["wrong"]
def draw_rate(generator):
    return 1e-4 + (1e-1 - 1e-4) * float(torch.rand(1, generator=generator))


# %% tags=["check"]
def is_logarithmic(draw_rate):
    generator = torch.Generator().manual_seed(0)
    rates = torch.tensor([draw_rate(generator) for _ in range(3000)])
    decades = rates.log10().floor().int() + 4
    shares = torch.bincount(decades, minlength=3) / len(rates)
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.05)
    return True


check(draw_rate, is_logarithmic)

# %%
generator = torch.Generator().manual_seed(0)
trials = {}
for number in range(5):
    rate = draw_rate(generator)
    options = (
        f"--max_train_steps 120 --validation_steps 0 --report_to none --learning_rate {rate:.2g}"
    )
    trials[rate] = train("d3pm", f"trial-{number}", options)

rates = sorted(trials)
bounds = [trials[rate]["bound"] for rate in rates]
errors = [trials[rate]["standard_error"] for rate in rates]
plt.figure(figsize=(4.5, 3))
plt.errorbar(rates, bounds, errors, marker="o")
plt.xscale("log")
plt.xlabel("learning rate")
plt.ylabel("nats per token")
plt.show()
print(
    pd.DataFrame({"rate": rates, "bound": bounds, "error": errors}).round(4).to_string(index=False)
)

# %% [markdown] lang="en"
# ## Self-conditioning on long rows
#
# A model over word embeddings may be told what it guessed the step before. Here it is measured on rows of 128 tokens, with one
# training each: a difference of less than two standard errors says nothing, and a training of seconds says little.

# %% [markdown] lang="ru"
# ## Self-conditioning на длинных строках
#
# Модели над эмбеддингами слов можно подсказать её же догадку с прошлого шага. Здесь это измерено на строках по 128 токенов, по
# одному обучению на вариант: разница меньше двух стандартных ошибок не значит ничего, а обучение в несколько секунд — немногое.

# %%
for share in (0.0, 0.5):
    found = train(
        "diffusion_lm",
        f"self-{share}",
        f"--length 128 --max_train_steps 150 --validation_steps 0 --report_to none --self_conditioning {share}",
    )
    print(share, {name: round(found[name], 3) for name in ("bound", "standard_error")})

# %% [markdown] lang="en"
# In the kept outputs the bound is higher with self-conditioning, 6.014 against 5.976 nats; the standard error of a bound is
# 0.02, that of the difference of two some 0.028, so nothing is decided.
#
# More: [training](../../docs/training.md), with several devices, checkpoints and sweeps.

# %% [markdown] lang="ru"
# В сохранённых результатах с self-conditioning граница выше: 6,014 против 5,976 ната. Стандартная ошибка границы — 0,02,
# разности двух — около 0,028, так что ничего не решено.
#
# Дальше: [обучение](../../docs/training.ru.md) — несколько устройств, чекпойнты и подбор.
