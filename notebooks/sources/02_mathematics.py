# %% [markdown] lang="en"
# # Module 2. Diffusion in two dimensions
#
# A point in the plane instead of a text: here everything can be drawn, and much of it is known exactly. You will
#
# 1. destroy points with noise, and choose how fast by a schedule,
# 2. write the reverse step, by Bayes' rule,
# 3. undo the noise with an exact denoiser, and with a small network that learns to predict the noise,
# 4. compute the variational bound, in nats, and see how far it is from the truth.
#
# It takes about a minute on two CPU cores. The laboratory in `docs/lab` has more: other points, other samplers, and the
# other generative models of the course beside diffusion.

# %% [markdown] lang="ru"
# # Модуль 2. Диффузия на плоскости
#
# Вместо текста — точка на плоскости: здесь всё можно нарисовать, а многое известно точно. Вы
#
# 1. разрушите точки шумом и выберете, как быстро, — это расписание,
# 2. напишете обратный шаг по формуле Байеса,
# 3. уберёте шум точным денойзером и маленькой сетью, которая учится предсказывать шум,
# 4. посчитаете вариационную границу в натах и увидите, насколько она далека от истины.
#
# Всё вместе занимает около минуты на двух ядрах процессора. В лаборатории `docs/lab` есть другие точки, другие сэмплеры и
# остальные генеративные модели курса рядом с диффузией.

# %%
import math

import matplotlib.pyplot as plt
import torch
from diffusers import DDPMScheduler
from torch import nn

torch.manual_seed(0)
NUM_STEPS = 100

# Three round clusters: a density that is known, so that everything can be checked
CENTRES = torch.tensor([[0.0, 1.2], [-1.1, -0.7], [1.1, -0.7]])
SPREAD = 0.2


def draw_points(count):
    """(count, 2) points of the data."""
    clusters = torch.randint(len(CENTRES), (count,))
    return CENTRES[clusters] + SPREAD * torch.randn(count, 2)


# %% [markdown] lang="en"
# ## The forward process
#
# A step of noise shrinks a point and adds a little of a Gaussian. After $t$ steps
#
# $$q(x_t \mid x_0) = \mathcal N\big(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t)\,I\big),$$
#
# where $\bar\alpha_t$ falls from 1 to 0. So any $x_t$ is drawn in one go, without the steps before it: this is the
# **reparameterisation**.
#
# **Exercise 1.** `add_noise(x_0, noise, alpha_bar)` returns $x_t$ from a point and standard Gaussian noise.

# %% [markdown] lang="ru"
# ## Прямой процесс
#
# Один шаг шума сжимает точку и добавляет немного гауссовской величины. Через $t$ шагов
#
# $$q(x_t \mid x_0) = \mathcal N\big(\sqrt{\bar\alpha_t}\,x_0,\ (1-\bar\alpha_t)\,I\big),$$
#
# где $\bar\alpha_t$ убывает от 1 до 0. Поэтому любой $x_t$ можно получить сразу, минуя предыдущие шаги: это и есть
# **репараметризация**.
#
# **Упражнение 1.** `add_noise(x_0, noise, alpha_bar)` возвращает $x_t$ по точке и стандартному гауссовскому шуму.

# %% tags=["exercise"]
add_noise = ...  # def add_noise(x_0, noise, alpha_bar): ...


# %% tags=["solution"]
def add_noise(x_0, noise, alpha_bar):
    return alpha_bar**0.5 * x_0 + (1 - alpha_bar) ** 0.5 * noise


# %% tags=["wrong"]
def add_noise(x_0, noise, alpha_bar):
    return alpha_bar * x_0 + (1 - alpha_bar) * noise


# %% tags=["check"]
def is_forward_process(add_noise):
    """Many small steps come to the same mean and variance as the jump."""
    x_0 = torch.tensor([1.5, -0.5])
    for alpha_bar in (0.9, 0.4, 0.01):
        steps = 50
        x_t = x_0.expand(20_000, 2)
        for _ in range(steps):
            alpha = alpha_bar ** (1 / steps)
            x_t = alpha**0.5 * x_t + (1 - alpha) ** 0.5 * torch.randn_like(x_t)
        jump = add_noise(x_0.expand(20_000, 2), torch.randn(20_000, 2), alpha_bar)
        assert torch.allclose(jump.mean(dim=0), x_t.mean(dim=0), atol=0.05)
        assert torch.allclose(jump.var(dim=0), x_t.var(dim=0), atol=0.05)
    return True


