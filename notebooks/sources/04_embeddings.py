# %% [markdown] lang="en"
# # Module 4. Diffusion over word embeddings
#
# Turn each word into a vector and a text becomes something like an image: Gaussian noise, DDPM and fast solvers apply
# as they are. What has no counterpart in images is the way back, from a vector to a word. In this notebook you will
#
# 1. put noise on embeddings and watch which word is the nearest one,
# 2. write the formulas of the forward process, and rounding,
# 3. compare four ways to round,
# 4. train a small Diffusion-LM and see honestly what it can do,
# 5. measure what vectors of a whole context know that vectors of words do not.
#
# It takes two to three minutes on two CPU cores.

# %% [markdown] lang="ru"
# # Модуль 4. Диффузия над эмбеддингами слов
#
# Превратим каждое слово в вектор — и текст станет похож на картинку: гауссов шум, DDPM и быстрые солверы подходят без
# изменений. Чего у картинок нет, так это обратной дороги — от вектора к слову. В этом ноутбуке вы
#
# 1. зашумите эмбеддинги и увидите, какое слово оказывается ближайшим,
# 2. запишете формулы прямого процесса и округление,
# 3. сравните четыре способа округлять,
# 4. обучите небольшую Diffusion-LM и честно посмотрите, что она умеет,
# 5. измерите, что знают векторы в контексте, чего не знают векторы слов.
#
# Всё вместе занимает две-три минуты на двух ядрах процессора.

# %%
import sys
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from text_diffusers import (
    DiffusionLMPipeline,
    EmbeddingDDIMScheduler,
    EmbeddingDDPMScheduler,
    EmbeddingDPMSolverScheduler,
    EmbeddingTransformerModel,
    TextDiffusionPipeline,
)
from text_diffusers.cli.train import RECIPES
from text_diffusers.data.sources import load_documents

sys.path.append(str(RECIPES))
import corpora


def seed(number=0):
    return torch.Generator().manual_seed(number)


# %% [markdown] lang="en"
# ## From tokens to vectors
#
# Any language model begins with a table of vectors, one a token: BERT, RoBERTa, GPT-2 alike. Here we take that of
# `four-voices`, a model of the package which was made from the sentence encoder MiniLM, a small BERT. On the command
# line `train_diffusion_lm.py --embedding_model google-bert/bert-base-uncased` takes those of BERT, projected in the
# same way: centred, rotated to the principal axes, each axis scaled to variance 1. Raw tables have a few strong
# directions which all words share, and noise of one strength cannot hide them evenly.

# %% [markdown] lang="ru"
# ## От токенов к векторам
#
# Любая языковая модель — BERT, RoBERTa, GPT-2 — начинается с таблицы векторов, по одному на токен. Здесь возьмём
# таблицу `four-voices` — модели из пакета, сделанной из энкодера предложений MiniLM, то есть маленького BERT. В
# командной строке `train_diffusion_lm.py --embedding_model google-bert/bert-base-uncased` берёт таблицу BERT и
# проецирует её так же: центрирует, поворачивает к главным осям и приводит дисперсию по каждой оси к 1. В сырых
# таблицах есть несколько сильных направлений, общих для всех слов, и шум одной силы не может скрыть их равномерно.

# %%
voices = TextDiffusionPipeline.from_pretrained("four-voices")
tokenizer = voices.tokenizer
raw = voices.denoiser.get_input_embeddings().weight.detach().float()[: tokenizer.pad_token_id]


def projected(vectors, width):
    """Vectors (N, D) on their principal axes, (N, width), each of unit variance."""
    left, _, _ = torch.linalg.svd((vectors - vectors.mean(dim=0)).double(), full_matrices=False)
    return (left[:, :width] * len(vectors) ** 0.5).float()


# Whole words only: tokens that begin with a space
word_ids = [
    i
    for i in range(len(raw))
    if tokenizer.decode([i])[:1] == " " and tokenizer.decode([i])[1:].isalpha()
]
words = [tokenizer.decode([i])[1:] for i in word_ids]
axes_of_all = projected(raw, 256)[word_ids]  # (W, 256)

for word in ("happy", "brother", "Monday", "eat", "seven"):
    here = axes_of_all[words.index(word), :64]
    nearest = (axes_of_all[:, :64] - here).norm(dim=1).argsort()[1:6]
    print(f"{word:>8}:", ", ".join(words[i] for i in nearest))
print(
    f"{len(words):,} words; raw table: |mean| / mean |x| = {raw.mean(dim=0).norm() / raw.norm(dim=1).mean():.2f}"
)

