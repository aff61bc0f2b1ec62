# %% [markdown] lang="en"
# # Module 6. Fast samplers, and fewer numbers to denoise
#
# A thousand calls of a model for one text are too many. There are two ways out: **samplers** that need fewer steps, and
# **latents**, so that a step has less to compute. You will
#
# 1. write a step of DDIM, and see that the first order of DPM-Solver++ is the same,
# 2. compare DDPM, DDIM, DPM-Solver++ and flow matching at 2 to 500 steps, where the truth is known,
# 3. write tokens in 64 and in 8 steps, and in several orders,
# 4. count what a step over latents costs beside a step over tokens; latent diffusion itself is described, not run.
#
# It takes about two minutes on two CPU cores.

# %% [markdown] lang="ru"
# # Модуль 6. Быстрые сэмплеры и меньше чисел для денойзинга
#
# Тысяча вызовов модели на один текст — это слишком много. Выхода два: **сэмплеры**, которым хватает меньшего числа шагов, и
# **латенты**, чтобы на каждом шаге было меньше вычислений. Вы
#
# 1. напишете шаг DDIM и увидите, что DPM-Solver++ первого порядка — это он же,
# 2. сравните DDPM, DDIM, DPM-Solver++ и flow matching при 2–500 шагах там, где истина известна,
# 3. напишете токены за 64 шага и за 8, в разном порядке,
# 4. посчитаете, во что обходится шаг по латентам рядом с шагом по токенам; сама латентная диффузия здесь описана, а не
#    запущена.
#
# Всё вместе занимает около двух минут на двух ядрах процессора.

# %%
import math
import time

import matplotlib.pyplot as plt
import pandas as pd
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
)

from text_diffusers import TextDiffusionPipeline
from text_diffusers.evaluation.distances import maximum_mean_discrepancy
from text_diffusers.evaluation.text_metrics import token_entropy
from text_diffusers.samplers import with_sampler

_ = torch.manual_seed(0)
# %% [markdown] lang="en"
# ## A step of DDIM
#
# DDPM draws fresh noise in each step. DDIM keeps the noise that it finds in $x_t$: from the prediction of the noise,
# $\epsilon$, follows $\hat x_0$, and the step puts both together at the earlier time $s$:
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\,\epsilon}{\sqrt{\bar\alpha_t}}, \qquad
# x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s}\,\epsilon .$$
#
# **Exercise 1.** Write it: `ddim_step(x_t, noise, now, before)`, where `now` is $\bar\alpha_t$ and `before` is $\bar\alpha_s$.
# The check runs diffusers' beside it.

# %% [markdown] lang="ru"
# ## Шаг DDIM
#
# DDPM на каждом шаге добавляет свежий шум. DDIM сохраняет тот шум, который находит в $x_t$: из предсказания шума $\epsilon$
# следует $\hat x_0$, и шаг складывает их заново в более раннее время $s$:
#
# $$\hat x_0 = \frac{x_t - \sqrt{1-\bar\alpha_t}\,\epsilon}{\sqrt{\bar\alpha_t}}, \qquad
# x_s = \sqrt{\bar\alpha_s}\,\hat x_0 + \sqrt{1-\bar\alpha_s}\,\epsilon .$$
#
# **Упражнение 1.** Напишите это: `ddim_step(x_t, noise, now, before)`, где `now` — это $\bar\alpha_t$, а `before` —
# $\bar\alpha_s$. Проверка сравнивает с шагом из diffusers.

# %% tags=["exercise"]
ddim_step = ...  # def ddim_step(x_t, noise, now, before): ...


# %% tags=["solution"]
def ddim_step(x_t, noise, now, before):
    x_0 = (x_t - (1 - now) ** 0.5 * noise) / now**0.5
    return before**0.5 * x_0 + (1 - before) ** 0.5 * noise


# %% tags=["wrong"]
def ddim_step(x_t, noise, now, before):
    x_0 = (x_t - (1 - now) ** 0.5 * noise) / now**0.5
    return before**0.5 * x_0 + (1 - before) ** 0.5 * torch.randn_like(x_t)


