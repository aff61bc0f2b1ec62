# %% [markdown] lang="en"
# # Module 3. Discrete diffusion
#
# Tokens have no "a little noisier": a token either stays or becomes another one. D3PM says how, with a matrix of
# probabilities for each step. In this notebook you will
#
# 1. look at six such matrices and turn one step back by Bayes' rule,
# 2. see why nothing can be differentiated through a drawn token, and what Gumbel-softmax does about it,
# 3. train a small D3PM that restores missing words, and count how many it restores,
# 4. use a masked language model as a diffusion model.
#
# It takes two to three minutes on two CPU cores; one of them is the training.

# %% [markdown] lang="ru"
# # Модуль 3. Дискретная диффузия
#
# У токена нет состояния «чуть более зашумлён»: он либо остаётся собой, либо превращается в другой. D3PM описывает это
# превращение матрицей вероятностей — своей на каждом шаге. В этом ноутбуке вы
#
# 1. рассмотрите шесть таких матриц и сделаете шаг назад по формуле Байеса,
# 2. увидите, почему через выбранный токен не проходит градиент и чем помогает Gumbel-softmax,
# 3. обучите небольшую D3PM восстанавливать пропущенные слова и посчитаете, сколько она восстановила,
# 4. превратите маскированную языковую модель в диффузионную.
#
# Всё вместе занимает две-три минуты на двух ядрах процессора, около минуты из них — обучение.

# %%
import sys
from collections import Counter

import matplotlib.pyplot as plt
import torch

from text_diffusers import (
    ConfidenceScheduler,
    D3PMAbsorbingScheduler,
    D3PMBitFlipScheduler,
    D3PMMatrixScheduler,
    D3PMNeighborScheduler,
    D3PMUniformScheduler,
    TextDiffusionPipeline,
    TextTransformerModel,
)


def seed(number=0):
    return torch.Generator().manual_seed(number)


# %% [markdown] lang="en"
# ## The matrices
#
# $Q_t[i, j] = q(x_t = j \mid x_{t-1} = i)$ is one step, and the product $\bar Q_t = Q_1 Q_2 \cdots Q_t$ leads from the
# clean token straight to time $t$. Rows are the token before, columns the token after, so every row sums to 1. Here
# are six kernels over a vocabulary of 16 tokens, the last of which is the mask of the absorbing one.

# %% [markdown] lang="ru"
# ## Матрицы
#
# $Q_t[i, j] = q(x_t = j \mid x_{t-1} = i)$ — это один шаг, а произведение $\bar Q_t = Q_1 Q_2 \cdots Q_t$ ведёт от
# чистого токена сразу к моменту $t$. Строка — токен «до», столбец — токен «после», поэтому сумма каждой строки равна
# 1. Ниже шесть ядер для словаря из 16 токенов; в поглощающем ядре последний токен — маска.

# %%
V, T = 16, 100
angles = torch.linspace(0, 2 * torch.pi, V + 1)[:V]
circle = torch.stack([angles.cos(), angles.sin()], dim=1)[torch.randperm(V, generator=seed(1))]

kernels = {
    "uniform": D3PMUniformScheduler(V, num_train_timesteps=T),
    "absorbing": D3PMAbsorbingScheduler(mask_token_id=V - 1, num_train_timesteps=T),
    "gaussian": D3PMMatrixScheduler(V, "gaussian", num_train_timesteps=T, beta_end=0.1),
    "band": D3PMMatrixScheduler(V, "band", bandwidth=2, num_train_timesteps=T, beta_end=0.5),
    "bit flip": D3PMBitFlipScheduler(V, num_train_timesteps=T),
    "neighbours": D3PMNeighborScheduler.from_embeddings(
        circle, num_neighbors=2, num_train_timesteps=T, walk_rate=8.0
    ),
}
every_token = torch.arange(V)
times = (0.02, 0.1, 0.3, 0.6, 1.0)

figure, axes = plt.subplots(len(kernels), len(times), figsize=(9, 10.5))
for row, (name, scheduler) in zip(axes, kernels.items(), strict=True):
    for axis, time in zip(row, times, strict=True):
        matrix = scheduler.transition(every_token, time)
        assert torch.allclose(matrix.sum(dim=1), torch.ones(V).double())
        axis.imshow(matrix**0.5, cmap="viridis", vmin=0, vmax=1)
        axis.set(xticks=[], yticks=[])
    row[0].set_ylabel(name)
for axis, time in zip(axes[0], times, strict=True):
    axis.set_title(f"$\\bar Q_t$, t = {time}")
figure.tight_layout()
plt.show()