# %% [markdown] lang="en"
# ## The forward process in closed form
#
# With $\bar\alpha_t$ falling from 1 to 0,
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad \varepsilon \sim N(0, I).$$
#
# A network may predict $x_0$, the noise $\varepsilon$, or the velocity $v = \sqrt{\bar\alpha_t}\, \varepsilon -
# \sqrt{1 - \bar\alpha_t}\, x_0$: given $x_t$, each of them says all of the others.
#
# **Exercise 1.** Write four functions of one number $\bar\alpha$ and tensors of one shape: `add_noise(x_0, noise, a)`
# returns $x_t$; `velocity(x_0, noise, a)` returns $v$; `clean_from_noise(x_t, noise, a)` and
# `clean_from_velocity(x_t, v, a)` return $x_0$.

# %% [markdown] lang="ru"
# ## Прямой процесс в явном виде
#
# Пусть $\bar\alpha_t$ падает от 1 до 0, тогда
#
# $$x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \varepsilon, \qquad \varepsilon \sim N(0, I).$$
#
# Сеть может предсказывать $x_0$, шум $\varepsilon$ или скорость $v = \sqrt{\bar\alpha_t}\, \varepsilon - \sqrt{1 -
# \bar\alpha_t}\, x_0$: если известен $x_t$, из любой из этих величин получаются остальные.
#
# **Упражнение 1.** Напишите четыре функции от числа $\bar\alpha$ и тензоров одной формы: `add_noise(x_0, noise, a)`
# возвращает $x_t$; `velocity(x_0, noise, a)` возвращает $v$; `clean_from_noise(x_t, noise, a)` и
# `clean_from_velocity(x_t, v, a)` возвращают $x_0$.

# %% tags=["exercise"]
add_noise = ...  # def add_noise(x_0, noise, a): ...
velocity = ...  # def velocity(x_0, noise, a): ...
clean_from_noise = ...  # def clean_from_noise(x_t, noise, a): ...
clean_from_velocity = ...  # def clean_from_velocity(x_t, v, a): ...


# %% tags=["solution"]
def add_noise(x_0, noise, a):
    return a**0.5 * x_0 + (1 - a) ** 0.5 * noise


def velocity(x_0, noise, a):
    return a**0.5 * noise - (1 - a) ** 0.5 * x_0


def clean_from_noise(x_t, noise, a):
    return (x_t - (1 - a) ** 0.5 * noise) / a**0.5


def clean_from_velocity(x_t, v, a):
    return a**0.5 * x_t - (1 - a) ** 0.5 * v


# %% tags=["wrong"]
def add_noise(x_0, noise, a):
    return a**0.5 * x_0 + (1 - a) ** 0.5 * noise


def velocity(x_0, noise, a):
    return noise - x_0


def clean_from_noise(x_t, noise, a):
    return (x_t - (1 - a) ** 0.5 * noise) / a**0.5


def clean_from_velocity(x_t, v, a):
    return x_t - (1 - a) ** 0.5 * v


# %% tags=["check"]
def are_parametrizations(answers):
    """Two steps of noise are one, what is read off is x_0, and v turns as the angle of x_0 and noise does."""
    add_noise, velocity, clean_from_noise, clean_from_velocity = answers
    x_0, noise = torch.randn(2, 20_000, 3, generator=seed(), dtype=torch.float64)
    for a, b in ((0.9, 0.5), (0.6, 0.1)):
        x_t = add_noise(x_0, noise, a)
        v = velocity(x_0, noise, a)
        assert torch.allclose(clean_from_noise(x_t, noise, a), x_0)
        assert torch.allclose(clean_from_velocity(x_t, v, a), x_0)
        # x_t and v are a rotation of x_0 and noise
        assert torch.allclose(x_t**2 + v**2, x_0**2 + noise**2)
        # More noise on top: the moments of a single step with a b
        fresh = torch.randn(x_0.shape, generator=seed(1), dtype=torch.float64)
        x_s = add_noise(x_t, fresh, b)
        assert abs(float((x_s * x_0).mean() / (x_0 * x_0).mean()) - (a * b) ** 0.5) < 0.03
        assert abs(float((x_s - (a * b) ** 0.5 * x_0).var()) - (1 - a * b)) < 0.03
    return True


check((add_noise, velocity, clean_from_noise, clean_from_velocity), are_parametrizations)

# %% [markdown] lang="en"
# ## Which word is the nearest?
#
# Noise moves a vector, and at some strength another word lies nearer. Rows are the words of a text, columns the noise;
# green is still the word itself. Time follows Diffusion-LM's "sqrt" schedule with 2,000 steps, vectors have 16
# numbers.

# %% [markdown] lang="ru"
# ## Какое слово ближайшее?
#
# Шум сдвигает вектор, и при какой-то его силе ближе оказывается другое слово. Строки — слова текста, столбцы — сила
# шума; зелёным отмечено, где слово ещё равно себе. Время идёт по расписанию «sqrt» из Diffusion-LM с 2000
# шагов, в векторах 16 чисел.

# %%
scheduler = EmbeddingDDIMScheduler(num_train_timesteps=2000, beta_schedule="sqrt")
alphas = scheduler.alphas_cumprod  # (T,)

