# %% [markdown] lang="en"
# # Module 1. Two ways to write a text
#
# An autoregressive model writes one token after the other and never looks back. A diffusion model begins with noise and
# settles the tokens in any order, looking at both sides. In this notebook you will
#
# 1. watch one model write in both ways,
# 2. write the noise yourself: tokens that turn into `[MASK]`,
# 3. try three tasks of the course: continuing, paraphrase, prepositions. Two more, parts of speech and compression, are
#    only described: [tasks of understanding](../../docs/understanding.md) trains them.
#
# It takes about a minute on two CPU cores.

# %% [markdown] lang="ru"
# # Модуль 1. Два способа писать текст
#
# Авторегрессионная модель пишет токен за токеном и никогда не возвращается. Диффузионная начинает с шума и определяет
# токены в любом порядке, глядя в обе стороны. В этом ноутбуке вы
#
# 1. увидите, как одна и та же модель пишет обоими способами,
# 2. сами напишете шум: токены, которые превращаются в `[MASK]`,
# 3. попробуете три задачи курса: продолжение, перефразирование, предлоги. Ещё две, части речи и сжатие, здесь только
#    описаны: обучение для них — на странице [задач на понимание](../../docs/understanding.ru.md).
#
# Всё вместе занимает около минуты на двух ядрах процессора.

# %%
from collections import Counter

import matplotlib.pyplot as plt
import torch

from text_diffusers import TextDiffusionPipeline
from text_diffusers.guidance import ChoiceControl
from text_diffusers.samplers import with_sampler

writer = TextDiffusionPipeline.from_pretrained("chat-and-novels")
writer.set_progress_bar_config(disable=True)


def seed(number=0):
    return torch.Generator().manual_seed(number)


# %% [markdown] lang="en"
# ## Autoregression beside diffusion
#
# `chat-and-novels`, a small model that comes with the package, predicts every masked token from all the others. A
# **sampler** decides which prediction is taken when: `left_to_right` writes as an autoregressive model does, `confidence`
# writes first what it is surest of.

# %% [markdown] lang="ru"
# ## Авторегрессия рядом с диффузией
#
# Маленькая модель `chat-and-novels`, которая поставляется с пакетом, предсказывает каждый скрытый токен по всем
# остальным. Какое предсказание и когда принять, решает **сэмплер**: `left_to_right` пишет как авторегрессионная модель,
# `confidence` сначала пишет то, в чём уверен больше всего.

# %%
REQUEST = {"class_labels": "novel", "length": 14, "temperature": 0.7}

for sampler in ("left_to_right", "confidence"):
    print(sampler)
    stream = with_sampler(writer, sampler).stream(
        generator=seed(), num_inference_steps=14, **REQUEST
    )
    for step, texts in enumerate(stream, start=1):
        if step % 3 == 2:
            print("   ", texts[0])

# %% [markdown] lang="en"
# The picture shows the same: rows are steps, columns are tokens, and a cell is filled from the step on at which its
# token is settled. Autoregression is a staircase. Diffusion may settle several tokens in one step: four steps are less
# than a third of the calls of the model. What that costs, one text cannot tell: here none reads well. [The page of
# results](../../docs/results.md) measures few steps on a thousand texts.

# %% [markdown] lang="ru"
# На картинке то же самое: строки — шаги, столбцы — токены, клетка закрашена с того шага, на котором её токен определён.
# Авторегрессия — это лестница. Диффузия может определить за шаг несколько токенов: четыре шага — меньше трети вызовов
# модели. Чего это стоит, по одному тексту не видно: здесь нескладны все три. На тысяче текстов малое число шагов
# измерено на [странице результатов](../../docs/results.ru.md).

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2))
runs = [("left_to_right", 14), ("confidence", 14), ("confidence", 4)]
for axis, (sampler, steps) in zip(axes, runs, strict=True):
    output = with_sampler(writer, sampler)(
        generator=seed(), num_inference_steps=steps, return_history=True, **REQUEST
    )
    history = torch.stack([tokens[0] for tokens in output.history])
    is_written = history[0] == writer.tokenizer.mask_token_id
    settled = (history != writer.tokenizer.mask_token_id)[:, is_written]
    axis.imshow(settled, aspect="auto", cmap="Blues", vmin=0, vmax=1.4)
    axis.set(title=f"{sampler}, {steps}", xlabel="token", ylabel="step")
    print(f"{sampler}, {steps}: {output.texts[0]}")
figure.tight_layout()
plt.show()