# %% [markdown] lang="en"
# Brightness is the square root of the probability. Read the picture by rows:
#
# - **uniform** and **absorbing** know nothing of the tokens: what is lost becomes anything, or the mask;
# - **gaussian** and **band** treat ids as ordered values, as the brightness of a pixel is: the diagonal widens. Ids of
#   words have no such order;
# - **bit flip** flips each bit of the id by itself: the blocks are tokens that differ in one bit;
# - **neighbours** walks along a graph of similar tokens. Here they lie on a circle in a shuffled order, so the picture
#   looks random. Over words it is worth what their embeddings are: synonyms come first only where these lie near each
#   other.
#
# At time 1 the text should be forgotten, that is, all rows equal. Band has not got there in 100 steps, and gaussian not
# quite: the chain has not mixed, and its bound pays for that with a prior term. The next cell measures it, and checks
# that $\bar Q_t$ is indeed the product of the steps.

# %% [markdown] lang="ru"
# Яркость — квадратный корень из вероятности. Посмотрим по строкам:
#
# - **uniform** и **absorbing** ничего не знают о токенах: потерянный токен становится любым другим или маской;
# - **gaussian** и **band** считают номера токенов упорядоченными величинами, как яркость пикселя: диагональ
#   расплывается. У номеров слов такого порядка нет;
# - **bit flip** независимо переворачивает биты номера: блоки — это токены, которые отличаются одним битом;
# - **neighbours** блуждает по графу похожих токенов. Здесь они лежат на окружности в перемешанном порядке, поэтому
#   картинка кажется случайной. Для слов всё решают эмбеддинги: синонимы будут первыми, только если лежат в них рядом.
#
# К моменту 1 текст должен быть забыт, то есть все строки одинаковы. Ядро band за 100 шагов до этого не дошло, gaussian
# — почти дошло: цепь не перемешалась, и за это её граница платит отдельным слагаемым. Следующая ячейка это измеряет и
# проверяет, что $\bar Q_t$ — действительно произведение шагов.

# %%
for name in ("gaussian", "band"):
    product = torch.eye(V).double()
    for step in range(1, 31):
        product = product @ kernels[name].matrix(step)
    assert torch.allclose(product, kernels[name].transition(every_token, 30 / T))

for name, scheduler in kernels.items():
    rows = scheduler.transition(every_token, 1.0)
    print(
        f"{name:>10}: max |row - row'| at t = 1 is {(rows[:, None] - rows[None]).abs().max():.3f}"
    )

# %% [markdown] lang="en"
# The same noise on a sentence. Neighbours and bit codes come from the embeddings of `chat-and-novels`, a small model
# that comes with the package. It has learned too little for its nearest tokens to be synonyms, as the output shows;
# those of a larger encoder, in module 4, are akin.

# %% [markdown] lang="ru"
# Тот же шум на предложении. Соседи и битовые коды построены по эмбеддингам `chat-and-novels` — маленькой модели из
# пакета. Она выучила слишком мало, чтобы ближайшие токены были синонимами, и это видно; у энкодера побольше, в модуле
# 4, они близки по смыслу.

# %%
from text_diffusers.kernels import kernels_of, make_scheduler

shipped = TextDiffusionPipeline.from_pretrained("chat-and-novels")
shipped.set_progress_bar_config(disable=True)
tokenizer = shipped.tokenizer

sentence = torch.tensor(
    [tokenizer.encode("I am very happy to see my sister and her little dog today.")]
)
for name in ("absorbing", "uniform", "neighbors", "bit_flip"):
    scheduler = make_scheduler(name, kernels_of(shipped))
    print(name)
    for time in (0.2, 0.5):
        noisy = scheduler.add_noise(sentence, time, seed(2))
        print(f"   t = {time}:", tokenizer.decode(noisy[0]))

# %% [markdown] lang="en"
# ## One step back
#
# A model never sees the clean $x_0$ when it writes; it guesses it. If $x_0$ were known, the step back from $x_t$ to
# $x_s$, $s < t$, would be Bayes' rule,
#
# $$q(x_s \mid x_t, x_0) \propto q(x_t \mid x_s)\, q(x_s \mid x_0).$$
#
# **Exercise 1.** Write it. `posterior(step, before, x_t, x_0)` gets the matrices $Q_{s \to t}$ and $\bar Q_s$, both
# $(V, V)$ with rows "from", and two ids; it returns the $V$ probabilities of $x_s$.

# %% [markdown] lang="ru"
# ## Шаг назад
#
# Когда модель пишет, она не видит чистого $x_0$, а угадывает его. Будь $x_0$ известен, шаг назад от $x_t$ к $x_s$,
# $s < t$, дала бы формула Байеса:
#
# $$q(x_s \mid x_t, x_0) \propto q(x_t \mid x_s)\, q(x_s \mid x_0).$$
#
# **Упражнение 1.** Запишите её. `posterior(step, before, x_t, x_0)` получает матрицы $Q_{s \to t}$ и $\bar Q_s$
# размера $(V, V)$, где строка — это «откуда», и два номера токенов; функция возвращает $V$ вероятностей для $x_s$.