table = projected(raw, 16)[word_ids]
sentence = "my sister was happy to see the little dog".split()
clean = table[[words.index(word) for word in sentence]]
noise = torch.randn(clean.shape, generator=seed(1))

columns = (0, 50, 150, 300, 500, 900, 1500)
figure, axis = plt.subplots(figsize=(10, 3.6))
for column, step in enumerate(columns):
    noisy = scheduler.add_noise(clean, noise, torch.tensor([step]))
    found = torch.cdist(noisy, alphas[step] ** 0.5 * table).argmin(dim=1)
    for row, (index, word) in enumerate(zip(found.tolist(), sentence, strict=True)):
        colour = "#bfe5bf" if words[index] == word else "#f3d3d3"
        axis.add_patch(plt.Rectangle((column, row), 1, 1, facecolor=colour, edgecolor="white"))
        axis.text(column + 0.5, row + 0.5, words[index], ha="center", va="center", fontsize=9)
axis.set(xlim=(0, len(columns)), ylim=(len(sentence), 0), yticks=[])
axis.set_xticks([column + 0.5 for column in range(len(columns))])
axis.set_xticklabels(
    [
        f"t = {step}\n$\\sqrt{{1-\\bar\\alpha_t}}$ = {(1 - alphas[step]) ** 0.5:.2f}"
        for step in columns
    ]
)
axis.tick_params(length=0)
plt.show()

# %% [markdown] lang="en"
# The way to noise is not a walk through synonyms for long: soon the nearest word has nothing to do with the first one.
# How strong a noise a word survives depends on the width of its vector, since a wider one says the same more often:

# %% [markdown] lang="ru"
# Дорога к шуму недолго идёт через синонимы: вскоре ближайшее слово уже не имеет с исходным ничего общего. Какой шум
# слово выдержит, зависит от ширины вектора: широкий повторяет одно и то же больше раз.

# %%
levels = torch.linspace(0.05, 0.98, 12)  # standard deviations of the noise
chosen = torch.randperm(len(words), generator=seed())[:400]
figure, axis = plt.subplots(figsize=(7, 3.2))
for width in (8, 16, 64, 256):
    vectors = axes_of_all[:, :width]
    shares = []
    for level in levels:
        signal = (1 - level**2) ** 0.5
        noisy = signal * vectors[chosen] + level * torch.randn(400, width, generator=seed(2))
        shares.append((torch.cdist(noisy, signal * vectors).argmin(dim=1) == chosen).float().mean())
    axis.plot(levels, shares, marker="o", markersize=3, label=f"E = {width}")
axis.set(xlabel="$\\sqrt{1-\\bar\\alpha_t}$", ylabel="nearest = $x_0$")
axis.legend()
plt.show()

# %% [markdown] lang="en"
# With 256 numbers a word is safe at most of the steps, and then lost at once: for most of the time the model would have
# nothing to do. That is why embeddings for diffusion are narrow (16 here, 16 and 128 in Diffusion-LM) or scaled down.
#
# ## Rounding
#
# **Exercise 2.** `nearest(points, table)`: for points $(N, E)$ and a table $(V, E)$ return the $N$ ids of the nearest
# rows. Do not build a tensor $(N, V, E)$: with 1,000 points and 30,000 words it would not fit.

# %% [markdown] lang="ru"
# Из 256 чисел слово читается на большинстве шагов, а затем теряется сразу: большую часть времени модели было бы нечего
# делать. Поэтому эмбеддинги для диффузии делают узкими (здесь 16, в Diffusion-LM 16 и 128) или уменьшают их масштаб.
#
# ## Округление
#
# **Упражнение 2.** `nearest(points, table)`: для точек $(N, E)$ и таблицы $(V, E)$ верните $N$ номеров ближайших
# строк. Не создавайте тензор $(N, V, E)$: на тысячу точек и 30 000 слов не хватит памяти.

# %% tags=["exercise"]
nearest = ...  # def nearest(points, table): ...


# %% tags=["solution"]
def nearest(points, table):
    # The norm of the point is the same for all words.
    return (table.square().sum(dim=1) - 2 * points @ table.T).argmin(dim=1)


# %% tags=["wrong"]
def nearest(points, table):
    return (points @ table.T).argmax(dim=1)


# %% tags=["check"]
def is_nearest(nearest):
    """Words are their own nearest ones; moving and turning the space changes nothing; many points fit in memory."""
    points = torch.randn(300, 8, generator=seed())
    vectors = torch.randn(200, 8, generator=seed(1)) * torch.linspace(0.2, 3, 200)[:, None]
    assert nearest(vectors, vectors).tolist() == list(range(200))
    found = nearest(points, vectors)
    distance = (points[:, None] - vectors[None]).norm(dim=2)
    assert torch.allclose(distance.gather(1, found[:, None])[:, 0], distance.amin(dim=1))
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=seed(2)))
    assert torch.equal(nearest(points @ turn + 1, vectors @ turn + 1), found)
    return len(nearest(torch.zeros(500, 64), torch.ones(30_000, 64))) == 500