# %% [markdown] lang="en"
# ## Noise: tokens that turn into `[MASK]`
#
# Training needs noise, a process that destroys a text step by step: at time $t$ each token is a mask with probability
# $t$, independently of the others. The command line shows it:
#
#     text-diffusers corrupt "The cat sat on the mat and looked at me."
#
# **Exercise 1.** Write that process yourself: `corrupt(words, time, generator)` returns the words, each replaced by
# `"[MASK]"` with probability `time`.

# %% [markdown] lang="ru"
# ## Шум: токены превращаются в `[MASK]`
#
# Для обучения нужен шум — процесс, который шаг за шагом разрушает текст: в момент $t$ каждый токен скрыт с вероятностью
# $t$, независимо от остальных. Его показывает командная строка:
#
#     text-diffusers corrupt "The cat sat on the mat and looked at me."
#
# **Упражнение 1.** Напишите этот процесс сами: `corrupt(words, time, generator)` возвращает слова, каждое из которых с
# вероятностью `time` заменено на `"[MASK]"`.

# %% tags=["exercise"]
corrupt = ...  # def corrupt(words, time, generator): ...


# %% tags=["solution"]
def corrupt(words, time, generator):
    is_lost = torch.rand(len(words), generator=generator) < time
    return ["[MASK]" if lost else word for word, lost in zip(words, is_lost, strict=True)]


# %% tags=["wrong"]
def corrupt(words, time, generator):
    count = round(time * len(words))
    return ["[MASK]"] * count + list(words[count:])


# %% tags=["check"]
def is_noise(corrupt):
    """Each place is lost with probability `time`, and two places independently of each other."""
    words = "the cat sat on the mat and looked at me".split()
    generator = seed()
    for time in (0.0, 0.3, 0.8, 1.0):
        rows = [corrupt(words, time, generator) for _ in range(2000)]
        assert all(
            new in (old, "[MASK]") for row in rows for new, old in zip(row, words, strict=True)
        )
        lost = torch.tensor([[word == "[MASK]" for word in row] for row in rows]).double()
        assert torch.allclose(lost.mean(dim=0), torch.full((10,), time).double(), atol=0.06)
        together = (lost[:, 0] * lost[:, 1]).mean()
        assert abs(together - time**2) < 0.06
    return True


check(corrupt, is_noise)

# %% [markdown] lang="en"
# ## Five tasks
#
# A model that fills in masks does more than write. `four-voices`, the larger model of the package, was made from a sentence
# encoder and has read chats, novels, speeches and scripture.
#
# **1. Continue**, as an autoregressive model does.

# %% [markdown] lang="ru"
# ## Пять задач
#
# Модель, которая заполняет пропуски, умеет не только писать. `four-voices`, большая из моделей пакета, сделана из
# энкодера предложений и читала чаты, романы, речи и Писание.
#
# **1. Продолжение**, как у авторегрессионной модели.

# %%
pipe = TextDiffusionPipeline.from_pretrained("four-voices")
pipe.set_progress_bar_config(disable=True)

for label in ("chat", "novel", "speech", "scripture"):
    print(f"{label:>9}:", pipe("I have never", class_labels=label, generator=seed()).texts[0])

# %% [markdown] lang="en"
# **2. Paraphrase.** Keep what carries the meaning, hide the rest, and let the model find other words. A better way is a
# model that was trained on pairs: [ParaGuide](../../docs/pipelines/paraguide.md), which module 5 describes and `make
# paraphrase` trains.

# %% [markdown] lang="ru"
# **2. Перефразирование.** Оставим то, что несёт смысл, скроем остальное, и пусть модель найдёт другие слова. Есть
# способ лучше — модель, обученная на парах: это [ParaGuide](../../docs/pipelines/paraguide.ru.md), о ней рассказано в
# модуле 5, а обучает её `make paraphrase`.

# %%
text = "I am [MASK] glad to [MASK] that you [MASK] coming to [MASK] house."
for paraphrase in pipe(
    text=text, class_labels="novel", num_return_sequences=4, generator=seed()
).texts:
    print(paraphrase)

# %% [markdown] lang="en"
# **3. Prepositions.** What a model thinks of a gap is counted in many draws. `ChoiceControl` lets it choose among some
# texts only, here one with each preposition: a question of grammar becomes a text with a gap.