# %% tags=["exercise"]
posterior = ...  # def posterior(step, before, x_t, x_0): ...


# %% tags=["solution"]
def posterior(step, before, x_t, x_0):
    joint = step[:, x_t] * before[x_0]
    return joint / joint.sum()


# %% tags=["wrong"]
def posterior(step, before, x_t, x_0):
    joint = step[x_t] * before[x_0]
    return joint / joint.sum()


# %% tags=["check"]
def is_bayes(posterior):
    """The posterior of the library's schedulers, for symmetric kernels and for one that is not."""
    one_way = 0.7 * torch.eye(V).double().roll(1, dims=1) + 0.3 / V
    schedulers = [kernels[name] for name in ("gaussian", "band", "bit flip", "neighbours")]
    schedulers.append(
        D3PMMatrixScheduler(V, "matrix", transitions=one_way, num_train_timesteps=T, beta_end=0.5)
    )
    for scheduler in schedulers:
        scheduler.set_timesteps(timesteps=[0.5, 0.3])
        # The column x_t of Q is the likelihood of x_t.
        step = scheduler.likelihood(every_token, 0.3, 0.5).T
        before = scheduler.transition(every_token, 0.3)
        for x_t, x_0 in ((3, 3), (3, 5), (0, 15), (9, 8)):
            sure = torch.full((1, 1, V), -torch.inf).double()
            sure[..., x_0] = 0.0
            theirs = scheduler.reverse_probs(sure, 0.5, torch.tensor([[x_t]]))[0, 0]
            ours = posterior(step, before, x_t, x_0)
            assert ours.shape == (V,) and torch.allclose(ours.sum(), torch.ones(()).double())
            assert torch.allclose(ours, theirs.double(), atol=1e-6)
    return True


check(posterior, is_bayes)

# %% [markdown] lang="en"
# In a real step the place of $x_0$ is taken by the probabilities that the network predicts. For the absorbing kernel
# the formula becomes simple: a mask stays a mask or becomes a token drawn from the prediction, and what is a word
# stays.

# %% [markdown] lang="ru"
# В настоящем шаге место $x_0$ занимают вероятности, которые предсказала сеть. Для поглощающего ядра формула становится
# совсем простой: маска остаётся маской или превращается в токен, выбранный из предсказания, а слово остаётся словом.

# %%
absorbing = D3PMAbsorbingScheduler(mask_token_id=V - 1)
absorbing.set_timesteps(timesteps=[0.5, 0.3])
logits = torch.zeros(1, 2, V)
logits[..., 4] = 3.0
for_mask, for_word = absorbing.reverse_probs(logits, 0.5, torch.tensor([[V - 1, 7]]))[0]
print(
    "x_t = [MASK]:  p([MASK]) =",
    round(float(for_mask[-1]), 3),
    " p(4) =",
    round(float(for_mask[4]), 3),
)
print("x_t = 7:       p(7) =", round(float(for_word[7]), 3))

# %% [markdown] lang="en"
# ## A draw has no gradient
#
# A network returns logits, softmax makes probabilities, and a token is drawn. The draw is a jump: a small change of
# the logits changes the token either not at all or entirely, so its derivative is zero almost everywhere, and what
# comes after it (a classifier, say, that reads the text) cannot tell the network what to improve.
#
# **Exercise 2.** First another way to draw: add noise $g_i = -\log(-\log u_i)$, $u_i$ uniform, to each logit, and take
# the largest. Write `gumbel_max(logits, generator)`: for logits $(N, V)$ it returns $N$ ids drawn from
# $\mathrm{softmax}(\text{logits})$, without calling softmax.

# %% [markdown] lang="ru"
# ## У выбора нет градиента
#
# Сеть возвращает логиты, softmax превращает их в вероятности, из них выбирается токен. Выбор — это скачок: малое
# изменение логитов либо совсем не меняет токен, либо меняет его целиком. Производная почти всюду равна нулю, и то, что
# стоит дальше (скажем, классификатор, который читает текст), не может подсказать сети, что исправить.
#
# **Упражнение 2.** Для начала — другой способ выбирать: прибавим к каждому логиту шум $g_i = -\log(-\log u_i)$, где
# $u_i$ равномерно распределены, и возьмём наибольший. Напишите `gumbel_max(logits, generator)`: для логитов $(N, V)$
# функция возвращает $N$ номеров, выбранных из $\mathrm{softmax}(\text{logits})$, не вызывая softmax.

# %% tags=["exercise"]
gumbel_max = ...  # def gumbel_max(logits, generator): ...


# %% tags=["solution"]
def gumbel_max(logits, generator):
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    return (logits - torch.log(-torch.log(uniform))).argmax(dim=-1)


# %% tags=["wrong"]
def gumbel_max(logits, generator):
    noise = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    return (logits + noise).argmax(dim=-1)


