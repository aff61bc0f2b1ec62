# %% [markdown] lang="en"
# # Module 8. An assistant for a sales team
#
# A customer writes; the team has a note with the facts. The assistant offers five replies that differ, in the tone that is
# wanted, and **every fact is in them**: a price that the conversation does not have cannot be written in digits. You will
#
# 1. look at conversations of which it is known what a right reply must hold,
# 2. train a small diffusion model on them for about a minute and a half: far too short, which is the point,
# 3. force the facts by a pattern, and count,
# 4. measure how much the replies differ.
#
# It takes about four minutes on two CPU cores, in a clone of the repository. `docs/assistant.md` has the model that was trained for longer.

# %% [markdown] lang="ru"
# # Модуль 8. Помощник отдела продаж
#
# Покупатель пишет; у отдела есть записка с фактами. Помощник предлагает пять разных ответов в нужном тоне, и **в каждом есть все
# факты**: цену, которой нет в разговоре, цифрами не написать. Вы
#
# 1. посмотрите на разговоры, для которых известно, что должно быть в ответе,
# 2. обучите на них маленькую диффузионную модель примерно за полторы минуты: слишком мало, в этом и смысл,
# 3. потребуете факты шаблоном и посчитаете,
# 4. измерите, насколько ответы различаются.
#
# Всё вместе занимает около четырёх минут на двух ядрах процессора, в клоне репозитория. Модель, обученная дольше, — в
# `docs/assistant.ru.md`.

# %%
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

# The example lies beside the library.
EXAMPLE = next(
    folder / "examples/sales_assistant"
    for folder in (Path.cwd(), *Path.cwd().parents)
    if (folder / "examples/sales_assistant").exists()
)
sys.path.insert(0, str(EXAMPLE))
from assistant import SalesAssistant, plain_replies
from conversations import as_pair, generate, missing_facts, split

from text_diffusers import TextDiffusionPipeline
from text_diffusers.evaluation import distinct_n, self_bleu

# %% [markdown] lang="en"
# ## Conversations
#
# `conversations.py` writes them from a catalogue, hundreds of phrasings and a note of the team, in English and Russian; all of it is
# under CC0. Each comes with `facts`, what a right reply must hold. `read_records` reads a company's own CSV or JSONL of the same
# columns.

# %% [markdown] lang="ru"
# ## Разговоры
#
# Их пишет `conversations.py` по каталогу, сотням формулировок и записке отдела, на английском и на русском; всё это под CC0. К
# каждому прилагаются `facts` — то, что должно быть в правильном ответе. `read_records` читает CSV или JSONL самой компании с теми же
# столбцами.

# %% lang="en"
LANGUAGE = "en"  # or "ru"

# %% lang="ru"
LANGUAGE = "ru"  # or "en"

# %%
# A catalogue that never changes would be learned by heart: to learn from, each conversation has its own.
trained, _ = split(generate(LANGUAGE, 6_000, varied=True))
_, held_out = split(generate(LANGUAGE, 6_000))
print(len(trained), len(held_out))
for record in held_out[:2]:
    pair = as_pair(record)
    print(f"\n{pair['source']}\n-> {pair['reply']}\n   {pair['facts']}")
pd.Series([record["intent"] for record in trained]).value_counts()

# %% [markdown] lang="en"
# ## A training that is too short
#
# A reply is written from a source, the note and the turns; the tone is a label. The recipe is one command.

# %% [markdown] lang="ru"
# ## Слишком короткое обучение
#
# Ответ пишется по источнику — записке и репликам; тон — это метка. Рецепт — одна команда.