check(nearest, is_nearest)

# %% [markdown] lang="en"
# Four ways to get from a noisy vector to a word:
#
# - **nearest** neighbour, as above;
# - **head**: the largest dot product with the embeddings, Diffusion-LM's softmax without a bias. It prefers long
#   vectors, unless all have one length;
# - **learned**: a softmax layer trained on noisy vectors of words as often as they occur. It learns Bayes' rule:
#   nearness, and how frequent a word is;
# - **VQ**: codes of a small codebook. Here each vector becomes two codes of 128, the second of what the first one left
#   over (residual quantisation); a word is read off the nearest pair of codes.
#
# All see the same noisy vectors of words drawn by their frequency in the chat.

# %% [markdown] lang="ru"
# Четыре способа получить слово из зашумлённого вектора:
#
# - **nearest** — ближайший сосед, как выше;
# - **head** — наибольшее скалярное произведение с эмбеддингами: softmax без сдвига, как в Diffusion-LM. Предпочитает
#   длинные векторы, если у всех не одна длина;
# - **learned** — слой softmax, обученный на зашумлённых векторах слов, взятых так часто, как они встречаются. Он
#   выучивает формулу Байеса: и близость, и частоту слова;
# - **VQ** — коды из небольшой кодовой книги. Здесь вектор превращается в два кода из 128, второй кодирует остаток от
#   первого (остаточное квантование); слово читается по ближайшей паре кодов.
#
# Все видят одни и те же зашумлённые векторы слов, выбранных по их частоте в чате.

# %%
assert "chitchat" in corpora.CORPORA  # data sets that have a name
turns = load_documents("chitchat")["text"][:]
turns = list(dict.fromkeys(turn for turn in turns if 4 <= len(turn.split()) <= 14))

index_of = {word: number for number, word in enumerate(words)}
counted = [index_of[word] for turn in turns[:20_000] for word in turn.split() if word in index_of]
frequency = torch.bincount(torch.tensor(counted), minlength=len(words)).float()


def drawn(count, level, generator):
    """Words by their frequency, and their noisy vectors."""
    ids = torch.multinomial(frequency, count, replacement=True, generator=generator)
    noise = torch.randn(count, table.shape[1], generator=generator)
    return ids, (1 - level**2) ** 0.5 * table[ids] + level * noise


# learned: one softmax layer for all levels, which is shown the level as well
def features(noisy, level):
    # A linear layer of these can be the exact log-likelihood of a Gaussian.
    precision = (1 - level**2) ** 0.5 / level**2
    return torch.cat(
        [precision * noisy, torch.full((len(noisy), 1), precision**2 * level**2)], dim=1
    )


LEVELS = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
head = torch.nn.Linear(table.shape[1] + 1, len(words))
torch.nn.init.zeros_(head.bias)
with torch.no_grad():  # starts as the nearest neighbour
    head.weight.copy_(torch.cat([table, -table.square().sum(dim=1, keepdim=True) / 2], dim=1))
optimizer = torch.optim.Adam(
    [{"params": [head.weight], "lr": 1e-3}, {"params": [head.bias], "lr": 0.03}]
)
generator = seed()
for step in range(240):
    level = LEVELS[step % len(LEVELS)]
    ids, noisy = drawn(512, level, generator)
    loss = F.cross_entropy(head(features(noisy, level)), ids)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# VQ: two codebooks by k-means
def k_means(vectors, count, rounds=12):
    centres = vectors[torch.randperm(len(vectors), generator=seed())[:count]].clone()
    for _ in range(rounds):
        codes = torch.cdist(vectors, centres).argmin(dim=1)
        for code in codes.unique():
            centres[code] = vectors[codes == code].mean(dim=0)
    return centres


first = k_means(table, 128)
coarse = torch.cdist(table, first).argmin(dim=1)
second = k_means(table - first[coarse], 128)
fine = torch.cdist(table - first[coarse], second).argmin(dim=1)

# Of the words with the same codes the most frequent one comes first, and is the one that is read off.
by_frequency = frequency.argsort(descending=True)
quantised = (first[coarse] + second[fine])[by_frequency]
shared = len(table) - len((coarse * 128 + fine).unique())
print(f"{len(table):,} words, {shared:,} of them share both codes with a more frequent one")

print("noise  nearest  head  learned  VQ")
for level in LEVELS:
    ids, noisy = drawn(2000, level, seed(3))
    estimate = noisy / (1 - level**2) ** 0.5
    with torch.no_grad():
        guesses = [
            torch.cdist(estimate, table).argmin(dim=1),
            (estimate @ table.T).argmax(dim=1),
            head(features(noisy, level)).argmax(dim=1),
            by_frequency[torch.cdist(estimate, quantised).argmin(dim=1)],
        ]
    print(
        f"{level:5.1f}",
        "".join(f"{float((guess == ids).float().mean()):8.2f}" for guess in guesses),
    )