# %% tags=["check"]
def draws_from_softmax(gumbel_max):
    """The tokens come as often as softmax says, within four standard errors."""
    count = 40_000
    for logits in (
        torch.tensor([0.0, 1.0, 2.0, -1.0]),
        torch.tensor([5.0, 5.0, 1.0]),
        torch.zeros(6),
    ):
        probs = logits.double().softmax(dim=-1)
        tokens = gumbel_max(logits.expand(count, -1), seed())
        assert tokens.shape == (count,)
        shares = torch.bincount(tokens, minlength=len(probs)) / count
        assert ((shares - probs).abs() < 4 * (probs * (1 - probs) / count).sqrt() + 1e-9).all()
    return True


check(gumbel_max, draws_from_softmax)

# %% [markdown] lang="en"
# **Gumbel-softmax** puts $\mathrm{softmax}((\text{logits} + g) / \tau)$ in the place of the largest: the noise is
# apart from the logits, so the sample has a gradient. A sample is no longer a token but a point of the simplex, whose
# corners are the tokens; the lower the temperature $\tau$, the nearer to a corner. Colours tell which entry is the
# largest: how often each one is does not depend on $\tau$.

# %% [markdown] lang="ru"
# **Gumbel-softmax** заменяет наибольший элемент на $\mathrm{softmax}((\text{logits} + g) / \tau)$: шум стоит отдельно
# от логитов, поэтому у выборки есть градиент. Теперь это не токен, а точка симплекса, вершины которого — токены; чем
# ниже температура $\tau$, тем ближе точка к вершине. Цвет показывает, какой из элементов наибольший: доли цветов от
# $\tau$ не зависят.

# %%
from text_diffusers.common.sampling import gumbel_softmax

probs = torch.tensor([0.6, 0.3, 0.1])
corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
colours = ["tab:blue", "tab:orange", "tab:green"]

figure, axes = plt.subplots(1, 3, figsize=(11, 3.4))
for axis, temperature in zip(axes, (5.0, 1.0, 0.1), strict=True):
    samples = gumbel_softmax(probs.log().expand(1500, 3), temperature, seed())
    largest = samples.argmax(dim=1)
    points = samples @ corners
    axis.plot(*corners[[0, 1, 2, 0]].T, color="black", linewidth=0.8)
    axis.scatter(*points.T, s=5, alpha=0.5, c=[colours[token] for token in largest])
    for number, corner in enumerate(corners.tolist(), start=1):
        axis.annotate(
            f"$p_{number}={probs[number - 1]:.1f}$",
            corner,
            ha="center",
            va="bottom" if number == 3 else "top",
        )
    shares = torch.bincount(largest, minlength=3) / 1500
    axis.set_title(f"$\\tau = {temperature:g}$:  " + ", ".join(f"{share:.2f}" for share in shares))
    axis.set(ylim=(-0.15, 1.0))
    axis.set_axis_off()
figure.tight_layout()
plt.show()

# %% [markdown] lang="en"
# What does the relaxation cost? Let each token have a price $c$. The gradient of the mean price $\sum_i p_i c_i$ with
# respect to the logits is known exactly, $p_i (c_i - \sum_j p_j c_j)$, so we can measure the bias and the spread of
# the gradient that comes through relaxed samples. A plain draw, `argmax`, would give 0.

# %% [markdown] lang="ru"
# Чем мы платим за релаксацию? Пусть у каждого токена есть цена $c$. Градиент средней цены $\sum_i p_i c_i$ по логитам
# известен точно: $p_i (c_i - \sum_j p_j c_j)$. Значит, можно измерить смещение и разброс градиента, который проходит
# через релаксированные выборки. Обычный выбор, `argmax`, дал бы 0.

# %%
price = torch.tensor([0.0, 1.0, 5.0])
exact = probs * (price - probs @ price)

print("  tau    bias   spread")
for temperature in (5.0, 2.0, 1.0, 0.5, 0.1):
    logits = probs.log().expand(20_000, 3).clone().requires_grad_()
    (gumbel_softmax(logits, temperature, seed()) @ price).sum().backward()
    bias = (logits.grad.mean(dim=0) - exact).norm()
    spread = logits.grad.std(dim=0).norm()
    print(f"{temperature:5g}   {bias:5.3f}   {spread:6.2f}")

# %% [markdown] lang="en"
# The trade-off is plain: a high temperature is wrong on average, a low one is right on average and noisy in each
# sample. `hard=True` shows the next layer a real token and takes the gradient of the relaxed one ("straight-through").
# Module 5 guides a model through such soft texts; training by masks, below, needs none of it, because there $x_0$ is
# known.

# %% [markdown] lang="ru"
# Компромисс виден: при высокой температуре градиент в среднем неверен, при низкой — в среднем верен, но в каждой
# выборке шумит. `hard=True` показывает следующему слою настоящий токен, а градиент берёт у релаксированного
# («straight-through»). В модуле 5 через такие мягкие тексты идёт управление моделью; обучению на масках, которое ниже,
# всё это не нужно: там $x_0$ известен.