# %% tags=["check"]
def is_ddim(ddim_step):
    scheduler = DDIMScheduler(1000, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(50)
    alpha_bars = scheduler.alphas_cumprod
    for t in (981, 501, 21):
        x_t, noise = torch.randn(8, 2), torch.randn(8, 2)
        expected = scheduler.step(noise, t, x_t).prev_sample
        found = ddim_step(x_t, noise, alpha_bars[t], alpha_bars[t - 20])
        assert torch.allclose(found, expected, atol=1e-4)
    return True


check(ddim_step, is_ddim)

# %% [markdown] lang="en"
# **Exercise 2.** DPM-Solver++ of first order is written in half the logarithm of the signal-to-noise ratio,
# $\lambda = \log(\alpha/\sigma)$ with $\alpha = \sqrt{\bar\alpha}$, $\sigma = \sqrt{1-\bar\alpha}$, and $h = \lambda_s - \lambda_t$:
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t - \alpha_s\,(e^{-h} - 1)\,\hat x_0 .$$
#
# Write `dpm_step(x_t, noise, now, before)`. The check compares it with DDIM: they are the same step. What makes DPM-Solver++
# fast is its second order, which looks at two predictions.

# %% [markdown] lang="ru"
# **Упражнение 2.** DPM-Solver++ первого порядка записан через половину логарифма отношения сигнала к шуму,
# $\lambda = \log(\alpha/\sigma)$, где $\alpha = \sqrt{\bar\alpha}$, $\sigma = \sqrt{1-\bar\alpha}$ и $h = \lambda_s - \lambda_t$:
#
# $$x_s = \frac{\sigma_s}{\sigma_t}\,x_t - \alpha_s\,(e^{-h} - 1)\,\hat x_0 .$$
#
# Напишите `dpm_step(x_t, noise, now, before)`. Проверка сравнивает с DDIM: это один и тот же шаг. Быстрым DPM-Solver++ делает
# второй порядок, который смотрит на два предсказания.

# %% tags=["exercise"]
dpm_step = ...  # def dpm_step(x_t, noise, now, before): ...


# %% tags=["solution"]
def dpm_step(x_t, noise, now, before):
    alpha_t, sigma_t = now**0.5, (1 - now) ** 0.5
    alpha_s, sigma_s = before**0.5, (1 - before) ** 0.5
    x_0 = (x_t - sigma_t * noise) / alpha_t
    h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
    return sigma_s / sigma_t * x_t - alpha_s * (math.exp(-h) - 1) * x_0


# %% tags=["wrong"]
def dpm_step(x_t, noise, now, before):
    alpha_t, sigma_t = now**0.5, (1 - now) ** 0.5
    alpha_s, sigma_s = before**0.5, (1 - before) ** 0.5
    h = math.log(alpha_s / sigma_s) - math.log(alpha_t / sigma_t)
    return sigma_s / sigma_t * x_t - alpha_s * (math.exp(h) - 1) * noise


# %% tags=["check"]
def is_ddim_again(dpm_step):
    x_t, noise = torch.randn(8, 2), torch.randn(8, 2)
    for now, before in ((0.1, 0.3), (0.5, 0.9)):
        x_0 = (x_t - (1 - now) ** 0.5 * noise) / now**0.5
        expected = before**0.5 * x_0 + (1 - before) ** 0.5 * noise
        assert torch.allclose(dpm_step(x_t, noise, now, before), expected, atol=1e-5)
    return True


check(dpm_step, is_ddim_again)

# %% [markdown] lang="en"
# ## Steps against quality, where the truth is known
#
# Three clusters in the plane again, with their exact denoiser: whatever is wrong with a sample is the sampler's fault, not
# the model's. Quality is MMD, a distance between two sets of points, here with a kernel as narrow as a cluster, against fresh
# points of the data; the dashed line is what
# two sets of fresh points have.

# %% [markdown] lang="ru"
# ## Шаги и качество там, где истина известна
#
# Снова три кластера на плоскости и их точный денойзер: если с выборкой что-то не так, виноват сэмплер, а не модель. Качество —
# это MMD, расстояние между двумя наборами точек, с ядром шириной в кластер; второй набор — свежие точки данных. Штриховая линия — то, что выходит у двух
# свежих наборов.

# %%
CENTRES = torch.tensor([[0.0, 1.2], [-1.1, -0.7], [1.1, -0.7]])
SPREAD = 0.15
COUNT = 2_000


def draw_points():
    return CENTRES[torch.randint(3, (COUNT,))] + SPREAD * torch.randn(COUNT, 2)


def exact_x_0(x, alpha, sigma):
    """The expected clean points of x = alpha x_0 + sigma noise."""
    variance = alpha**2 * SPREAD**2 + sigma**2
    offsets = x[:, None] - alpha * CENTRES
    weights = (-offsets.square().sum(dim=-1) / (2 * variance)).softmax(dim=-1)
    answers = CENTRES + alpha * SPREAD**2 / variance * offsets
    return (weights[..., None] * answers).sum(dim=1)


def sample(scheduler, num_steps):
    """Points by a scheduler of diffusers and the exact denoiser."""
    scheduler.set_timesteps(num_steps)
    is_flow = isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    x = torch.randn(COUNT, 2)
    for index, t in enumerate(scheduler.timesteps):
        if is_flow:
            # A straight line from a clean point to noise: its direction is what the model predicts.
            sigma = float(scheduler.sigmas[index])
            prediction = (x - exact_x_0(x, 1 - sigma, sigma)) / sigma
        else:
            alpha_bar = float(scheduler.alphas_cumprod[int(t)])
            alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
            prediction = (x - alpha * exact_x_0(x, alpha, sigma)) / sigma
        x = scheduler.step(prediction, t, x).prev_sample
    return x


SAMPLERS = {
    "DDPM": DDPMScheduler(clip_sample=False),
    "DDIM": DDIMScheduler(clip_sample=False),
    "DPM-Solver++": DPMSolverMultistepScheduler(),
    "flow": FlowMatchEulerDiscreteScheduler(),
}
STEPS = [2, 5, 10, 20, 50, 200, 500]


def distance(points):
    found = maximum_mean_discrepancy(
        points, draw_points(), bandwidth=SPREAD, num_permutations=1, num_resamples=0
    )
    return max(float(found.figure.value), 1e-5)


table = pd.DataFrame(
    {name: [distance(sample(sampler, n)) for n in STEPS] for name, sampler in SAMPLERS.items()},
    index=STEPS,
)
floor = distance(draw_points())
figure, axis = plt.subplots(figsize=(5.5, 3.6))
for name in table:
    axis.plot(table.index, table[name], "o-", label=name)
axis.axhline(floor, linestyle="--", color="grey")
axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="MMD²")
axis.legend()
plt.show()
print(table.round(5).to_string())