check(add_noise, is_forward_process)

# %% [markdown] lang="en"
# ## Schedules
#
# How fast $\bar\alpha_t$ falls is the **schedule**. What a network sees best is the logarithm of the signal-to-noise ratio
# $\bar\alpha_t / (1-\bar\alpha_t)$: where the curve is steep, little time is spent.

# %% [markdown] lang="ru"
# ## Расписания
#
# То, как быстро убывает $\bar\alpha_t$, называется **расписанием**. Нагляднее всего логарифм отношения сигнала к шуму
# $\bar\alpha_t / (1-\bar\alpha_t)$: там, где кривая крутая, процесс проводит мало времени.

# %%
schedules = {
    "linear": DDPMScheduler(NUM_STEPS, beta_start=1e-3, beta_end=0.15, beta_schedule="linear"),
    "cosine": DDPMScheduler(NUM_STEPS, beta_schedule="squaredcos_cap_v2"),
    "sigmoid": DDPMScheduler(NUM_STEPS, beta_start=1e-3, beta_end=0.15, beta_schedule="sigmoid"),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
for name, schedule in schedules.items():
    alpha_bars = schedule.alphas_cumprod
    axes[0].plot(alpha_bars, label=name)
    axes[1].plot((alpha_bars / (1 - alpha_bars)).log(), label=name)
axes[0].set(title=r"$\bar\alpha_t$", xlabel="t")
axes[1].set(title=r"$\log \bar\alpha_t / (1-\bar\alpha_t)$", xlabel="t")
axes[0].legend()
figure.tight_layout()
plt.show()

# %%
scheduler = schedules["cosine"]
ALPHA_BARS = torch.cat([torch.ones(1), scheduler.alphas_cumprod])  # index t: 0 is clean

x_0 = draw_points(1_000)
noise = torch.randn_like(x_0)
times = [0, 10, 25, 50, NUM_STEPS]
figure, axes = plt.subplots(1, len(times), figsize=(12, 2.7), sharex=True, sharey=True)
for axis, t in zip(axes, times, strict=True):
    axis.scatter(*add_noise(x_0, noise, ALPHA_BARS[t]).T, s=2)
    axis.set(title=f"t = {t}", aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
figure.tight_layout()
plt.show()

# %% [markdown] lang="en"
# ## The reverse step
#
# If $x_0$ were known, Bayes' rule would give the step back exactly: $q(x_{t-1} \mid x_t, x_0)$ is a Gaussian, with
#
# $$\text{mean } \frac{\sqrt{\bar\alpha_{t-1}}\,(1-\alpha_t)\,x_0 + \sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})\,x_t}{1-\bar\alpha_t},
# \qquad \text{variance } \frac{(1-\bar\alpha_{t-1})(1-\alpha_t)}{1-\bar\alpha_t},
# \qquad \alpha_t = \bar\alpha_t / \bar\alpha_{t-1}.$$
#
# **Exercise 2.** Write it: `posterior(x_0, x_t, now, before)` returns mean and variance, where `now` is $\bar\alpha_t$ and
# `before` is $\bar\alpha_{t-1}$. The check multiplies the two densities on a grid, and so knows nothing of the formula.

# %% [markdown] lang="ru"
# ## Обратный шаг
#
# Если бы $x_0$ был известен, формула Байеса давала бы шаг назад точно: $q(x_{t-1} \mid x_t, x_0)$ — гауссовская величина
#
# $$\text{со средним } \frac{\sqrt{\bar\alpha_{t-1}}\,(1-\alpha_t)\,x_0 + \sqrt{\alpha_t}\,(1-\bar\alpha_{t-1})\,x_t}{1-\bar\alpha_t}
# \text{ и дисперсией } \frac{(1-\bar\alpha_{t-1})(1-\alpha_t)}{1-\bar\alpha_t},
# \qquad \alpha_t = \bar\alpha_t / \bar\alpha_{t-1}.$$
#
# **Упражнение 2.** Напишите это: `posterior(x_0, x_t, now, before)` возвращает среднее и дисперсию, где `now` — это
# $\bar\alpha_t$, а `before` — $\bar\alpha_{t-1}$. Проверка перемножает две плотности на сетке и формулы не знает.

# %% tags=["exercise"]
posterior = ...  # def posterior(x_0, x_t, now, before): ...


# %% tags=["solution"]
def posterior(x_0, x_t, now, before):
    alpha = now / before
    mean = (before**0.5 * (1 - alpha) * x_0 + alpha**0.5 * (1 - before) * x_t) / (1 - now)
    return mean, (1 - before) * (1 - alpha) / (1 - now)


# %% tags=["wrong"]
def posterior(x_0, x_t, now, before):
    return before**0.5 * x_0, 1 - before


# %% tags=["check"]
def is_posterior(posterior):
    grid = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    for x_0, x_t, now, before in ((1.0, 0.3, 0.5, 0.6), (-2.0, 1.0, 0.05, 0.2)):
        alpha = now / before
        log_density = -((grid - before**0.5 * x_0) ** 2) / (2 * (1 - before))
        log_density -= (x_t - alpha**0.5 * grid) ** 2 / (2 * (1 - alpha))
        weights = log_density.softmax(dim=0)
        mean = (weights * grid).sum()
        variance = (weights * (grid - mean) ** 2).sum()
        found = posterior(torch.tensor(x_0), torch.tensor(x_t), now, before)
        assert abs(found[0] - mean) < 1e-4 and abs(found[1] - variance) < 1e-4
    return True


check(posterior, is_posterior)

# %% [markdown] lang="en"
# ## The exact denoiser
#
# $x_0$ is not known, but of our three clusters we know what to expect of it, $\hat x_0 = \mathbb E[x_0 \mid x_t]$: each
# cluster gives a Gaussian answer, weighted by how likely it is to have made $x_t$. With it the **score**
# $\nabla \log q(x_t) = (\sqrt{\bar\alpha_t}\,\hat x_0 - x_t) / (1-\bar\alpha_t)$ is known too: the arrows that show where the data are.

# %% [markdown] lang="ru"
# ## Точный денойзер
#
# $x_0$ неизвестен, но для наших трёх кластеров известно, чего от него ожидать, $\hat x_0 = \mathbb E[x_0 \mid x_t]$: каждый
# кластер даёт гауссовский ответ с весом, равным вероятности того, что $x_t$ получился из него. Тогда известна и
# **скор-функция (score)** $\nabla \log q(x_t) = (\sqrt{\bar\alpha_t}\,\hat x_0 - x_t) / (1-\bar\alpha_t)$: стрелки, которые
# показывают, где данные.


# %%
def cluster_log_densities(x_t, alpha_bar):
    """(N, 3) log-densities of noisy points in the plane, cluster by cluster."""
    variance = alpha_bar * SPREAD**2 + 1 - alpha_bar
    distances = (x_t[:, None] - alpha_bar**0.5 * CENTRES).square().sum(dim=-1)
    return -distances / (2 * variance) - math.log(2 * math.pi * variance) - math.log(len(CENTRES))


def exact_x_0(x_t, alpha_bar):
    """(N, 2) the expected clean points."""
    variance = alpha_bar * SPREAD**2 + 1 - alpha_bar
    gain = alpha_bar**0.5 * SPREAD**2 / variance
    answers = CENTRES + gain * (x_t[:, None] - alpha_bar**0.5 * CENTRES)  # (N, 3, 2)
    weights = cluster_log_densities(x_t, alpha_bar).softmax(dim=-1)
    return (weights[..., None] * answers).sum(dim=1)


side = torch.linspace(-2.5, 2.5, 17)
plane = torch.cartesian_prod(side, side)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), sharex=True, sharey=True)
for axis, t in zip(axes, (90, 50, 20), strict=True):
    alpha_bar = float(ALPHA_BARS[t])
    score = (alpha_bar**0.5 * exact_x_0(plane, alpha_bar) - plane) / (1 - alpha_bar)
    axis.quiver(*plane.T, *score.T, angles="xy", color="tab:blue")
    axis.scatter(*add_noise(x_0, noise, ALPHA_BARS[t])[:300].T, s=2, color="tab:orange")
    axis.set(title=f"t = {t}", aspect="equal")