# %% [markdown] lang="en"
# ## A mini D3PM restores missing words
#
# The data is chitchat, messages of a chat (MIT licence, PyPI `chitchat-dataset`). We take turns of 4 to 16 words and
# the tokenizer of `chat-and-novels`, so that both models can be asked about exactly the same gaps.

# %% [markdown] lang="ru"
# ## Мини-D3PM восстанавливает пропущенные слова
#
# Данные — chitchat, сообщения из чата (лицензия MIT, пакет `chitchat-dataset` на PyPI). Возьмём реплики от 4 до 16
# слов и токенизатор модели `chat-and-novels`: тогда обе модели можно спросить об одних и тех же пропусках.

# %%
from text_diffusers.cli.train import RECIPES

sys.path.append(str(RECIPES))
import corpora

from text_diffusers.data.rows import encode_texts
from text_diffusers.data.sources import load_documents

LENGTH = 24
PAD, MASK, EOS = tokenizer.pad_token_id, tokenizer.mask_token_id, tokenizer.eos_token_id

assert "chitchat" in corpora.CORPORA  # data sets that have a name
turns = load_documents("chitchat")["text"][:]
turns = list(dict.fromkeys(turn for turn in turns if 4 <= len(turn.split()) <= 16))
coded = [ids for ids in encode_texts(tokenizer, turns) if len(ids) <= LENGTH - 2]
rows = torch.tensor([[EOS, *ids, EOS] + [PAD] * (LENGTH - 2 - len(ids)) for ids in coded])
train, held_out = rows[:-600], rows[-600:]
print(
    f"{len(train):,} + {len(held_out):,} texts, {len(tokenizer):,} tokens; the first: {tokenizer.decode(coded[0])}"
)

# %% [markdown] lang="en"
# The model is a transformer without a causal mask. Its embeddings start from the company that tokens keep in the data,
# which spares a short run its first plateau.
#
# The bound of absorbing diffusion in continuous time, for $\alpha_t = 1 - t$, is
#
# $$-\log p(x_0) \le
# \mathbb{E}_{t \sim U(0, 1)}\; \frac{1}{t} \sum_{i:\, x_t^i = \mathrm{[MASK]}} -\log p_\theta(x_0^i \mid x_t):$$
#
# cross-entropy at the masks, weighted by $1/t$. It is the training of BERT with a share of masks that is drawn anew.
#
# **Exercise 3.** `bound(nats, masked, time)` gets the cross-entropy of each token, $(B, L)$, which tokens are masked,
# $(B, L)$ bool, and the time of each row, $(B,)$; it returns the estimate of the bound in nats **per token**.

# %% [markdown] lang="ru"
# Модель — трансформер без каузальной маски. Её эмбеддинги начинают с того, какие токены встречаются рядом в данных:
# это избавляет короткое обучение от первого плато.
#
# Вариационная граница поглощающей диффузии в непрерывном времени при $\alpha_t = 1 - t$:
#
# $$-\log p(x_0) \le
# \mathbb{E}_{t \sim U(0, 1)}\; \frac{1}{t} \sum_{i:\, x_t^i = \mathrm{[MASK]}} -\log p_\theta(x_0^i \mid x_t),$$
#
# то есть кросс-энтропия на масках с весом $1/t$. Это обучение BERT, в котором доля масок каждый раз своя.
#
# **Упражнение 3.** `bound(nats, masked, time)` получает кросс-энтропию каждого токена $(B, L)$, признак «токен скрыт»
# $(B, L)$ и момент времени каждой строки $(B,)$; функция возвращает оценку границы в натах **на токен**.

# %% tags=["exercise"]
bound = ...  # def bound(nats, masked, time): ...


# %% tags=["solution"]
def bound(nats, masked, time):
    return (nats * masked / time[:, None]).sum() / nats.numel()


# %% tags=["wrong"]
def bound(nats, masked, time):
    return nats[masked].mean()


# %% tags=["check"]
def is_bound(bound):
    """Right for a model whose log-likelihood is known: a text that is one word, repeated."""
    length, words, count = 8, 50, 60_000
    time = (torch.arange(count) + 0.5) / count
    masked = torch.rand(count, length, generator=seed()) < time[:, None]
    # Without a clean copy the word is one of 50; with one it is certain. All of the text costs log(50), once.
    is_hidden = masked.all(dim=1, keepdim=True)
    nats = torch.where(is_hidden, torch.tensor(float(words)).log(), 0.0).expand(count, length)
    return abs(float(bound(nats, masked, time)) * length - torch.tensor(words).log()) < 0.1


check(bound, is_bound)