# %% [markdown] lang="en"
# DDIM is ahead of DDPM at every number of steps up to 200, and at 50 its error is less than a third (0.0020 against 0.0071),
# since DDPM adds noise that later steps must take away again. The second order of DPM-Solver++ is no simple gain here: at 5
# steps it is the best of all, though hardly before flow (0.0260 against 0.0267), at 10 and 20 it is behind DDIM, and at 50 it
# halves DDIM's error. Straight paths are by far the worst at 2 steps (1.11, the others 0.27 to 0.29) and the best at 10 and 20:
# twenty of them are worth more than fifty of DDIM (0.0013 against 0.0020). Below a thousandth the differences are chance.

# %% [markdown] lang="ru"
# DDIM опережает DDPM при любом числе шагов до 200, а при 50 его ошибка меньше трети (0,0020 против 0,0071): DDPM добавляет шум,
# который потом приходится убирать. Второй порядок DPM-Solver++ здесь выигрывает не всегда: при 5 шагах он лучше всех, хотя
# почти вровень с flow (0,0260 против 0,0267), при 10 и 20 уступает DDIM, а при 50 его ошибка вдвое меньше, чем у DDIM. Прямые
# пути при 2 шагах намного хуже всех (1,11, у остальных от 0,27 до 0,29), а при 10 и 20 лучше всех: двадцать таких шагов точнее
# пятидесяти шагов DDIM (0,0013 против 0,0020). Различия меньше одной тысячной — случайность.