# %% [markdown] lang="en"
# - The dot product loses more than half of the words even at noise 0.3, where the nearest neighbour hardly loses any:
#   frequent words have short vectors here, and long ones win. So `EmbeddingTransformerModel` gives all embeddings one
#   length by default; then head and nearest are the same.
# - The learned layer is level with nearest at noise 0.3 and the best from 0.5 on; the ratio grows with the noise, and
#   at 0.9 it finds five times as many words. Where the vector says little, the frequency of a word says more.
# - VQ comes last from noise 0.5 on; at 0.3 it is ahead of head (0.49 against 0.45), and half of the words are lost all
#   the same: two codes are too coarse for 16 axes of equal variance. Codes serve well where they are learned together
#   with what they encode, and where a code need not stand for one word: that is [two-level
#   diffusion](../../docs/two_level.md).

# %% [markdown] lang="ru"
# - Скалярное произведение теряет больше половины слов даже при шуме 0,3, когда ближайший сосед почти не ошибается: у
#   частых слов здесь короткие векторы, и выигрывают длинные. Поэтому `EmbeddingTransformerModel` по умолчанию приводит
#   все эмбеддинги к одной длине; тогда head и nearest — одно и то же.
# - Обученный слой при шуме 0,3 наравне с nearest, а начиная с 0,5 лучше всех, и чем сильнее шум, тем больше отношение:
#   при 0,9 он находит впятеро больше слов. Когда вектор говорит мало, о слове больше говорит его частота.
# - VQ на последнем месте начиная с шума 0,5; при 0,3 он впереди head (0,49 против 0,45), но и там теряет половину слов:
#   двух кодов мало для 16 осей с равной дисперсией. Коды хороши, когда их обучают вместе с тем, что они кодируют, и
#   когда код не обязан означать одно слово, — это [двухуровневая диффузия](../../docs/two_level.ru.md).

# %% [markdown] lang="en"
# ## A small Diffusion-LM
#
# Embeddings are trained together with the network: the squared error of the estimate, the cross-entropy of the words
# (else all embeddings would fall into one point, where the error is zero) and the prior term. `EmbeddingLoss` adds
# them up as in `train_diffusion_lm.py`. The estimate is the mean of the embeddings under predicted probabilities of
# words.

# %% [markdown] lang="ru"
# ## Небольшая Diffusion-LM
#
# Эмбеддинги обучаются вместе с сетью: квадрат ошибки оценки, кросс-энтропия слов (иначе все эмбеддинги стянулись бы в
# одну точку, где ошибка равна нулю) и слагаемое априорного распределения. `EmbeddingLoss` складывает их так же, как
# `train_diffusion_lm.py`. Оценка — это среднее эмбеддингов по предсказанным вероятностям слов.

# %%
from datasets import Dataset

from text_diffusers.common.training_randomness import row_noise
from text_diffusers.data.rows import ShuffledRows, tensor_batches, tokenize, trimmed
from text_diffusers.data.tokenizers import train_tokenizer
from text_diffusers.training.initialization import TextStatistics
from text_diffusers.training.steps.embedding import EmbeddingLoss

LENGTH, STEPS, BATCH, RATE = 20, 480, 32, 2e-3

small = train_tokenizer(turns, vocab_size=1024)
rows = tokenize(Dataset.from_dict({"text": turns[:30_000]}), small, LENGTH, packing=False)
train, held_out = rows.select(range(29_000)), rows.select(range(29_000, 30_000))

torch.manual_seed(0)
model = EmbeddingTransformerModel(
    len(small),
    embedding_dim=16,
    hidden_size=128,
    num_layers=3,
    max_length=LENGTH,
    categorical_output=True,
    partial_noising=True,
    mask_token_id=small.mask_token_id,
    pad_token_id=small.pad_token_id,
)
statistics = TextStatistics(lambda: tensor_batches(train, 20_000), len(small), width=128)
model.words_in.weight.data.copy_(statistics.vectors())
model.set_noise(scheduler.alphas_cumprod)

token_losses = EmbeddingLoss(scheduler, model, self_conditioning=0.0, given_words=0.25)
order = ShuffledRows(train, BATCH)
optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
warm_up = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
losses = []
for step in range(STEPS):
    uniform, generators = row_noise(0, step, BATCH)
    times, weights = token_losses.draw_times(uniform, density=None)
    batch = trimmed(order.batch(step))
    of_tokens = token_losses(model, batch, times, generators, weights)  # (B, L)
    loss = of_tokens.sum() / batch["attention_mask"].sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    warm_up.step()
    losses.append(loss.item())
model.eval()

# %% [markdown] lang="en"
# Three questions to it. **Does it see more than its own noisy vector?** The picture compares the nearest word of the
# noisy embedding with the word of the model's estimate.