# %% [markdown] lang="en"
# In the loop all masks weigh alike, $1/t$ left out: rows with few masks would otherwise make most of the gradient and
# of its noise. The times are stratified, one in each $B$-th part of $(0, 1)$. The bound itself is measured afterwards.

# %% [markdown] lang="ru"
# В цикле обучения вес $1/t$ опущен, все маски равны: иначе строки с малым числом масок давали бы почти весь градиент и
# почти весь его шум. Времена стратифицированы, по одному в каждой $B$-й части интервала $(0, 1)$. Саму границу измерим
# после обучения.

# %%
from text_diffusers.losses import absorbing_bound
from text_diffusers.training.initialization import cooccurrence_vectors, start_from_words

STEPS, BATCH, RATE = 520, 48, 3e-3

torch.manual_seed(0)
model = TextTransformerModel(
    len(tokenizer),
    hidden_size=128,
    num_layers=3,
    max_length=LENGTH,
    mask_token_id=MASK,
    pad_token_id=PAD,
)
real = {"input_ids": train, "attention_mask": train != PAD}
start_from_words(model, cooccurrence_vectors([real], len(tokenizer), width=128), list(range(PAD)))
scheduler = D3PMAbsorbingScheduler(MASK)

optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
warm_up = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS, pct_start=0.1)
generator = seed()
losses = []
for _ in range(STEPS):
    tokens = train[torch.randint(len(train), (BATCH,), generator=generator)]
    tokens = tokens[:, : int((tokens != PAD).sum(dim=1).max())]
    is_real = tokens != PAD

    # The forward process; padding and the start of a text are known
    time = (torch.arange(BATCH) + torch.rand(BATCH, generator=generator)) / BATCH
    noisy = torch.where(is_real, scheduler.add_noise(tokens, time, generator), tokens)
    noisy[:, 0] = EOS

    # What stood under the masks?
    masked = noisy == MASK
    logits = model(noisy, attention_mask=is_real, positions=masked).logits
    loss = absorbing_bound(logits, tokens[masked], torch.ones(len(logits)), MASK).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    warm_up.step()
    losses.append(loss.item())
model.eval()

frequencies = torch.bincount(train[:, 1:][train[:, 1:] != PAD], minlength=len(tokenizer)).double()
unigram = torch.distributions.Categorical(frequencies).entropy()

figure, axis = plt.subplots(figsize=(7, 3))
smooth = torch.tensor(losses).unfold(0, 20, 1).mean(dim=1)
axis.plot(losses, color="lightgray")
axis.plot(range(19, STEPS), smooth)
axis.axhline(unigram, color="tab:red", linestyle=":", label="H(unigram)")
axis.set(xlabel="step", ylabel="nats / [MASK]")
axis.legend()
plt.show()
print(
    f"{model.num_parameters():,} parameters, {smooth[-1]:.2f} nats per mask; unigram {unigram:.2f}"
)

# %%
from datasets import Dataset

from text_diffusers.evaluation import estimate_bound

held_out_rows = Dataset.from_dict(
    {
        "input_ids": held_out.tolist(),
        "attention_mask": (held_out != PAD).long().tolist(),
        "given": (torch.arange(LENGTH).expand(held_out.shape) == 0).tolist(),
    }
)
estimate = estimate_bound(model, scheduler, held_out_rows)
print(
    f"{estimate.bound:.2f} +- {estimate.standard_error:.2f} nats per token; unigram {unigram:.2f}"
)

# %% [markdown] lang="en"
# A minute of training is enough to be clearly below the entropy of the token frequencies, and far from a good language
# model. Now the practice: **how many missing words are restored**, as a function of the share that is hidden? We hide
# tokens of held-out texts, ask for all of them at once and take the likeliest. Beside our model stand the majority
# baseline, which always says the most frequent token, and `chat-and-novels`. The latter was trained for longer, but on
# sentences of two kinds, and it may have read some of these very messages, since its
# held-out part was another one; the same goes for `four-voices` below.

# %% [markdown] lang="ru"
# Минуты обучения хватает, чтобы оказаться заметно ниже энтропии частот токенов, — но до хорошей языковой модели
# далеко. Теперь сама практика: **сколько пропущенных слов восстановлено** в зависимости от доли скрытых? Скроем токены
# отложенных текстов, спросим обо всех сразу и возьмём самые вероятные. Рядом с нашей моделью — базовый уровень,
# который всегда называет самый частый токен, и `chat-and-novels`. Она обучалась дольше, но на предложениях двух видов,
# и могла видеть некоторые из этих сообщений: отложенная часть у неё была другая. То же относится и к `four-voices`
# ниже.

# %%
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
is_real = held_out != PAD
is_word = is_real & (held_out != EOS)
commonest = int(frequencies[EOS + 1 :].argmax()) + EOS + 1


@torch.no_grad()
def restored(predict, share):
    """The share of hidden tokens that are found, of the same ones for all."""
    hidden = is_word & (torch.rand(held_out.shape, generator=seed(1)) < share)
    found = predict(held_out.masked_fill(hidden, MASK), hidden) == held_out[hidden]
    return float(found.double().mean())