figure.tight_layout()
plt.show()

# %% [markdown] lang="en"
# The reverse process: begin with noise, guess $x_0$, step back as if the guess were right, and guess again.

# %% [markdown] lang="ru"
# Обратный процесс: начинаем с шума, угадываем $x_0$, делаем шаг назад так, будто догадка верна, и угадываем снова.


# %%
def sample(denoiser, count):
    """(steps + 1, count, 2) points from pure noise to clean ones."""
    x_t = torch.randn(count, 2)
    path = [x_t]
    for t in range(NUM_STEPS, 0, -1):
        now, before = float(ALPHA_BARS[t]), float(ALPHA_BARS[t - 1])
        mean, variance = posterior(denoiser(x_t, now), x_t, now, before)
        x_t = mean + variance**0.5 * torch.randn_like(x_t)
        path.append(x_t)
    return torch.stack(path)


path = sample(exact_x_0, 500)
figure, axis = plt.subplots(figsize=(4.5, 4.5))
axis.scatter(*path[-1].T, s=3, color="tab:orange")
axis.plot(*path[:, :8].permute(2, 0, 1), color="tab:blue", alpha=0.5, linewidth=0.8)
axis.set(aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
plt.show()

# %% [markdown] lang="en"
# ## A network that predicts the noise
#
# Nobody has the exact denoiser of a text. A network learns it: draw a point, a time and a noise, and predict that noise by
# least squares. $\hat x_0$ follows from the prediction.
#
# **Exercise 3.** `clean_from_noise(x_t, noise, alpha_bar)` inverts `add_noise`.

# %% [markdown] lang="ru"
# ## Сеть, которая предсказывает шум
#
# Точного денойзера для текста ни у кого нет. Ему учится сеть: берём точку, время и шум и предсказываем этот шум методом
# наименьших квадратов. Из предсказания следует $\hat x_0$.
#
# **Упражнение 3.** `clean_from_noise(x_t, noise, alpha_bar)` обращает `add_noise`.

# %% tags=["exercise"]
clean_from_noise = ...  # def clean_from_noise(x_t, noise, alpha_bar): ...


# %% tags=["solution"]
def clean_from_noise(x_t, noise, alpha_bar):
    return (x_t - (1 - alpha_bar) ** 0.5 * noise) / alpha_bar**0.5


# %% tags=["wrong"]
def clean_from_noise(x_t, noise, alpha_bar):
    return x_t - noise


# %% tags=["check"]
def inverts(clean_from_noise):
    x_0, noise = torch.randn(100, 2), torch.randn(100, 2)
    for alpha_bar in (0.9, 0.5, 0.1):
        x_t = add_noise(x_0, noise, alpha_bar)
        assert torch.allclose(clean_from_noise(x_t, noise, alpha_bar), x_0, atol=1e-5)
    return True


check(clean_from_noise, inverts)


# %%
class NoisePredictor(nn.Module):
    """Noise from a noisy point and the logarithm of its signal-to-noise ratio."""

    def __init__(self, width=128):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        )

    def forward(self, x_t, alpha_bar):
        level = (alpha_bar / (1 - alpha_bar)).log() / 4
        return self.layers(torch.cat([x_t, level.expand(len(x_t), 1)], dim=-1))