# %% [markdown] lang="ru"
# Зададим ей три вопроса. **Видит ли она больше, чем собственный зашумлённый вектор?** На картинке — доля слов, которые
# находит ближайший сосед зашумлённого эмбеддинга, и доля слов, которые находит оценка модели.

# %%
from text_diffusers.evaluation import estimate_embedding_bound
from text_diffusers.evaluation.embedding import rounding_accuracy

points = rounding_accuracy(model, scheduler, held_out.select(range(250)), list(range(0, 2000, 222)))
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2))
smooth = torch.tensor(losses).unfold(0, 20, 1).mean(dim=1)
axes[0].plot(losses, color="lightgray")
axes[0].plot(range(19, STEPS), smooth)
axes[0].set(xlabel="step", ylabel="loss", ylim=(0, float(torch.tensor(losses[5:]).max())))
noise_levels = [point.noise_level for point in points]
axes[1].plot(
    noise_levels, [point.input_accuracy for point in points], marker="o", label="nearest($x_t$)"
)
axes[1].plot(
    noise_levels,
    [point.model_accuracy for point in points],
    marker="o",
    label="$x_\\theta(x_t, t)$",
)
axes[1].set(xlabel="$\\sqrt{1-\\bar\\alpha_t}$", ylabel="$= x_0$")
axes[1].legend()
plt.show()

# %% [markdown] lang="en"
# **What does it know of the language?** The variational bound on held-out texts, beside the entropy of the token
# frequencies, which needs no model at all:

# %% [markdown] lang="ru"
# **Что она знает о языке?** Вариационная граница на отложенных текстах рядом с энтропией частот токенов, для которой
# никакой модели не нужно:

# %%
estimate = estimate_embedding_bound(model, scheduler, held_out)
tokens = torch.tensor(train["input_ids"])[:, 1:]
counts = torch.bincount(tokens[tokens != small.pad_token_id], minlength=len(small))
unigram = torch.distributions.Categorical(counts.double()).entropy()
print(
    f"bound {estimate.bound:.2f} +- {estimate.standard_error:.2f} nats per token, H(unigram) = {unigram:.2f}"
)

# %% [markdown] lang="en"
# **What does it write, and how fast?** The same noise, denoised by DDPM, by DDIM and by DPM-Solver++ in fewer and
# fewer steps. The last column is the share of words that agree with DDIM in 200 steps: DDIM and DPM-Solver solve one
# differential equation, DDPM adds noise of its own.

# %% [markdown] lang="ru"
# **Что она пишет и как быстро?** Один и тот же шум расшумляют DDPM, DDIM и DPM-Solver++, причём шагов всё меньше.
# Последний столбец — доля слов, совпавших с DDIM за 200 шагов: DDIM и DPM-Solver решают одно и то же дифференциальное
# уравнение, а DDPM добавляет собственный шум.

# %%
writer = DiffusionLMPipeline(small, model, scheduler)
writer.set_progress_bar_config(disable=True)
runs = [
    (EmbeddingDDIMScheduler, 200),
    (EmbeddingDDPMScheduler, 200),
    (EmbeddingDDPMScheduler, 20),
    (EmbeddingDDIMScheduler, 20),
    (EmbeddingDPMSolverScheduler, 20),
    (EmbeddingDPMSolverScheduler, 5),
]
reference = None
for kind, steps in runs:
    writer.scheduler = kind.from_config(scheduler.config)
    start = time.process_time()
    output = writer(
        length=10,
        num_inference_steps=steps,
        num_return_sequences=16,
        generator=seed(),
        output_type="latents",
    )
    seconds = time.process_time() - start
    ids = model.round(output.latents)
    reference = ids if reference is None else reference
    agreement = (ids == reference).float().mean()
    name = kind.__name__.removeprefix("Embedding").removesuffix("Scheduler")
    print(
        f"{name:>9} {steps:3}  {seconds:5.2f} s  {agreement:.2f}  {small.decode(ids[0], skip_special_tokens=True).strip()}"
    )

# %% [markdown] lang="en"
# Three answers, in plain words. It does look at its neighbours: at noise that leaves half of the words to their nearest
# neighbour, it finds 15 to 20 more in a hundred, though part of that is frequency. Its bound lies 0.62 nats below the
# entropy of the frequencies. And **what it writes is no language**: pieces of frequent words, with marks and ends in
# plausible places. Twenty steps of DDIM or DPM-Solver give 99 in a hundred words of two hundred steps, at a tenth of
# the time, and five of DPM-Solver still give 97; but with a model like this fewer steps lose nothing because there is
# nothing to lose. Module 6 measures the solvers where the truth is known, in the plane.
#
# A training of about the same length on masks (module 3) came twice as far below the frequencies, 1.29 nats, if with
# another, larger vocabulary: there the network sees clean words around each gap, here all words are in doubt at once.
# Diffusion-LM was trained for hours on a GPU.