def most_frequent(noisy, hidden):
    return torch.full((int(hidden.sum()),), commonest)


def likeliest(denoiser, **labels):
    def predict(noisy, hidden):
        # The head, the dearest part, runs at the gaps only.
        logits = denoiser(noisy, attention_mask=is_real, positions=hidden, **labels).logits
        return logits[:, :PAD].argmax(dim=-1)

    return predict


predictors = {
    "majority": most_frequent,
    "mini D3PM": likeliest(model),
    "chat-and-novels": likeliest(shipped.denoiser, class_labels=torch.zeros(len(held_out)).long()),
}
results = {
    name: [restored(predict, share) for share in SHARES] for name, predict in predictors.items()
}

figure, axis = plt.subplots(figsize=(7, 3.4))
for name, values in results.items():
    axis.plot(
        [100 * share for share in SHARES], [100 * value for value in values], marker="o", label=name
    )
    print(f"{name:>16}", "  ".join(f"{100 * value:4.1f}%" for value in values))
axis.set(xlabel="[MASK], %", ylabel="x = x₀, %", ylim=0)
axis.legend()
plt.show()

# %% [markdown] lang="en"
# Even with one token in ten hidden, some five in six are not restored: a gap in a chat has many good fillings, and only
# the original one counts here. The fall of the curve is the worth of context. At 90% what is left is mostly the place
# of a token: what a message begins with, and the mark at its end. The shipped model is ahead where there is much
# context; where there is little, ours knows better what these very messages look like. Now the fillings themselves:

# %% [markdown] lang="ru"
# Даже когда скрыт один токен из десяти, около пяти шестых не восстановлено: у пропуска в чате много хороших заполнений,
# а засчитывается лишь исходное. То, как кривая падает, — это цена контекста. При 90% остаётся в основном место токена:
# с чего начинаются сообщения и какой знак стоит в конце. Модель из пакета впереди там, где контекста много; где его
# мало, наша лучше знает, как выглядят именно эти сообщения. Теперь сами заполнения:

# %%
# How many texts have 0, 1, 2, ... tokens. With these, the pipeline takes a text with gaps for a whole one, whose end is known.
lengths = torch.bincount((train != PAD).sum(dim=1) - 2).tolist()
surest_first = ConfidenceScheduler(MASK, temperature=0.0)
mini = TextDiffusionPipeline(tokenizer, model, surest_first, lengths)
mini.set_progress_bar_config(disable=True)
GAPS = [
    "I [MASK] to go to the [MASK] tomorrow.",
    "What do you [MASK] to do in your [MASK] time?",
    "I'm [MASK] good, how about [MASK]?",
    "Do you have [MASK] brothers or [MASK]?",
    "Have you ever [MASK] to another [MASK]?",
]
for filled, other in zip(
    mini(text=GAPS, generator=seed()).texts,
    shipped(text=GAPS, class_labels="chat", temperature=0.0, generator=seed()).texts,
    strict=True,
):
    print(f"{filled:45} | {other}")

# %% [markdown] lang="en"
# Every row of the training ended with the mark of an end, so the pipeline puts one behind the text that is asked here
# and into no gap.
#
# Does it write? All masks, 24 steps back:

# %% [markdown] lang="ru"
# Каждая строка при обучении заканчивалась меткой конца, поэтому пайплайн ставит её после текста, о котором спрашивают,
# а в пропуски не ставит никогда.
#
# А писать она умеет? Начнём с одних масок и сделаем 24 шага назад:

# %%
mini.scheduler = D3PMAbsorbingScheduler(MASK, temperature=0.7)
for text in mini(length=10, num_inference_steps=24, num_return_sequences=5, generator=seed()).texts:
    print(text)

# %% [markdown] lang="en"
# A salad of words that fit together by twos and threes: that is what a minute of training gives. Writing is harder
# than restoring, because it starts at the right end of the curve above.
#
# ## A masked language model is a diffusion model
#
# BERT was trained to fill in 15% of masks. That is the objective above at one time, $t = 0.15$, so it works as a
# denoiser without any training. On Colab this cell loads it; offline it says so and goes on.

# %% [markdown] lang="ru"
# Словесный салат, согласованный по два-три слова, — больше минута обучения не даёт. Писать труднее, чем
# восстанавливать: начинать приходится с правого края кривой.
#
# ## Маскированная языковая модель — это диффузионная модель
#
# BERT обучали заполнять 15% масок. Это та же целевая функция, но в единственный момент $t = 0{,}15$, поэтому BERT
# годится в денойзеры без всякого обучения. В Colab эта ячейка загрузит его, а без сети сообщит об этом и пойдёт
# дальше.

# %%
from transformers import AutoModelForMaskedLM, AutoTokenizer