# %%
figure, axes = plt.subplots(1, 4, figsize=(12, 3), sharex=True, sharey=True)
for axis, (name, sampler) in zip(axes, SAMPLERS.items(), strict=True):
    axis.scatter(*sample(sampler, 10).T, s=2)
    axis.set(title=f"{name}, 10", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
figure.tight_layout()
plt.show()

# %% [markdown] lang="en"
# ## Steps for tokens
#
# Tokens have no direction to follow: a step settles several of them at once, each as if the others were not drawn at the same
# time, and that is the error of few steps. What helps is to settle together what hardly depends on each other: the `even` order
# takes tokens that are far apart. The entropy of the tokens beside the times shows how much a sampler repeats itself.

# %% [markdown] lang="ru"
# ## Шаги для токенов
#
# У токенов нет направления, вдоль которого можно двигаться: шаг определяет сразу несколько из них, каждый так, словно остальные
# в этот момент не выбираются, — и в этом ошибка малого числа шагов. Помогает определять вместе то, что почти не зависит друг от
# друга: порядок `even` берёт токены, стоящие далеко друг от друга. Энтропия токенов рядом со временем показывает, насколько
# сэмплер повторяется.

# %%
pipe = TextDiffusionPipeline.from_pretrained("chat-and-novels")
pipe.set_progress_bar_config(disable=True)
REQUEST = {"class_labels": "novel", "length": 24, "temperature": 0.8, "num_return_sequences": 16}

rows = []
for sampler, num_steps in (("ancestral", 64), ("ancestral", 8), ("even", 8), ("confidence", 8)):
    begin = time.perf_counter()
    output = with_sampler(pipe, sampler)(
        num_inference_steps=num_steps, generator=torch.Generator().manual_seed(0), **REQUEST
    )
    seconds = time.perf_counter() - begin
    ids = [pipe.tokenizer(text, add_special_tokens=False).input_ids for text in output.texts]
    rows.append((sampler, num_steps, round(seconds, 2), round(token_entropy(ids), 2)))
    print(f"{sampler}, {num_steps}: {output.texts[0]}")
print(pd.DataFrame(rows, columns=["sampler", "steps", "seconds", "entropy"]).to_string(index=False))

# %% [markdown] lang="en"
# The entropy of `confidence` is half a nat below that of the others: it repeats itself ("said he, said dear"). More than that
# sixteen short texts cannot tell. [The page of results](../../docs/results.md) ranks samplers, with a thousand texts and an
# independent judge: eight even steps write as well as 64 ancestral ones.
#
# ## Latents: less to denoise
#
# Latent diffusion denoises a few vectors for the whole text and decodes once. What does a step cost? Count multiplications: a
# block of width $D$ takes $24 D^2$ FLOPs a position, and attention $4 S D$ for $S$ positions.
#
# **Exercise 3.** `step_flops(positions, width, layers, vocabulary)` returns the FLOPs of one call: blocks, attention, and
# the head, $2 D V$ a position; latents have no head, `vocabulary=0`.

# %% [markdown] lang="ru"
# У `confidence` энтропия на полната ниже, чем у остальных: он повторяется («said he, said dear»). Большего по шестнадцати
# коротким текстам не узнать. Сравнение сэмплеров по тысяче текстов, с независимым судьёй, есть на [странице
# результатов](../../docs/results.ru.md): восемь шагов порядка `even` пишут не хуже 64 шагов `ancestral`.
#
# ## Латенты: меньше чисел для денойзинга
#
# Латентная диффузия очищает несколько векторов на весь текст и декодирует один раз. Сколько стоит шаг? Посчитаем умножения: блок
# ширины $D$ требует $24 D^2$ FLOP на позицию, а внимание — $4 S D$ при $S$ позициях.
#
# **Упражнение 3.** `step_flops(positions, width, layers, vocabulary)` возвращает FLOP одного вызова: блоки, внимание и выходной
# слой, $2 D V$ на позицию; у латентов его нет, `vocabulary=0`.

# %% tags=["exercise"]
step_flops = ...  # def step_flops(positions, width, layers, vocabulary): ...


# %% tags=["solution"]
def step_flops(positions, width, layers, vocabulary):
    block = 24 * width**2 + 4 * positions * width
    return positions * (layers * block + 2 * width * vocabulary)


# %% tags=["wrong"]
def step_flops(positions, width, layers, vocabulary):
    return positions * layers * (24 * width**2 + 2 * width * vocabulary)


# %% tags=["check"]
def counts(step_flops):
    """The products of matrices, counted one by one."""
    for positions, width, layers, vocabulary in ((3, 8, 2, 10), (16, 32, 1, 0)):
        products = [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]
        by_hand = layers * positions * sum(2 * a * b for a, b in products)
        by_hand += layers * 2 * (2 * positions * positions * width)  # scores, and sums of values
        by_hand += positions * 2 * width * vocabulary
        assert step_flops(positions, width, layers, vocabulary) == by_hand
    return True


check(step_flops, counts)

# %%
tokens = step_flops(256, 512, 6, 32_000) if step_flops is not ... else float("nan")
latents = step_flops(16, 512, 6, 0) if step_flops is not ... else float("nan")
print(f"tokens {tokens:.3g}, latents {latents:.3g}, {tokens / latents:.0f} x")

# %% [markdown] lang="en"
# By this count a step over 16 latents is 31 times cheaper than one over 256 tokens, and needs no logits in memory. The price is
# paid once, by the decoder, a language model. No latent diffusion runs in this notebook: `make latent` trains one in about an
# hour. What it writes, how varied, and at what memory: [latent text diffusion](../../docs/pipelines/latent_text_diffusion.md);
# the samplers of word embeddings beside each other: [Diffusion-LM](../../docs/diffusion_lm.md).

# %% [markdown] lang="ru"
# По этому подсчёту шаг по 16 латентам в 31 раз дешевле шага по 256 токенам и не держит в памяти логитов. Платит за это декодер,
# языковая модель, — один раз, в конце. В этом ноутбуке латентная диффузия не запускается: её обучает `make latent`, примерно за
# час. Что пишет такая модель, насколько разнообразно и сколько берёт памяти: [латентная
# диффузия](../../docs/pipelines/latent_text_diffusion.ru.md); сэмплеры эмбеддингов рядом друг с другом:
# [Diffusion-LM](../../docs/diffusion_lm.ru.md).