# %% [markdown] lang="ru"
# Ответим прямо. На соседей она смотрит: при шуме, который ближайшему соседу оставляет половину слов, она находит ещё
# 15–20 слов из ста — правда, отчасти благодаря частотам. Граница лежит на 0,62 ната ниже энтропии частот. А **то, что
# она пишет, — не язык**: кусочки частых слов, знаки и концы текста в правдоподобных местах. Двадцать шагов DDIM или
# DPM-Solver дают 99 из ста тех слов, что двести шагов, за десятую часть времени, и даже пять шагов DPM-Solver — 97; но
# такой модели малое число шагов не вредит потому, что портить нечего. Там, где истина известна, на плоскости, солверы
# измеряет модуль 6.
#
# Примерно такое же обучение на масках (модуль 3) увело вдвое дальше от частот, на 1,29 ната, правда с другим, большим
# словарём: там сеть видит вокруг пропуска чистые слова, а здесь под сомнением сразу все. Diffusion-LM обучали на GPU
# часами.

# %% [markdown] lang="en"
# ## Vectors of a context
#
# The embedding of a word says one word. The states inside of a trained encoder say more: each was computed from the
# whole text. Latent diffusion denoises such vectors, or a few vectors for a whole text. Is that better? Two claims are
# often made, and both can be measured here:
#
# 1. a contextual vector also tells of its **neighbours**, so that much of a text survives in few vectors;
# 2. so it should be read off **better** under noise.
#
# We take the states of `chat-and-novels`, a bidirectional denoiser, and its table of embeddings; both are projected on
# 48 principal axes of variance 1 and get the same noise. A linear layer, trained for each, then reads off the word at a
# distance $d$, both from nearly clean vectors (noise 0.1) and from noisy ones (0.8).

# %% [markdown] lang="ru"
# ## Векторы в контексте
#
# Эмбеддинг слова говорит об одном слове. Состояния внутри обученного энкодера говорят больше: каждое вычислено по
# всему тексту. Латентная диффузия расшумляет именно такие векторы — или несколько векторов на весь текст. Лучше ли
# это? Обычно приводят два довода, и оба здесь можно измерить:
#
# 1. вектор в контексте рассказывает и о **соседях**, так что большая часть текста сохраняется в немногих векторах;
# 2. поэтому под шумом он должен читаться **лучше**.
#
# Возьмём состояния `chat-and-novels` — двунаправленного денойзера — и его таблицу эмбеддингов; то и другое спроецируем
# на 48 главных осей с дисперсией 1 и зашумим одинаково. Затем линейный слой, обученный для каждого случая отдельно,
# читает слово на расстоянии $d$ — и по почти чистым векторам (шум 0,1), и по зашумлённым (0,8).

# %%
encoder = TextDiffusionPipeline.from_pretrained("chat-and-novels")
codes = encoder.tokenizer(
    turns[:5000], padding=True, truncation=True, max_length=18, return_tensors="pt"
)
ids, is_real = codes["input_ids"], codes["attention_mask"].bool()

# States behind the second of four layers
states = []
hook = encoder.denoiser.blocks[1].register_forward_hook(
    lambda block, inputs, output: states.append(output)
)
with torch.no_grad():
    for part, real in zip(ids.split(500), is_real.split(500), strict=True):
        encoder.denoiser(part, attention_mask=real, positions=torch.zeros_like(real))
hook.remove()
states = torch.cat(states)
static = encoder.denoiser.token_embedding.weight.detach()[ids]
WIDTH = 48


def whitened(vectors):
    """(B, L, WIDTH) on the principal axes of what is no padding, each of unit variance."""
    flat = vectors[is_real].float()
    centred = flat - flat.mean(dim=0)
    values, axes = torch.linalg.eigh(centred.T @ centred / len(flat))
    projection = axes[:, -WIDTH:] / values[-WIDTH:].sqrt()
    return (vectors.float() - flat.mean(dim=0)) @ projection


spaces = {"static": whitened(static), "contextual": whitened(states)}
is_train = torch.arange(len(ids)) < 4000
# The layer reads off the thousand most frequent tokens.
NUM_READ = 1000
read_ids = (
    ids[is_real].bincount(minlength=len(encoder.tokenizer)).argsort(descending=True)[:NUM_READ]
)
class_of = torch.full((len(encoder.tokenizer),), -1)
class_of[read_ids] = torch.arange(NUM_READ)
targets = class_of[ids].masked_fill(~is_real, -1)  # (B, L), -1 is not asked for