# %% [markdown] lang="ru"
# **3. Предлоги.** Что модель думает о пропуске, посчитаем по многим выборкам. `ChoiceControl` разрешает ей выбирать
# только среди нескольких текстов — здесь по одному на каждый предлог: вопрос о грамматике становится текстом с
# пропуском.

# %%
PREPOSITIONS = "of in to for with on at from by about into".split()


def prepositions(text, draws=100):
    """How often each preposition fills the gap of a text."""
    choices = [text.replace("[MASK]", word) for word in PREPOSITIONS]
    control = ChoiceControl(pipe.tokenizer, choices)
    texts = pipe(
        text=text,
        num_return_sequences=draws,
        controls=[control],
        class_labels="novel",
        temperature=1.0,
        top_p=1.0,
        generator=seed(),
    ).texts
    return Counter(PREPOSITIONS[choices.index(text)] for text in texts)


QUESTIONS = {
    "She was married [MASK] Mr. Weston.": "to",
    "He looked [MASK] the window.": "at",
    "I am very fond [MASK] my sister.": "of",
    "She was afraid [MASK] the dog.": "of",
    "They went [MASK] church.": "to",
    "We shall wait [MASK] you.": "for",
    "She came [MASK] London with her aunt.": "to",
    "He was angry [MASK] his brother.": "with",
}
num_right = 0
for question, answer in QUESTIONS.items():
    counts = prepositions(question)
    num_right += counts.most_common(1)[0][0] == answer
    print(question, dict(counts.most_common(3)))
print(f"{num_right} / {len(QUESTIONS)}")

# %% [markdown] lang="en"
# **4. Parts of speech** are a text too: write the tag behind each word, hide the tags, and let a model that was trained
# on such rows fill them in. **5. Compression** of a sentence is a text that is written from another one. Both need a
# training of their own, `make understanding`, and have a page, [tasks of understanding](../../docs/understanding.md).
# Neither is trained or tried here: you only make the rows for the tags.
#
# **Exercise 2.** `tagged_row(words, tags)` returns the row in which each word is followed by its tag, and
# `question_row(words)` the same with `"[MASK]"` for every tag.

# %% [markdown] lang="ru"
# **4. Части речи** — тоже текст: напишем после каждого слова его метку, скроем метки, и пусть их заполнит модель,
# обученная на таких строках. **5. Сжатие** предложения — текст, который пишется по другому тексту. Для обеих задач
# модель нужно обучать отдельно, командой `make understanding`; что из этого вышло — на странице [задач на
# понимание](../../docs/understanding.ru.md). Здесь ни та, ни другая не обучается и не пробуется: вы только готовите
# строки с метками.
#
# **Упражнение 2.** `tagged_row(words, tags)` возвращает строку, в которой за каждым словом стоит его метка, а
# `question_row(words)` — то же самое, но с `"[MASK]"` вместо каждой метки.

# %% tags=["exercise"]
tagged_row = ...  # def tagged_row(words, tags): ...
question_row = ...  # def question_row(words): ...


# %% tags=["solution"]
def tagged_row(words, tags):
    return " ".join(f"{word} {tag}" for word, tag in zip(words, tags, strict=True))


def question_row(words):
    return tagged_row(words, ["[MASK]"] * len(words))


# %% tags=["wrong"]
def tagged_row(words, tags):
    return " ".join([*words, *tags])


def question_row(words):
    return tagged_row(words, ["[MASK]"] * len(words))


# %% tags=["check"]
def are_rows(answers):
    tagged_row, question_row = answers
    assert tagged_row(["the", "cat", "sat"], ["DET", "NOUN", "VERB"]) == "the DET cat NOUN sat VERB"
    assert question_row(["the", "cat"]) == "the [MASK] cat [MASK]"
    return True


check((tagged_row, question_row), are_rows)

# %% [markdown] lang="en"
# ## What you have seen
#
# - One model, two orders: autoregression is a special case, one token a step from the left.
# - Noise that hides tokens, independently, with a probability that grows from 0 to 1.
# - Many tasks can be written as texts with gaps.
#
# More: [samplers](../../docs/discrete.md#samplers), [the command line](../../docs/command_line.md).

# %% [markdown] lang="ru"
# ## Что вы увидели
#
# - Одна модель, два порядка: авторегрессия — частный случай, по одному токену за шаг слева направо.
# - Шум, который скрывает токены независимо, с вероятностью, растущей от 0 до 1.
# - Многие задачи можно записать как тексты с пропусками.
#
# Дальше: [сэмплеры](../../docs/discrete.ru.md), [командная строка](../../docs/command_line.ru.md).