from text_diffusers import FirstHittingScheduler

NAME = "google-bert/bert-base-uncased"
try:
    bert_tokenizer = AutoTokenizer.from_pretrained(NAME)
    bert_model = AutoModelForMaskedLM.from_pretrained(NAME)
except OSError:
    print(f"{NAME}: no network, skipped")
else:
    noise = FirstHittingScheduler(bert_tokenizer.mask_token_id, temperature=0.7)
    bert = TextDiffusionPipeline(bert_tokenizer, bert_model, noise)
    bert.set_progress_bar_config(disable=True)
    for text in bert(text=GAPS, generator=seed()).texts:
        print(text)
    for text in bert(
        "the weather today", max_new_tokens=12, num_return_sequences=3, generator=seed()
    ).texts:
        print(text)

# %% [markdown] lang="en"
# Offline the same idea is at hand in `four-voices`: it is the sentence encoder MiniLM, a relative of BERT, which was
# trained further as a diffusion model in three hours of CPU time. It has the class of BERT in transformers. It was
# also taught to write from the left in blocks of two tokens, so it writes better than it fills in.

# %% [markdown] lang="ru"
# Без сети та же идея под рукой в `four-voices`: это энкодер предложений MiniLM, родственник BERT, дообученный как
# диффузионная модель за три часа процессорного времени. Класс модели — BERT из transformers. Её к тому же научили
# писать слева направо блоками по два токена, поэтому пишет она лучше, чем заполняет пропуски.

# %%
voices = TextDiffusionPipeline.from_pretrained("four-voices")
voices.set_progress_bar_config(disable=True)
print(type(voices.denoiser).__name__, f"{voices.denoiser.num_parameters():,}")
for text in voices(text=GAPS, class_labels="chat", temperature=0.0, generator=seed()).texts:
    print(text)
print()
for text in voices(
    class_labels="chat", num_return_sequences=3, max_new_tokens=24, generator=seed()
).texts:
    print(text)

# %% [markdown] lang="en"
# One more count, with all three models on the same footing: one word of each text is hidden, a word that is one token
# for every tokenizer, and each pipeline fills it in.

# %% [markdown] lang="ru"
# И ещё один подсчёт, где все три модели в равных условиях: в каждом тексте скрыто одно слово, которое у всех
# токенизаторов — один токен, и каждый пайплайн его заполняет.

# %%
questions = []
answers = []
for ids in held_out.tolist():
    words = tokenizer.decode(ids, skip_special_tokens=True).split()
    place = 1 + len(questions) % (len(words) - 2)
    word = words[place]
    is_token = all(
        len(each.encode(f" {word}", add_special_tokens=False)) == 1
        for each in (tokenizer, voices.tokenizer)
    )
    if word.isalpha() and is_token:
        questions.append(" ".join([*words[:place], "[MASK]", *words[place + 1 :]]))
        answers.append(word)
questions, answers = questions[:200], answers[:200]

mini.scheduler = ConfidenceScheduler(MASK, temperature=0.0)
guesses = {
    "mini D3PM": mini(text=questions, generator=seed()).texts,
    "chat-and-novels": shipped(
        text=questions, class_labels="chat", temperature=0.0, generator=seed()
    ).texts,
    "four-voices": voices(
        text=questions, class_labels="chat", temperature=0.0, generator=seed()
    ).texts,
}
word, count = Counter(answers).most_common(1)[0]
print(f"{'majority':>16}  {count / len(answers):.3f}  ({word})")
for name, texts in guesses.items():
    pairs = zip(questions, answers, texts, strict=True)
    right = sum(text == question.replace("[MASK]", answer) for question, answer, text in pairs)
    print(f"{name:>16}  {right / len(answers):.3f}")

# %% [markdown] lang="en"
# ## What you have seen
#
# - A kernel is a matrix; a step back is Bayes' rule with a guess in the place of $x_0$.
# - Draws have no gradient; Gumbel-softmax buys one, at the price of bias or noise.
# - Training on masks at all rates is a bound of the likelihood, and BERT was trained at one of the rates.
# - A small model restores words where there is context, and the less of it there is, the fewer.
#
# More: [kernels and samplers](../../docs/discrete.md), [BERT and its kin](../../docs/adaptation.md).

# %% [markdown] lang="ru"
# ## Что вы увидели
#
# - Ядро — это матрица; шаг назад — формула Байеса, где вместо $x_0$ стоит догадка.
# - У выбора нет градиента; Gumbel-softmax покупает его ценой смещения или шума.
# - Обучение на масках всех долей — граница правдоподобия, а BERT обучали при одной из этих долей.
# - Маленькая модель восстанавливает слова по контексту: чем его меньше, тем реже она угадывает.
#
# Дальше: [ядра и сэмплеры](../../docs/discrete.ru.md), [BERT и родственники](../../docs/adaptation.ru.md).