network = NoisePredictor()
optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
losses = []
for _ in range(3_000):
    x_0 = draw_points(256)
    t = torch.randint(1, NUM_STEPS + 1, (256, 1))
    noise = torch.randn_like(x_0)
    x_t = add_noise(x_0, noise, ALPHA_BARS[t])
    loss = (network(x_t, ALPHA_BARS[t]) - noise).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())


@torch.no_grad()
def learned_x_0(x_t, alpha_bar):
    predicted = network(x_t, torch.tensor(alpha_bar))
    # Points of these clusters lie within 3 of the middle; far outside nothing was learned.
    return clean_from_noise(x_t, predicted, alpha_bar).clamp(-3, 3)


figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
axes[0].plot(torch.tensor(losses).unfold(0, 50, 50).mean(dim=-1))
axes[0].set(title="loss", xlabel="50 steps")
for axis, (name, denoiser) in zip(
    axes[1:], (("exact", exact_x_0), ("learned", learned_x_0)), strict=True
):
    axis.scatter(*sample(denoiser, 1_000)[-1].T, s=2)
    axis.set(title=name, aspect="equal", xlim=(-3, 3), ylim=(-3, 3))
figure.tight_layout()
plt.show()

# %% [markdown] lang="en"
# ## The bound
#
# How good is a denoiser, in one number? Describe $x_0$ step by step: each reverse step costs the divergence between the
# true posterior and the one with the guess in the place of $x_0$; two Gaussians of one variance, so it is a squared
# distance. The sum is a **bound**, never below the truth, $-\log p(x_0)$ on average, the entropy of the data. Here the
# entropy is known. The last step, from $t = 1$, is a Gaussian around the guess.