def read_off(vectors, level, distance, window=0, steps=120):
    """The share of words at a distance that a linear layer reads off noisy vectors of held-out texts.

    Args:
        window: vectors on either side that it is shown beside the one.
    """
    noise = torch.randn(vectors.shape, generator=seed(4))
    noisy = (1 - level**2) ** 0.5 * vectors + level * noise
    noisy = torch.cat([noisy.roll(shift, dims=1) for shift in range(-window, window + 1)], dim=2)
    wanted = targets.roll(-distance, dims=1)
    is_asked = is_real & (wanted >= 0)
    is_asked[:, :2] = is_asked[:, -2:] = False  # what has come round from the other end
    trained, tested = is_asked & is_train[:, None], is_asked & ~is_train[:, None]

    torch.manual_seed(0)
    layer = torch.nn.Linear(noisy.shape[2], NUM_READ)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
    x, y, generator = noisy[trained], wanted[trained], seed()
    for _ in range(steps):
        chosen = torch.randint(len(x), (512,), generator=generator)
        loss = F.cross_entropy(layer(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return float((layer(noisy[tested]).argmax(dim=1) == wanted[tested]).float().mean())


DISTANCES = (-2, -1, 0, 1, 2)
figure, axes = plt.subplots(1, 2, figsize=(11, 3.2), sharey=True)
for axis, level in zip(axes, (0.1, 0.8), strict=True):
    for name, vectors in spaces.items():
        shares = [read_off(vectors, level, distance) for distance in DISTANCES]
        axis.plot(DISTANCES, shares, marker="o", label=name)
        print(f"noise {level}  {name:>10}:", "  ".join(f"{share:.2f}" for share in shares), end="")
        print(f"   every third vector alone: {sum(shares[1:4]) / 3:.2f}")
    axis.set(xlabel="d", xticks=DISTANCES, title=f"$\\sqrt{{1-\\bar\\alpha_t}}$ = {level}")
axes[0].set_ylabel("word at distance d")
axes[0].legend()
plt.show()

for level in (0.8, 0.9):
    for name, vectors in spaces.items():
        alone, beside = (read_off(vectors, level, 0, window) for window in (0, 1))
        print(
            f"noise {level}  {name:>10}: from its own vector {alone:.2f}, from three {beside:.2f}"
        )

# %% [markdown] lang="en"
# The first claim holds: a nearly clean contextual vector tells its neighbour in three cases of ten, the embedding in
# one of ten. If only every third vector is kept, the contextual ones still give half of all words, the embeddings two
# fifths. So a text keeps more of its words when vectors are left out. At noise 0.8 this gain is gone: 0.25 of all
# words, where the embeddings give 0.29. These rows have 18 tokens at most; long texts were not measured.
#
# The second claim is **refuted** as it stands: at the same noise and width a word is read off its own contextual
# vector less often, since the same 48 numbers have to tell of others, too. Three vectors together help the contextual
# side and not the static one (there the additional inputs only overfit), which shows that the context is there, but
# that does not make up for the loss. Latent diffusion takes another way out: vectors are trained to be decoded, and
# the decoder is a language model which completes what they leave out.

# %% [markdown] lang="ru"
# Первый довод верен: почти чистый вектор в контексте называет соседа в трёх случаях из десяти, эмбеддинг — в одном.
# Если оставить только каждый третий вектор, по векторам в контексте читается половина всех слов, по эмбеддингам — две
# пятых. Значит, если часть векторов убрать, от текста остаётся больше слов. При шуме 0,8 этот выигрыш исчезает: 0,25
# всех слов против 0,29 у эмбеддингов. В этих строках не больше 18 токенов; длинные тексты не измерялись.
#
# Второй довод в таком виде **опровергнут**: при том же шуме и той же ширине слово реже читается по собственному
# вектору в контексте, ведь те же 48 чисел должны рассказать и о других. Три вектора вместе помогают контекстным и не
# помогают статическим (там лишние входы дают только переобучение), значит, контекст в них есть, но потери он не
# окупает. Латентная диффузия выходит из положения иначе: векторы специально обучают так, чтобы их можно было
# декодировать, а декодер — языковая модель, которая дописывает то, чего в них нет.

# %% [markdown] lang="en"
# ## What you have seen
#
# - Noise on embeddings soon changes the nearest word, and how soon depends on the width.
# - Rounding knows nearness; a learned head also knows frequencies.
# - A Diffusion-LM of a minute knows frequencies and little more. DDIM and DPM-Solver agree with each other down to few
#   steps.
# - Contextual vectors carry their neighbours, at the price of their own word.
#
# More: [Diffusion-LM](../../docs/diffusion_lm.md), [latents of whole
# texts](../../docs/pipelines/latent_text_diffusion.md).

# %% [markdown] lang="ru"
# ## Что вы увидели
#
# - Шум на эмбеддингах быстро меняет ближайшее слово; насколько быстро, зависит от ширины вектора.
# - Округление знает близость; обученный слой знает ещё и частоты.
# - Diffusion-LM, обученная минуту, знает частоты и мало что ещё. DDIM и DPM-Solver согласны между собой вплоть до
#   малого числа шагов.
# - Векторы в контексте несут и соседей — ценой собственного слова.
#
# Дальше: [Diffusion-LM](../../docs/diffusion_lm.ru.md), [латентные векторы целых
# текстов](../../docs/pipelines/latent_text_diffusion.ru.md).