# %%
folder = Path(tempfile.mkdtemp())
for name, part in (("train", trained), ("validation", held_out)):
    lines = [json.dumps(as_pair(record), ensure_ascii=False) for record in part]
    (folder / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")

OPTIONS = (
    "--source_column source --text_column reply --label_column tone --packing false --length 256 --vocab_size 1000 "
    "--hidden_size 128 --num_layers 3 --num_attention_heads 4 --train_batch_size 16 --learning_rate 1e-3 "
    "--lr_warmup_steps 50 --ema_decay 0.98 --max_train_steps 700 --validation_steps 0 --validation_rows 50 "
    "--checkpointing_steps 0 --num_samples 0 --num_cpu_threads 1 --report_to none"
)
command = (
    f"-m text_diffusers.cli train d3pm --dataset {folder} --output_dir {folder}/model {OPTIONS}"
)
done = subprocess.run(
    [sys.executable, *command.split()], capture_output=True, text=True, check=False
)
assert done.returncode == 0, done.stderr[-2000:]
pipe = TextDiffusionPipeline.from_pretrained(f"{folder}/model")
assistant = SalesAssistant(pipe, texts=plain_replies(held_out))

# %%
pairs = [as_pair(record) for record in held_out[:12]]
sources = [pair["source"] for pair in pairs]
tones = [pair["tone"] for pair in pairs]
free = assistant.write(sources, tones)
for pair, reply in [*zip(pairs, free, strict=True)][:3]:
    print(f"{reply}\n   lacks {missing_facts(reply, pair['facts'])}")

# %% [markdown] lang="en"
# ## Facts by a pattern
#
# A regular expression says what a text must be, and a control makes every text match, exactly: see
# [guidance](../../docs/guidance.md#controls).
#
# **Exercise 1.** `pattern_of(first, second)` returns a regular expression of texts that hold both strings, in any order, and no
# digit outside of them. Both are taken letter by letter: `re.escape`.

# %% [markdown] lang="ru"
# ## Факты по шаблону
#
# Регулярное выражение говорит, каким должен быть текст, а требование (control) делает так, что ему соответствует каждый текст, точно:
# см. [управление](../../docs/guidance.ru.md).
#
# **Упражнение 1.** `pattern_of(first, second)` возвращает регулярное выражение для текстов, в которых есть обе строки, в любом порядке,
# и нет цифр вне их. Обе берутся буква в букву: `re.escape`.

# %% tags=["exercise"]
pattern_of = ...  # def pattern_of(first, second): ...


# %% tags=["solution"]
def pattern_of(first, second):
    first, second = re.escape(first), re.escape(second)
    other = "[^0-9]*"
    return f"{other}{first}{other}{second}{other}|{other}{second}{other}{first}{other}"


# %% tags=["wrong"]
def pattern_of(first, second):
    return f".*{re.escape(first)}.*{re.escape(second)}.*"


# %% tags=["check"]
def holds_both(pattern_of):
    pattern = pattern_of("Anna", "$129 (new)")
    right = ["Anna, it is $129 (new).", "$129 (new), dear Anna!"]
    wrong = ["Anna, $129 (new), not $99.", "Anna.", "Only $129 (new).", "Anna, $1290 (new)"]
    assert all(re.fullmatch(pattern, text) for text in right)
    assert not any(re.fullmatch(pattern, text) for text in wrong)
    return True


check(pattern_of, holds_both)

# %%
controlled = assistant.write(sources, tones, [pair["facts"] for pair in pairs])
for pair, reply in [*zip(pairs, controlled, strict=True)][:3]:
    print(f"{reply}\n   lacks {missing_facts(reply, pair['facts'])}")
for name, replies in (("free", free), ("controlled", controlled)):
    right = sum(
        not missing_facts(text, pair["facts"]) for text, pair in zip(replies, pairs, strict=True)
    )
    print(f"{name:>10}: {right} / {len(pairs)}")

# %% [markdown] lang="en"
# The language is broken, a minute and a half is no training, and the facts are right all the same. A control cannot teach to write,
# and a model, however good, cannot promise: together they are an assistant.
#
# ## Do the replies differ?
#
# **Exercise 2.** Distinct-2 is the share of different pairs of neighbouring words among all pairs of all texts. Write
# `distinct_pairs(texts)` for words that blanks separate. The check compares it with the library's.

# %% [markdown] lang="ru"
# Текст бессвязный: полторы минуты — это не обучение. А факты всё равно верны. Требование не научит писать, а модель, даже хорошая,
# ничего не гарантирует: вместе получается помощник.
#
# ## Различаются ли ответы?
#
# **Упражнение 2.** Distinct-2 — доля разных пар соседних слов среди всех пар всех текстов. Напишите `distinct_pairs(texts)` для слов,
# разделённых пробелами. Проверка сравнивает с библиотекой.

# %% tags=["exercise"]
distinct_pairs = ...  # def distinct_pairs(texts): ...


# %% tags=["solution"]
def distinct_pairs(texts):
    pairs = []
    for text in texts:
        words = text.split()
        pairs += zip(words, words[1:], strict=False)
    return len(set(pairs)) / len(pairs)


# %% tags=["wrong"]
def distinct_pairs(texts):
    words = " ".join(texts).split()
    return len(set(words)) / len(words)


# %% tags=["check"]
def is_distinct(distinct_pairs):
    for texts in (
        ["a b a b a b"],
        ["the cat sat", "the cat ran"],
        ["we can help you", "you can help us"],
    ):
        assert abs(distinct_pairs(texts) - distinct_n(texts, 2)) < 1e-9
    return True


check(distinct_pairs, is_distinct)

# %%
pair = pairs[0]
replies = assistant.replies(pair["source"], pair["tone"], pair["facts"], count=5)
for reply in replies:
    print("-", reply)
print(f"distinct-2 {distinct_n(replies, 2):.2f}, self-BLEU {self_bleu(replies):.1f}")

# %% [markdown] lang="en"
# ## Your project
#
# Train for longer, on your own conversations, and defend three things: the architecture (why diffusion, which kernel, how the facts
# get in), the figures (facts right, tone by an independent judge, how much replies differ, seconds a reply, beside an
# autoregressive model of equal size) and a demonstration (`text-diffusers demo runs/mine`). `docs/assistant.md` does all of
# this once; `docs/course.md` says where every topic is.

# %% [markdown] lang="ru"
# ## Ваш проект
#
# Обучите дольше, на своих разговорах, и защитите три вещи: архитектуру (почему диффузия, какое ядро, как попадают факты), числа
# (верные факты, тон по оценке независимого судьи, разнообразие ответов, секунды на ответ — рядом с авторегрессионной моделью того же
# размера) и демонстрацию (`text-diffusers demo runs/mine`). В `docs/assistant.ru.md` всё это сделано один раз; где какая тема, говорит
# `docs/course.ru.md`.