# %% [markdown] lang="ru"
# ## Граница
#
# Насколько хорош денойзер, одним числом? Опишем $x_0$ шаг за шагом: каждый обратный шаг стоит столько, какова дивергенция
# между истинным апостериорным распределением и тем, в котором вместо $x_0$ стоит догадка; это гауссовские величины с общей
# дисперсией, так что получается квадрат расстояния. Сумма — это **граница**: она никогда не ниже истины, среднего
# $-\log p(x_0)$, то есть энтропии данных. Здесь энтропия известна. Последний шаг, из $t = 1$, — гауссовская величина
# вокруг догадки.


# %%
def bound(denoiser, schedule, count=4_000):
    """Nats a point, by a schedule: alpha bar after each step."""
    alpha_bars = [1.0, *schedule]
    x_0 = draw_points(count)

    # What noise leaves of the points in the end
    end = alpha_bars[-1]
    total = 0.5 * (end * x_0.square() - end - math.log(1 - end)).sum(dim=-1).mean()

    for now, before in zip(alpha_bars[2:], alpha_bars[1:], strict=False):
        x_t = add_noise(x_0, torch.randn_like(x_0), now)
        mean, variance = posterior(x_0, x_t, now, before)
        guess, _ = posterior(denoiser(x_t, now), x_t, now, before)
        total += ((mean - guess).square().sum(dim=-1) / (2 * variance)).mean()

    # The last step: what x_1 leaves open of a point of a cluster
    first = alpha_bars[1]
    variance = 1 / (1 / SPREAD**2 + first / (1 - first))
    guess = denoiser(add_noise(x_0, torch.randn_like(x_0), first), first)
    squares = (x_0 - guess).square().sum(dim=-1) / (2 * variance)
    return float(total + squares.mean() + math.log(2 * math.pi * variance))


points = draw_points(100_000)
entropy = -cluster_log_densities(points, 1.0).logsumexp(dim=-1).mean()
print(f"entropy {entropy:.3f}")
for num_steps in (25, 100, 400):
    cosine = DDPMScheduler(num_steps, beta_schedule="squaredcos_cap_v2").alphas_cumprod
    even = torch.linspace(7, -8, num_steps).sigmoid()  # in log(alpha bar / (1 - alpha bar))
    for name, schedule in (("cosine", cosine), ("even", even)):
        exact, learned = (
            bound(denoiser, schedule.tolist()) for denoiser in (exact_x_0, learned_x_0)
        )
        print(f"{num_steps:>4} steps, {name:>6}: exact {exact:.3f}, learned {learned:.3f}")

# %% [markdown] lang="en"
# Even the exact denoiser pays for its steps: a step back is a Gaussian only where it is short, and short means that the
# signal-to-noise ratio hardly changes. Between $t = 2$ and $t = 1$ of the cosine schedule it more than doubles, however
# many steps there are, so that more steps help little: with 25, 100 and 400 of them the bound is 1.12, 1.26 and 0.93
# nats above the entropy. Steps that are even in its logarithm are worse at 25, and better from 100 on: the gap is 1.53,
# 0.285 and 0.045, so that four times as many leave a fifth of it, and four times as many again a sixth. The network
# pays 0.14 to 0.35 nats more. At 400 even steps that is most of its gap: 0.284, six times that of the exact denoiser.
# This is how every number of this library is to be read: nats, an upper bound, beside what is known of the truth. For
# texts the points become tokens, and a clean text is words: [module 3](03_d3pm.ipynb).

# %% [markdown] lang="ru"
# Даже точный денойзер платит за шаги: шаг назад гауссовский только тогда, когда он короткий, то есть когда отношение
# сигнала к шуму почти не меняется. Между $t = 2$ и $t = 1$ косинусного расписания оно вырастает больше чем вдвое,
# сколько бы шагов ни было, и новые шаги мало помогают: при 25, 100 и 400 шагах граница выше энтропии на 1,12, 1,26 и
# 0,93 ната. Шаги, равномерные по логарифму этого отношения, при 25 хуже, а начиная со 100 лучше: разница равна 1,53,
# 0,285 и 0,045, то есть вчетверо больше шагов оставляют от неё пятую часть, а ещё вчетверо больше — шестую. Сеть платит
# сверх этого от 0,14 до 0,35 ната. При 400 равномерных шагах это почти вся её разница: 0,284 — вшестеро больше, чем у
# точного денойзера. Так читается каждое число этой библиотеки: наты, верхняя граница, рядом — то, что известно об
# истине. У текстов вместо точек токены, а чистый текст — это слова: [модуль 3](03_d3pm.ipynb).
